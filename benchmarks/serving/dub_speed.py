"""Frames per second of a whole dubbing job, and the time of each stage: `python -m benchmarks.serving.dub_speed`.

One embedded server serves all runs, through `insync.client.dub.dub`, as `insync dub --server` does. Client stages
are the client's own timings; the models' times are differences of Triton's statistics before and after the timed
runs. Stages and models overlap on several cores, so their sum is larger than the time per frame. Processor time is what
each process used, as Linux counts it: its sum, divided by the cores, is the least time per frame that can be reached.

`--save FILE` saves the results, `--before FILE` (by default the committed `dub_speed_before.json`) shows saved ones beside
the new ones. Measure them with the older sources under the same benchmark, on the same machine:

    git checkout OLD -- client ensemble model_repository
    python -m benchmarks.serving.dub_speed --commit OLD --before none --out /tmp/before.md --save benchmarks/results/dub_speed_before.json
    git checkout HEAD -- client ensemble model_repository
"""

from __future__ import annotations

import argparse
import datetime
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

from benchmarks import reports
from benchmarks.serving import live
from benchmarks.serving.processes import processor_s
from insync.client import Stages
from insync.client.dub import DubOptions, dub
from insync.core import spec
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.security import admin_headers
from insync.loadtest.measure.machine import describe

METHOD = (
    "`insync dub` on the clip ({frames} frames) at its size and scaled, up to {runs} timed jobs each after one to warm up, against an embedded "
    "server that was already running. Frames per second are frames of the result over the job's whole wall time: "
    "reading, registering the twin, streaming, compositing, encoding and writing; *streaming alone* excludes the start "
    "and the registration, as in a live session."
)
AIM = "The target is 25 frames/s at 720p on two cores with the client included, then 40."
LIVE = (
    "One live stream on the same server: RGB frames at {fps} frames/s, as from a camera, at the clip's own size, for "
    "{seconds:g} s after the first. Latency is the time from when a frame is due to its synced picture, client "
    "included; the 120 ms of look-ahead are on top. The target is p99 under 40 ms."
)
WHERE = (
    "Time of each stage, in ms per frame of the clip, before → now. Rows of processor time add up; divided by the "
    "cores, their sum is the least time per frame. Rows of wall time overlap: their sum is larger than the time per "
    "frame. A model's wall time is its compute time, without queueing; its mean batch size is in parentheses."
)
ALL = "**processor time of all processes**"

STAGES = {  # fields of `Stages`, all in milliseconds
    "frame_ms": "**wall time per frame**",
    "decode_ms": "client: decode",
    "prepare_ms": "client: crop and encode the request's picture",
    "server_ms": "client: wait for the response, queues included",
    "paste_ms": "client: composite",
    "encode_ms": "client: encode and mux",
    "client_cpu_ms": "client: processor time of all threads",
}


@dataclass(frozen=True)
class Busy:
    """Totals of one model's statistics, as Triton counts them."""

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
    """One dubbing job: its whole wall time, and the client's own timings of the streaming part."""

    wall_s: float
    stages: Stages


@dataclass(frozen=True)
class Case:
    """All timed runs on one clip."""

    name: str
    runs: list[Run]
    models: dict[str, Busy]
    processor_s: dict[str, float]  # of the server's processes, in total

    @property
    def frames(self) -> int:
        """Number of frames of all runs."""
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


def statistics(client: Any, key: str) -> dict[str, Busy]:
    """Return every model's statistics, for which the server requires its admin key."""
    response = client.get_inference_statistics(as_json=True, headers=admin_headers(key))
    found = {}
    for model in response["model_stats"]:
        # Zeros are omitted from the response, and 64-bit integers are strings.
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
    report = dub(clip, speech, out, server=server, options=DubOptions(progress=False))
    return Run(time.perf_counter() - started, report.stages)


def measure(
    name: str, clip: Path, options: argparse.Namespace, server: EmbeddedServer, folder: Path, until: float
) -> Case:
    """Warm up with one job, then time one job, and more of them that start before `until` on the performance clock."""
    out = folder / "dubbed.mp4"
    dub_once(clip, options.speech, out, server.grpc_url)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        before, used_before = statistics(client, server.admin_key), processor_s(server.pid or 0)
        runs = [dub_once(clip, options.speech, out, server.grpc_url)]
        while len(runs) < options.runs and time.perf_counter() < until:
            runs.append(dub_once(clip, options.speech, out, server.grpc_url))
        after, used = statistics(client, server.admin_key), processor_s(server.pid or 0)
    return Case(
        name,
        runs,
        {model: after[model] - before[model] for model in after},
        {process: used[process] - used_before.get(process, 0.0) for process in used},
    )


def stage_times_ms(case: Case) -> dict[str, float]:
    """Return milliseconds per frame of every stage, model and process."""
    found = {
        title: sum(getattr(run.stages, field) for run in case.runs) / len(case.runs) for field, title in STAGES.items()
    }
    used = {f"processor: `{name}`": 1000 * used_s / case.frames for name, used_s in case.processor_s.items()}
    used = {name: value for name, value in sorted(used.items(), key=lambda item: -item[1]) if value >= 0.05}
    found[ALL] = found[STAGES["client_cpu_ms"]] + sum(used.values())
    for model in (name for name in case.models if spec.ALL_MODELS[name].backend != "ensemble"):
        found[f"wall: `{model}`"] = 1000 * case.models[model].compute_s / case.frames
    return found | used


def saved(commit: str, cases: list[Case], stream: live.Live | None) -> dict[str, Any]:
    """Return the results as `--save` writes them, for a later run to compare with."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": describe(),
        "cases": {
            case.name: {
                "fps": [run.stages.frames / run.wall_s for run in case.runs],
                "streaming_fps": [run.stages.fps for run in case.runs],
                "batches": {
                    f"wall: `{name}`": busy.frames / max(1, busy.executions) for name, busy in case.models.items()
                },
                "ms": stage_times_ms(case),
            }
            for case in cases
        },
        "live": asdict(stream) if stream else None,
    }


def overall(runs: list[tuple[str, dict[str, Any]]]) -> str:
    """Return a table of frames per second of each clip, a row for each saved run."""
    rows = []
    for case in runs[-1][1]["cases"]:
        for title, run in runs:
            if case in run["cases"]:
                rates, streaming = run["cases"][case]["fps"], run["cases"][case]["streaming_fps"]
                spread = f"{min(rates):.1f} to {max(rates):.1f}"
                rows.append([case, title, f"{median(rates):.1f}", spread, f"{median(streaming):.1f}"])
    return reports.table(["clip", "run", "frames/s, whole job (median)", "range", "streaming alone (median)"], rows)


def latencies(runs: list[tuple[str, dict[str, Any]]]) -> str:
    """Return a table of the live stream's percentiles, a row for each saved run."""
    rows = []
    for title, run in runs:
        if run["live"]:
            got = live.Live(**run["live"])
            rows.append(
                [
                    title,
                    str(got.frames),
                    f"{got.fps:.1f}",
                    f"{got.p50_ms:.1f}",
                    f"{got.p99_ms:.1f}",
                    f"{100 * got.late:.1f} %",
                ]
            )
    return reports.table(["run", "frames", "frames/s", "p50, ms", "p99, ms", "over 40 ms"], rows)


def where(runs: list[tuple[str, dict[str, Any]]]) -> str:
    """Return a table of milliseconds per frame of every stage, model and process: a column per clip, all saved runs in each cell."""
    cases = runs[-1][1]["cases"]
    names = dict.fromkeys(name for _, run in runs[::-1] for case in run["cases"].values() for name in case["ms"])
    rows = []
    for name in names:
        cells = []
        for case in cases:
            parts = []
            for _, run in runs:
                if case not in run["cases"]:
                    continue
                value, batch = (run["cases"][case][key].get(name) for key in ("ms", "batches"))
                parts.append("–" if value is None else f"{value:.2f}" + (f" ({batch:.1f})" if batch else ""))
            cells.append(" → ".join(parts))
        rows.append([name, *cells])
    return reports.table(["per frame of the clip", *cases], rows)


def main() -> int:
    """Measure and write `benchmarks/results/dub_speed.md`."""
    parser = argparse.ArgumentParser(description="Frames per second of a whole dubbing job.")
    parser.add_argument("--clip", type=Path, default=reports.SAMPLES / "sample.mp4")
    parser.add_argument("--speech", type=Path, default=reports.SAMPLES / "speech.wav")
    parser.add_argument("--runs", type=int, default=2, help="timed jobs for each size, after one to warm up")
    parser.add_argument("--sides", type=int, nargs="*", default=[720, 1080], help="shorter sides, in pixels")
    parser.add_argument("--live", type=float, default=12, help="seconds of the live stream; 0 leaves it out")
    parser.add_argument("--budget", type=float, default=100, help="seconds after which no further job is started")
    parser.add_argument("--out", type=Path, default=reports.FOLDER / "dub_speed.md")
    parser.add_argument("--save", type=Path, help="write the results as JSON, for later runs to compare with")
    parser.add_argument("--before", type=Path, default=reports.FOLDER / "dub_speed_before.json")
    parser.add_argument(
        "--commit", default=reports.commit(), help="name of the measured version, if it is not the checkout"
    )
    options = parser.parse_args()
    warning = reports.busy()
    until = time.perf_counter() + options.budget
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with av.open(str(options.clip)) as container:
            video = container.streams.video[0]
            own = min(video.width, video.height)
        clips = {f"{own}p": options.clip}
        for side in options.sides:
            if side != own:
                clips[f"{side}p"] = folder / f"{side}.mp4"
                scaled(options.clip, side, folder / f"{side}.mp4")
        with EmbeddedServer(twin_store=folder / "twins") as server:
            stream = live.stream(options.clip, options.speech, server.grpc_url, options.live) if options.live else None
            cases: list[Case] = []
            for title, clip in clips.items():
                if not cases or time.perf_counter() < until:  # a busy machine leaves no time for every size
                    cases.append(measure(title, clip, options, server, folder, until))
    now = saved(options.commit, cases, stream)
    if options.save:
        options.save.write_text(json.dumps(now, indent=1) + "\n")
    runs = [(f"{now['date']}, {now['commit']}", now)]
    notes = []
    if options.before.is_file():
        before = json.loads(options.before.read_text())
        runs.insert(0, (f"{before['date']}, {before['commit']}", before))
        if not reports.comparable(before["machine"], now["machine"]):
            notes.append(f"The results before are of another machine or other packages: {before['machine']}.")
    reports.write(
        options.out,
        "Speed of a whole dubbing job",
        "python -m benchmarks.serving.dub_speed",
        [
            warning,
            *notes,
            METHOD.format(runs=options.runs, frames=cases[0].runs[0].stages.frames),
            overall(runs),
            AIM,
            LIVE.format(fps=live.FPS, seconds=options.live) if options.live else "",
            latencies(runs) if options.live else "",
            WHERE,
            where(runs),
        ],
    )
    sys.stdout.write(options.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
