"""Throughput of the served ensemble against the same graphs called in one process: `python -m benchmarks.serving.ensemble_share`.

The same frames and audio windows are sent to `lipsync_patch` on the embedded Triton server, over gRPC, and are given to
the same ONNX graphs, face finder, warp and AdaAT kernel called as functions in this process. The methods take turns
within one run, so that other work on the machine affects all of them equally. Their patches are compared, to show that
they do the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import av
import cv2
import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
from numpy.typing import NDArray

from benchmarks import reports
from insync.client.media.audio_reader import AudioFile
from insync.core import spec
from insync.core.head import head_of
from insync.core.images import encode_jpeg
from insync.ensemble.inference.pipeline import Chain, Twin
from insync.ensemble.models.face import FaceFinder, take_crop
from insync.ensemble.models.log_mel import LogMel
from insync.ensemble.server.embedded import EmbeddedServer
from insync.loadtest.measure.machine import cores

Floats = NDArray[np.float32]

REPOSITORY = reports.SAMPLES.parent / "model_repository"
TARGET = 0.85
JPEG_QUALITY = 92
HOP_S = 1 / 25
TYPES = {"FP32": np.float32, "UINT8": np.uint8}


@dataclass(frozen=True)
class Job:
    """One frame's request: the encoded frame, and its audio window."""

    frame: NDArray[np.uint8]
    audio: Floats


def jobs(clip: Path, speech: Path, count: int, height: int) -> list[Job]:
    """Return the first `count` frames of a clip scaled to `height` pixels, as JPEG, each with its window of the speech."""
    samples = np.concatenate(list(AudioFile(speech).speech()))
    samples = np.pad(samples, (spec.WINDOW_PAST_SAMPLES, count * spec.SAMPLE_RATE_HZ + spec.WINDOW_SAMPLES))
    found: list[Job] = []
    with av.open(str(clip)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == count:
                break
            width = round(frame.width * height / frame.height / 2) * 2
            image = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
            data = np.frombuffer(encode_jpeg(image, JPEG_QUALITY), np.uint8)
            start = round(index * HOP_S * spec.SAMPLE_RATE_HZ)
            found.append(Job(data, np.ascontiguousarray(samples[start : start + spec.WINDOW_SAMPLES], np.float32)))
    return found


def tensor(name: str, value: NDArray[Any], dtype: str, batched: bool = True) -> Any:
    """Return a request's input, with a batch dimension of 1 if the model batches."""
    value = value[None] if batched else value
    made = grpc.InferInput(name, list(value.shape), "BYTES" if dtype == "STRING" else dtype)
    made.set_data_from_numpy(value)
    return made


class InProcess:
    """The chain of `lipsync_patch` as plain calls. Not thread-safe: one per worker."""

    def __init__(self, twin: Twin, threads: int) -> None:
        self._chain = Chain(REPOSITORY, threads)
        self._mel = LogMel(batch_size=1)
        self._finder = FaceFinder(REPOSITORY / "lipsync_face" / "1")
        self._twin = twin
        self._rigid = np.load(REPOSITORY / "lipsync_face" / "1" / "rigid.npy")
        self._hint: Floats | None = None

    def prepare(self, job: Job) -> tuple[Floats, Floats, Floats]:
        """Compute the graphs' inputs: CROP [1, 3, 256, 256], MEL [1, 80, 40] and HEAD [1, 75, 2]."""
        image = cv2.cvtColor(cv2.imdecode(job.frame, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        mel = self._mel(job.audio[None])
        face = self._finder.find(np.asarray(image, np.uint8), self._hint)
        if face is None:
            raise RuntimeError("the clip has a frame without a face: choose another")
        self._hint = face.box
        head = head_of(face.landmarks, face.transform, self._rigid)
        crop = take_crop(np.asarray(image, np.uint8), face.transform)
        return np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32) / np.float32(255), mel, head[None]

    def graphs(self, crop: Floats, mel: Floats, head: Floats) -> NDArray[np.uint8]:
        """Run the ONNX graphs, and AdaAT between them; return PATCH [256, 256, 4]."""
        return self._chain.patch(crop, mel, head, self._twin)[0]

    def __call__(self, job: Job) -> NDArray[np.uint8]:
        return self.graphs(*self.prepare(job))


async def through_server(url: str, twin: NDArray[Any], work: list[Job], in_flight: int) -> list[NDArray[np.uint8]]:
    """Send every job to `lipsync_patch`, `in_flight` at a time as a client would, with the last face as hint."""
    patches: list[Any] = [None] * len(work)
    queue = iter(enumerate(work))
    hint = np.zeros(4, np.float32)

    async def worker(client: Any) -> None:
        nonlocal hint
        for index, job in queue:
            inputs = [
                tensor("FRAME", job.frame, "UINT8"),
                tensor("AUDIO", job.audio, "FP32"),
                tensor("TWIN", twin, "STRING"),
                tensor("FACE_HINT", hint, "FP32"),
            ]
            result = await client.infer("lipsync_patch", inputs)
            patches[index], hint = result.as_numpy("PATCH")[0], result.as_numpy("FACE")[0]

    async with grpc_aio.InferenceServerClient(url) as client:
        await asyncio.gather(*(worker(client) for _ in range(in_flight)))
    return patches


def register(client: Any, work: list[Job]) -> tuple[NDArray[Any], Twin]:
    """Register a twin from every third frame; return its id and its features as the server serves them."""
    frames = np.array([job.frame.tobytes() for job in work[::3]], dtype=np.object_)
    made = client.infer("lipsync_twin", [tensor("FRAMES", frames, "STRING", batched=False)])
    digits = made.as_numpy("TWIN")
    twin = np.array([digits.tobytes()], dtype=np.object_)
    features = client.infer("lipsync_twin_features", [tensor("TWIN", digits, "UINT8")])
    names = ("REFERENCE", "IDENTITY", "PIXELS", "REFERENCE_PLACES", "NEUTRAL")
    return twin, Twin(*(features.as_numpy(name) for name in names))


def _rate(work: list[Any], call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return len(work) / (time.perf_counter() - started)


def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Run the rounds; return frames per second of each method and round, and the mean difference of the patches."""
    work = jobs(options.clip, options.speech, options.frames, options.height)
    threads = cores()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(twin_store=Path(folder)) as server:
        with grpc.InferenceServerClient(server.grpc_url) as client:
            twin, features = register(client, work)
        alone = InProcess(features, threads)
        several = [InProcess(features, 1) for _ in range(threads)]
        prepared = [alone.prepare(job) for job in work]

        def spread() -> None:
            with ThreadPoolExecutor(threads) as pool:
                parts = [work[index::threads] for index in range(threads)]
                list(pool.map(lambda pair: [pair[0](job) for job in pair[1]], zip(several, parts, strict=True)))

        def served() -> list[NDArray[np.uint8]]:
            return asyncio.run(through_server(server.grpc_url, twin, work, options.in_flight))

        methods: dict[str, Callable[[], object]] = {
            "ensemble": served,
            "in process, one frame at a time": lambda: [alone(job) for job in work],
            "in process, one worker per core": spread,
            "graphs and AdaAT alone": lambda: [alone.graphs(*both) for both in prepared],
        }
        difference = float(
            np.mean(
                [
                    np.abs(a[..., :3].astype(int) - alone(job)[..., :3]).mean()
                    for a, job in zip(served(), work, strict=True)
                ]
            )
        )
        for warm in methods.values():
            warm()
        rates: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(options.rounds):
            for name, call in methods.items():
                rates[name].append(_rate(work, call))
    return rates, difference


def main() -> int:
    """Measure and write `benchmarks/results/ensemble_share.md`."""
    parser = argparse.ArgumentParser(description="Ensemble throughput against the same graphs in one process.")
    parser.add_argument("--clip", type=Path, default=reports.SAMPLES / "sample.mp4")
    parser.add_argument("--speech", type=Path, default=reports.SAMPLES / "speech.wav")
    parser.add_argument("--frames", type=int, default=60, help="of the clip, for each method and round")
    parser.add_argument("--height", type=int, default=720, help="of the frames, in pixels")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=8, help="requests that the client keeps in flight")
    parser.add_argument("--out", type=Path, default=reports.FOLDER / "ensemble_share.md")
    options = parser.parse_args()
    warning = reports.busy()
    rates, difference = measure(options)
    ours = rates["ensemble"]
    rows = []
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(ours, values, strict=True)]
        share = "" if name == "ensemble" else f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([name, f"{median(values):.1f}", f"{min(values):.1f} to {max(values):.1f}", share])
    reports.write(
        options.out,
        "Throughput of the ensemble against the same graphs in one process",
        "python -m benchmarks.serving.ensemble_share",
        [
            warning,
            f"{options.frames} frames, {options.height} pixels high, as JPEG; {options.rounds} rounds in which the "
            f"methods take turns; {options.in_flight} requests in flight. *In process* is the whole chain (JPEG decoding, "
            "log-mel, face, warp, ONNX graphs, AdaAT) as function calls. The ensemble's throughput includes its gRPC "
            "client in this process. "
            f"Mean difference between the methods' patches: {difference:.2f} of 255.",
            reports.table(
                ["method", "frames/s (median)", "range", "ensemble ÷ method (median of rounds, range)"], rows
            ),
            f"The target is {TARGET:.2f} or more of the same graphs called in one process.",
        ],
    )
    sys.stdout.write(options.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
