"""Speed of ONNX Runtime against PyTorch on the served graphs: `python -m benchmarks.serving.runtime_speed`.

Both use the same weights, read from the same files, and the same inputs, made from crops of the sample. They take turns within
one run, on the CPU, with the same number of threads. The talk that the network is based on reports 10 % for ONNX, on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import reports
from insync.core.spec import MODELS
from insync.export.onnx import feeds_of, real_crops
from insync.network.served import SERVED_GRAPHS, read_weights

REPOSITORY = reports.SAMPLES.parent / "model_repository"
PER_FRAME = ("lipsync_encoder", "lipsync_mixer", "lipsync_decoder")
TARGET = 1.1
Arrays = dict[str, NDArray[Any]]


def _onnx(name: str, feed: Arrays, threads: int) -> Callable[[], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(REPOSITORY / name / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, feed)


def _torch(name: str, graph: torch.nn.Module, feed: Arrays) -> Callable[[], Any]:
    arguments = [torch.from_numpy(feed[tensor.name]) for tensor in MODELS[name].inputs]

    def run() -> Any:
        with torch.inference_mode():
            return graph(*arguments)

    return run


def _time_s(run: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def measure(batches: list[int], rounds: int, threads: int) -> list[list[str]]:
    """Return the table's rows: milliseconds per frame of both runtimes, for each graph and batch and for their sum."""
    torch.set_num_threads(threads)
    network = read_weights(REPOSITORY)
    crops = real_crops(reports.SAMPLES / "sample.mp4", REPOSITORY / "lipsync_face" / "1", 8)
    feeds = feeds_of(network, crops)
    rows = []
    for batch in batches:
        sums = np.zeros(2)
        for name in tqdm(PER_FRAME, desc=f"batch {batch}"):
            feed = {key: np.resize(value, (batch, *value.shape[1:])) for key, value in feeds[name].items()}
            runtimes = (_onnx(name, feed, threads), _torch(name, SERVED_GRAPHS[name](network).eval(), feed))
            for run in runtimes:
                run()
            times_s = np.array([[_time_s(run) for run in runtimes] for _ in range(rounds)])
            ours_ms, theirs_ms = (1000 * median(column) / batch for column in times_s.T)
            sums += ours_ms, theirs_ms
            rows.append([f"`{name}`", str(batch), f"{ours_ms:.2f}", f"{theirs_ms:.2f}", f"{theirs_ms / ours_ms:.2f}"])
        rows.append(["**all three**", str(batch), *(f"{value:.2f}" for value in sums), f"**{sums[1] / sums[0]:.2f}**"])
    return rows


def main() -> int:
    """Run the benchmark and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--threads", type=int, default=1, help="of each runtime; the server uses one (default: %(default)s)"
    )
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / "runtime_speed.md")
    options = parser.parse_args()
    warning = reports.busy()
    rows = measure(options.batches, options.rounds, options.threads)
    reports.write(
        options.out,
        "ONNX Runtime against PyTorch",
        "python -m benchmarks.serving.runtime_speed " + " ".join(sys.argv[1:]),
        [
            warning,
            f"The graphs that run for every frame, FP32, CPU, {options.threads} thread of each; medians of {options.rounds} rounds in which the "
            "runtimes take turns. AdaAT, between mixer and decoder, has [a table of its own](adaat_speed.md).",
            reports.table(("graph", "batch", "ONNX Runtime, ms/frame", "PyTorch eager, ms/frame", "speedup"), rows),
            f"The target is a speedup of {TARGET}.",
        ],
    )
    sys.stdout.write(options.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
