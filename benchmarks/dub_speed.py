"""Frames per second of a whole dubbing job, and where the milliseconds go: `python -m benchmarks.dub_speed`.

One embedded server serves all runs, through `insync.client.dub.dub`, as `insync dub --server` does. Client stages
are the client's own timings; the models' times are differences of Triton's statistics before and after the timed
runs. Stages and models overlap on several cores, so their sum is larger than the time per frame.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import av
import tritonclient.grpc as grpc

from benchmarks import machine
from insync.client import Stages
from insync.client.dub import dub
from insync.ensemble import spec
from insync.ensemble.server import EmbeddedServer

METHOD = (
    "`insync dub` on the clip at its size and scaled, {runs} timed jobs each after one to warm up, against an embedded "
    "server that was already running. Frames per second are frames of the result over the job's whole wall time: "
    "reading, registering the twin, streaming, compositing, encoding and writing; *streaming alone* leaves the start "
    "and the registration out, as a live session does."
)
AIM = "The aim is 25 frames/s at 720p on two cores with the client included, then 40."
WHERE = (
    "Where the time goes, in ms per frame of the clip; for models: computing (waiting in the queue, mean batch). "
    "Work overlaps, so the sum is larger than the time per frame."
)

STAGES = {  # fields of `Stages`, all in milliseconds
    "frame_ms": "**one frame to the next**",
    "decode_ms": "client: decode",
    "prepare_ms": "client: cut and encode the request's picture",
    "server_ms": "client: waiting for the answer, queues included",
    "paste_ms": "client: composite",
    "encode_ms": "client: encode and mux",
    "client_cpu_ms": "client: processor time of all threads",
}


@dataclass(frozen=True)
class Busy:
    """What one model did, in total, as Triton counts it."""

    frames: int
    executions: int
    compute_s: float  # over executions, a batch counts once
    queue_s: float  # over frames

    def __sub__(self, other: Busy) -> Busy:
        return Busy(
            self.frames - other.frames,
            self.executions - other.executions,
            self.compute_s - other.compute_s,
            self.queue_s - other.queue_s,
        )


@dataclass(frozen=True)
class Run:
    """One dubbing job: its whole wall time, and the client's own account of the streaming part."""

    wall_s: float
    stages: Stages


@dataclass(frozen=True)
class Case:
    """All timed runs on one clip."""

    name: str
    runs: list[Run]
    models: dict[str, Busy]

    @property
    def frames(self) -> int:
        """Of all its runs."""
        return sum(run.stages.frames for run in self.runs)


def scaled(clip: Path, short_side: int, path: Path) -> None:
    """Write `clip` scaled so that its shorter side has `short_side` pixels, as nearly lossless H.264 without sound."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        original = source.streams.video[0]
        scale = short_side / min(original.width, original.height)
        stream = target.add_stream("libx264", rate=original.average_rate)
        width, height = (round(side * scale / 2) * 2 for side in (original.width, original.height))
        stream.width, stream.height = width, height
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "16", "preset": "veryfast"}
        for index, frame in enumerate(source.decode(video=0)):
            resized = frame.reformat(
                width=stream.width, height=stream.height, format="yuv420p", interpolation="LANCZOS"
            )
            resized.pts, resized.time_base = index, 1 / original.average_rate
            target.mux(stream.encode(resized))
        target.mux(stream.encode())


def statistics(client: Any) -> dict[str, Busy]:
    """Read every model's statistics."""
    answer = client.get_inference_statistics(as_json=True)
    found = {}
    for model in answer["model_stats"]:
        # Zeros are left out of the answer, and numbers of 64 bits come as text.
        compute_ns = sum(
            int(batch.get(part, {}).get("ns", 0))
            for batch in model.get("batch_stats", [])
            for part in ("compute_input", "compute_infer", "compute_output")
        )
        found[model["name"]] = Busy(
            int(model.get("inference_count", 0)),
            int(model.get("execution_count", 0)),
            compute_ns / 1e9,
            int(model.get("inference_stats", {}).get("queue", {}).get("ns", 0)) / 1e9,
        )
    return found


def dub_once(clip: Path, speech: Path, out: Path, server: str) -> Run:
    """Run one job, as a user would."""
    started = time.perf_counter()
    report = dub(clip, speech, out, server=server, progress=False)
    return Run(time.perf_counter() - started, report.stages)


def measure(name: str, clip: Path, options: argparse.Namespace, server: EmbeddedServer, folder: Path) -> Case:
    """Warm up with one job, then time the others."""
    out = folder / "dubbed.mp4"
    dub_once(clip, options.speech, out, server.grpc_url)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        before = statistics(client)
        runs = [dub_once(clip, options.speech, out, server.grpc_url) for _ in range(options.runs)]
        after = statistics(client)
    return Case(name, runs, {model: after[model] - before[model] for model in after})


def overall(cases: list[Case]) -> str:
    """Frames per second of each clip."""
    rows = []
    for case in cases:
        rates = [run.stages.frames / run.wall_s for run in case.runs]
        streaming = median(run.stages.fps for run in case.runs)
        spread = f"{min(rates):.1f} to {max(rates):.1f}"
        rows.append([case.name, str(case.runs[0].stages.frames), f"{median(rates):.1f}", spread, f"{streaming:.1f}"])
    return machine.table(["clip", "frames", "frames/s, whole job (median)", "range", "streaming alone (median)"], rows)


def where(cases: list[Case]) -> str:
    """Milliseconds per frame of every stage and model, a column for each clip."""
    rows = []
    for field, title in STAGES.items():
        cells = [f"{sum(getattr(run.stages, field) for run in case.runs) / len(case.runs):.2f}" for case in cases]
        rows.append([title, *cells])
    for model in (*spec.MODELS["lipsync_patch"].steps, "lipsync_twin", "lipsync_reference"):
        cells = []
        for case in cases:
            busy, frames = case.models[model], case.frames
            batch = busy.frames / max(1, busy.executions)
            cells.append(f"{1000 * busy.compute_s / frames:.2f} ({1000 * busy.queue_s / frames:.2f}, {batch:.1f})")
        rows.append([f"`{model}`", *cells])
    return machine.table(["per frame of the clip", *(case.name for case in cases)], rows)


def main() -> int:
    """Measure and write `benchmarks/dub_speed.md`."""
    parser = argparse.ArgumentParser(description="Frames per second of a whole dubbing job.")
    parser.add_argument("--clip", type=Path, default=machine.SAMPLES / "sample.mp4")
    parser.add_argument("--speech", type=Path, default=machine.SAMPLES / "speech.wav")
    parser.add_argument("--runs", type=int, default=3, help="timed jobs for each size, after one to warm up")
    parser.add_argument("--sides", type=int, nargs="*", default=[720, 1080], help="shorter sides, in pixels")
    parser.add_argument("--out", type=Path, default=machine.FOLDER / "dub_speed.md")
    parser.add_argument("--save", type=Path, help="write the figures as JSON, to be compared with later")
    options = parser.parse_args()
    warning = machine.busy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with av.open(str(options.clip)) as container:
            video = container.streams.video[0]
            own = min(video.width, video.height)
        clips = {f"{own}p, as it is": options.clip}
        for side in options.sides:
            if side != own:
                clips[f"{side}p"] = folder / f"{side}.mp4"
                scaled(options.clip, side, folder / f"{side}.mp4")
        with EmbeddedServer(twin_store=folder / "twins") as server:
            cases = [measure(title, clip, options, server, folder) for title, clip in clips.items()]
    if options.save:
        options.save.write_text(json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    machine.write(
        options.out,
        "Speed of a whole dubbing job",
        "python -m benchmarks.dub_speed",
        [
            warning,
            METHOD.format(runs=options.runs),
            overall(cases),
            AIM,
            WHERE,
            where(cases),
        ],
    )
    sys.stdout.write(options.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
