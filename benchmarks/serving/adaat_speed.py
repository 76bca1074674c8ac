"""Speed of AdaAT's kernels against PyTorch's `affine_grid` and `grid_sample`: `python -m benchmarks.serving.adaat_speed`.

Both warp the same features by the same similarity transforms, in turns, and their results are compared. It always runs on the CPU;
on a GPU if there is one, with the share of the memory bandwidth that the kernel reaches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from benchmarks import reports
from insync.core.errors import ServerError
from insync.core.spec import CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH
from insync.ensemble.models.adaat import adaat
from insync.ensemble.models.adaat_cuda import AdaatKernel, pack
from insync.loadtest.measure.machine import cores
from insync.network.adaat import adaat as with_grid_sample

Floats = NDArray[np.float32]

TARGET = 1.8
SHAPE = (CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH)
SAMPLE_BYTES = 4 * CHANNELS * FEATURE_HEIGHT * FEATURE_WIDTH
GPU_WORKING_SET_BYTES = 512 * 2**20  # several times any GPU's cache, so that memory is measured
WARM_S = 0.3


@dataclass(frozen=True)
class Row:
    """Times of one setting, in ms per call."""

    batch: int
    setting: str
    ours_ms: list[float]
    theirs_ms: list[float]
    difference: float

    @property
    def ratio(self) -> float:
        """Speedup of our kernel: the median over the rounds."""
        return median(b / a for a, b in zip(self.ours_ms, self.theirs_ms, strict=True))


def inputs(batch: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Return REFERENCE [B, C, H, W] and AFFINE [B, C, 4], of the size and range that the served network gives."""
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((batch, *SHAPE), np.float32)
    affine = rng.normal((1, 0, 0, 0), (0.05, 0.1, 0.1, 0.1), (batch, CHANNELS, 4)).astype(np.float32)
    return reference, affine


def _time_ms(call: Callable[[], object], seconds: float) -> float:
    """Return the mean time of a call, over as many calls as fit into `seconds`."""
    count, started = 0, time.perf_counter()
    while (now := time.perf_counter()) - started < seconds or not count:
        call()
        count += 1
    return 1000 * (now - started) / count


def on_cpu(batches: Sequence[int], rounds: int, seconds: float) -> list[Row]:
    """Measure our numba kernel and PyTorch on the CPU, with the same number of threads."""
    rows = []
    for threads in sorted({1, cores()}):
        torch.set_num_threads(threads)
        for batch in batches:
            reference, affine = inputs(batch)
            tensors = torch.from_numpy(reference), torch.from_numpy(affine)

            def ours(reference: Floats = reference, affine: Floats = affine, threads: int = threads) -> Floats:
                return adaat(reference, affine, threads)

            def theirs(tensors: tuple[Any, Any] = tensors) -> Any:
                with torch.inference_mode():
                    return with_grid_sample(*tensors)

            difference = float(np.abs(ours() - theirs().numpy()).max())
            for call in (ours, theirs):
                _time_ms(call, WARM_S)
            times = [(_time_ms(ours, seconds), _time_ms(theirs, seconds)) for _ in range(rounds)]
            setting = f"{threads} thread{'s' if threads > 1 else ''}"
            rows.append(Row(batch, setting, [t[0] for t in times], [t[1] for t in times], difference))
    return rows


def on_gpu(batches: Sequence[int], rounds: int) -> tuple[str, list[Row], dict[int, float], float]:
    """Measure the CUDA kernel and PyTorch on the same GPU, timed by the GPU.

    Returns:
        A description of the GPU, the rows, GB/s of the kernel for each batch, and GB/s of a copy within the GPU's memory.

    Raises:
        ServerError: there is no GPU, or no CuPy.
    """
    kernel = AdaatKernel()
    import cupy

    if not torch.cuda.is_available():
        raise ServerError("PyTorch is not built for this GPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def time_ms(calls: Sequence[Callable[[], object]]) -> float:
        """Return the mean time of a call: each call uses other memory, so that none finds its inputs in the cache."""
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, end)) / len(calls)

    rows, bandwidth = [], {}
    for batch in batches:
        host = inputs(batch)
        copies = max(2, GPU_WORKING_SET_BYTES // (2 * batch * SAMPLE_BYTES))
        row = _one_batch(
            kernel, cupy, [cupy.asarray(host[0]) for _ in range(copies)], cupy.asarray(host[1]), time_ms, rounds
        )
        rows.append(row)
        bandwidth[batch] = 2 * batch * SAMPLE_BYTES / (1e6 * median(row.ours_ms))
    large, other = (cupy.empty(GPU_WORKING_SET_BYTES, np.uint8) for _ in range(2))
    copy_ms = median(time_ms([lambda: cupy.copyto(other, large)] * 10) for _ in range(rounds))
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    description = f"{name}; CuPy {cupy.__version__}, PyTorch {torch.__version__}"
    return description, rows, bandwidth, 2 * GPU_WORKING_SET_BYTES / (1e6 * copy_ms)


def _one_batch(
    kernel: AdaatKernel,
    cupy: Any,
    references: list[Any],
    affine: Any,
    time_ms: Callable[[Sequence[Callable[[], object]]], float],
    rounds: int,
) -> Row:
    """Measure both implementations on the same copies of one batch, in turns."""
    outputs = [cupy.empty_like(reference) for reference in references]

    def addresses(array: Any) -> list[int]:
        return [array.data.ptr + b * array.strides[0] for b in range(len(array))]

    tables = [
        pack(list(zip(addresses(reference), addresses(affine), addresses(output), strict=True)))
        for reference, output in zip(references, outputs, strict=True)
    ]
    tensors = [from_dlpack(reference) for reference in references]
    angles = from_dlpack(affine)
    stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)
    with torch.inference_mode(), torch.cuda.stream(stream):
        ours = [partial(kernel.launch, table, len(affine), SHAPE) for table in tables]
        theirs = [partial(with_grid_sample, tensor, angles) for tensor in tensors]
        expected = theirs[0]()
        ours[0]()
        difference = float((from_dlpack(outputs[0]) - expected).abs().max())
        for calls in (ours, theirs):
            time_ms(calls)
        times = [(time_ms(ours), time_ms(theirs)) for _ in range(rounds)]
    return Row(len(affine), "GPU", [t[0] for t in times], [t[1] for t in times], difference)


def _table(rows: Sequence[Row], bandwidth: dict[int, float] | None = None, copy: float = 0) -> str:
    head = ["batch", "device", "kernel, ms", "affine_grid + grid_sample, ms", "speedup", "largest difference"]
    lines = []
    for row in rows:
        line = [str(row.batch), row.setting, f"{median(row.ours_ms):.3f}", f"{median(row.theirs_ms):.3f}"]
        line += [f"{row.ratio:.1f}", f"{row.difference:.0e}"]
        if bandwidth is not None:
            line.append(f"{bandwidth[row.batch]:.0f} GB/s, {100 * bandwidth[row.batch] / copy:.0f} %")
        lines.append(line)
    return reports.table([*head, *(["bandwidth, share of a copy's"] if bandwidth is not None else [])], lines)


def main() -> int:
    """Measure and write `benchmarks/results/adaat_speed.md`."""
    parser = argparse.ArgumentParser(description="AdaAT's kernels against PyTorch's grid_sample.")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each implementation and round, on the CPU")
    parser.add_argument("--out", type=Path, default=reports.FOLDER / "adaat_speed.md")
    options = parser.parse_args()
    warning = reports.busy()
    rows = on_cpu(options.batches, options.rounds, options.seconds)
    try:
        description, gpu_rows, bandwidth, copy = on_gpu(options.batches, options.rounds)
    except ServerError as exc:
        gpu = f"Not run: {exc}. The same command measures it on a machine with a GPU, `insync[gpu]` and a CUDA build of PyTorch."
    else:
        gpu = f"{description}. A copy within the GPU's memory: {copy:.0f} GB/s.\n\n{_table(gpu_rows, bandwidth, copy)}"
    least = min(row.ratio for row in rows)
    reports.write(
        options.out,
        "AdaAT against affine_grid and grid_sample",
        "python -m benchmarks.serving.adaat_speed",
        [
            warning,
            f"Features of {' × '.join(map(str, SHAPE))} for each sample, as served; {options.rounds} rounds in which the two "
            "implementations take turns; medians. PyTorch eager, in inference mode; both in FP32.",
            "## CPU",
            _table(rows),
            f"The target is a speedup of {TARGET}; the lowest here is {least:.1f}.",
            "## GPU",
            gpu,
        ],
    )
    sys.stdout.write(options.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
