"""Admitted streams under overload, at three times the capacity: `python -m benchmarks.serving.overload`.

First an embedded server without a limit gives the frame rate that it holds, and the result of live streams beside twice as
many others and a job without a deadline. Then live streams use the whole capacity of a server with a limit, alone, and again
with the same others, which request admission again and again. The others run in a process of their own, and so do the
admitted streams: the report has the processor time of each of them and of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import psutil

from benchmarks import reports
from benchmarks.faults.streams import Footage, Image, register, stream
from benchmarks.serving.processes import processor_s
from insync.client import Client, Overloaded
from insync.core.settings import CAPACITY_VARIABLE
from insync.ensemble.server.embedded import EmbeddedServer

HEIGHT = 360  # lines of the frames
_SHARE = 0.7  # the server's limit, as a share of the frame rate that it holds


@dataclass(frozen=True)
class Load:
    """Live streams that all start at once.

    Attributes:
        streams: number of streams; each retries after a refusal, when the server's hint tells it to.
        fps: of each.
        seconds: until they end.
        deadline_s: of each frame; a later one is skipped.
        job: whether there is one more stream, without a deadline.
    """

    streams: int
    fps: float
    seconds: float
    deadline_s: float
    job: bool = False


@dataclass(frozen=True)
class Result:
    """Result of a load.

    Attributes:
        frames: live frames received.
        in_time: those of them within their deadline.
        latencies_s: of the live frames.
        refused: number of refusals.
        hints: number of refusals with a time to retry after.
        job_frames: frames of the job received.
        seconds: duration.
        cores: used by the process that ran the load.
    """

    frames: int
    in_time: int
    latencies_s: list[float]
    refused: int
    hints: int
    job_frames: int
    seconds: float
    cores: float


@functools.cache
def footage() -> Footage:
    """Read the frames, once in a process, before the load starts."""
    return Footage.load(30, HEIGHT)


def run_load(address: str, twin: str, load: Load) -> Result:
    """Run a load to its end."""
    return asyncio.run(_run_load(address, twin, load))


async def _run_load(address: str, twin: str, load: Load) -> Result:
    film = footage()
    speech = film.audio(round(25 * load.seconds) + 50)
    ends_s = time.monotonic() + load.seconds
    latencies: list[float] = []
    refused = hints = job_frames = 0

    async def live(client: Client, number: int) -> None:
        nonlocal refused, hints
        await asyncio.sleep(number / load.streams / load.fps)  # cameras are not synchronised
        while time.monotonic() < ends_s:
            frames = _camera(film, load.fps, ends_s)
            try:
                async for one in client.stream(
                    frames, speech, twin=twin, fps=load.fps, deadline_s=load.deadline_s, late="skip", in_flight=8
                ):
                    latencies.append(one.latency_s)
                return
            except Overloaded as exc:
                refused += 1
                hints += exc.retry_after_s is not None
                await asyncio.sleep(min(exc.retry_after_s or 1.0, max(0.0, ends_s - time.monotonic())))

    async def job(client: Client) -> None:
        nonlocal job_frames
        async for _ in client.stream(_endless(film, ends_s), film.speech, twin=twin):
            job_frames += 1

    started_s, before_s = time.monotonic(), time.process_time()
    async with Client(address) as client:
        tasks = [live(client, number) for number in range(load.streams)]
        await asyncio.gather(*tasks, *([job(client)] if load.job else []))
    in_time = sum(latency <= load.deadline_s for latency in latencies)
    seconds = time.monotonic() - started_s
    cores = (time.process_time() - before_s) / seconds
    return Result(len(latencies), in_time, latencies, refused, hints, job_frames, seconds, cores)


async def _camera(footage: Footage, fps: float, ends_s: float) -> AsyncIterator[Image]:
    """Yield frames at their rate; the stream cannot slow a camera down."""
    started_s = time.monotonic()
    for index, image in enumerate(footage.frames(1_000_000)):
        at_s = started_s + index / fps
        if max(at_s, time.monotonic()) >= ends_s:
            return
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        yield image


def _progress(message: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")


def _endless(footage: Footage, ends_s: float) -> Iterator[Image]:
    for image in footage.frames(1_000_000):
        if time.monotonic() >= ends_s:
            return
        yield image


@contextmanager
def serving(store: Path, capacity_fps: int) -> Iterator[EmbeddedServer]:
    """Start a server with a limit; 0: without."""
    os.environ[CAPACITY_VARIABLE] = str(capacity_fps)
    with EmbeddedServer(twin_store=store) as server:
        yield server


async def _held_fps(address: str, twin: str, frames: int) -> float:
    """Return the frames/s of a job without a deadline, the client's work included."""
    arrivals = await stream(address, footage(), twin, frames, in_flight=8)
    third = frames // 3  # the server warms up meanwhile
    return (frames - third) / (arrivals.at_s[-1] - arrivals.at_s[third - 1])


@dataclass(frozen=True)
class Phase:
    """Results of loads that ran at the same time, in one round or in several.

    Attributes:
        admitted: of the streams that were admitted first.
        others: of the other streams, if there were any.
        server_cores: used by the server and its models.
        other_work_cores: used by processes that are not part of this benchmark.
    """

    admitted: Result
    others: Result | None
    server_cores: float
    other_work_cores: float


def _sum(phases: Sequence[Phase]) -> Phase:
    def together(parts: Sequence[Result]) -> Result:
        return Result(
            frames=sum(part.frames for part in parts),
            in_time=sum(part.in_time for part in parts),
            latencies_s=[latency for part in parts for latency in part.latencies_s],
            refused=sum(part.refused for part in parts),
            hints=sum(part.hints for part in parts),
            job_frames=sum(part.job_frames for part in parts),
            seconds=sum(part.seconds for part in parts),
            cores=fmean(part.cores for part in parts),
        )

    others = [phase.others for phase in phases if phase.others is not None]
    return Phase(
        together([phase.admitted for phase in phases]),
        together(others) if others else None,
        fmean(phase.server_cores for phase in phases),
        fmean(phase.other_work_cores for phase in phases),
    )


def _phase(server: EmbeddedServer, run: Callable[[], tuple[Result, Result | None]]) -> Phase:
    assert server.pid is not None
    started_s, before = time.monotonic(), sum(processor_s(server.pid).values())
    psutil.cpu_percent()  # from now on
    admitted, others = run()
    all_cores = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
    server_cores = (sum(processor_s(server.pid).values()) - before) / (time.monotonic() - started_s)
    clients_cores = admitted.cores + (others.cores if others else 0.0)
    return Phase(admitted, others, server_cores, max(0.0, all_cores - server_cores - clients_cores))


def _row(name: str, streams: int, phases: Sequence[Phase], load: Load) -> list[str]:
    phase, seconds = _sum(phases), load.seconds * len(phases)
    got, other = phase.admitted, phase.others
    expected = load.fps * seconds * streams
    latencies_ms = 1000 * np.asarray(got.latencies_s or [np.nan])
    return [
        name,
        f"{streams} × {load.fps:g}",
        f"{got.in_time / seconds / streams:.2f}",
        f"{100 * got.in_time / max(1.0, expected):.0f} %",
        f"{np.percentile(latencies_ms, 50):.0f}",
        f"{np.percentile(latencies_ms, 99):.0f}",
        "–" if other is None else f"{other.refused} ({other.hints} with a hint)",
        "–" if other is None else f"{other.frames}",
        "–" if other is None else f"{other.job_frames / other.seconds:.1f}",
        f"{phase.server_cores:.2f} / {got.cores:.2f} / {other.cores if other else 0:.2f} / {phase.other_work_cores:.2f}",
    ]


HEADER = (
    "load",
    "admitted streams × frames/s",
    "in time, frames/s of each",
    "of those sent",
    "p50, ms",
    "p99, ms",
    "others: refusals",
    "others: live frames received",
    "others: the job's frames/s",
    "cores: server / admitted clients / others / other work",
)


def measure(options: argparse.Namespace) -> tuple[list[list[str]], str]:
    """Run all phases; return the table's rows, and a summary sentence."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, mp_context=context) as pool:
        store = Path(folder) / "twins"

        def together(server: EmbeddedServer) -> Phase:
            def run() -> tuple[Result, Result]:
                first = pool.submit(run_load, server.grpc_url, twin, load)
                time.sleep(2.0)  # so that these streams are admitted first
                second = pool.submit(run_load, server.grpc_url, twin, others)
                return first.result(), second.result()

            return _phase(server, run)

        with serving(store, 0) as server:
            address = server.grpc_url
            twin = asyncio.run(register(address, footage()))
            warm = [pool.submit(run_load, address, twin, Load(1, options.fps, 2.0, options.deadline)) for _ in range(2)]
            for one in warm:  # both processes import their modules, the server warms up
                one.result()
            held_fps = asyncio.run(_held_fps(address, twin, options.warm_frames))
            streams = max(1, int(_SHARE * held_fps / options.fps))
            capacity = math.ceil(streams * options.fps)
            _progress(f"holds {held_fps:.1f} frames/s, admits {capacity}")
            load = Load(streams, options.fps, options.seconds, options.deadline)
            others = Load(2 * streams, options.fps, options.seconds - 2, options.deadline, job=True)
            unlimited = together(server)
            _progress(f"without a limit: {unlimited.admitted.in_time} of {unlimited.admitted.frames} in time")
        with serving(store, capacity) as server:
            alone, overloaded = [], []
            for _ in range(options.rounds):  # in turns, as other work on the machine changes
                alone.append(
                    _phase(server, lambda: (pool.submit(run_load, server.grpc_url, twin, load).result(), None))
                )
                _progress(f"alone: {alone[-1].admitted.in_time} of {alone[-1].admitted.frames} in time")
                overloaded.append(together(server))
                _progress(f"overloaded: {overloaded[-1].admitted.in_time} of {overloaded[-1].admitted.frames} in time")
    before = max(1, _sum(alone).admitted.in_time)
    kept = _sum(overloaded).admitted.in_time / before
    without = options.rounds * unlimited.admitted.in_time / before
    rows = [
        _row("as many as the capacity", streams, alone, load),
        _row("three times as many and a job", streams, overloaded, load),
        _row("the same, on a server without a limit", streams, [unlimited], load),
    ]
    summary = (
        f"The server held {held_fps:.1f} frames/s of a job; its limit was {capacity} frames/s. Admitted streams kept "
        f"**{100 * kept:.0f} %** of their frames in time while three times the capacity was requested (target: at least 90 %); "
        f"without a limit it was {100 * without:.0f} %."
    )
    return rows, summary


def main() -> int:
    """Run the benchmark and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fps", type=float, default=5.0, help="of one live stream (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="number on the server with a limit (default: %(default)s)"
    )
    parser.add_argument("--deadline", type=float, default=0.5, help="of a frame, in seconds (default: %(default)s)")
    parser.add_argument(
        "--warm-frames", type=int, default=90, help="frames to measure the capacity with (default: %(default)s)"
    )
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / "overload.md")
    options = parser.parse_args()
    warning = reports.busy()
    rows, summary = measure(options)
    reports.write(
        options.out,
        "Admitted streams under overload",
        "python -m benchmarks.serving.overload " + " ".join(sys.argv[1:]),
        [
            warning,
            summary,
            reports.table(HEADER, rows),
            f"Frames of {HEIGHT} lines, sent at their rate as from cameras. A frame is in time if it is received within {options.deadline:g} s "
            "of the frame and its audio; streams skip later ones (`late='skip'`), so p50 and p99 are of the frames received. Refused "
            "streams retry after the server's hint. Server and all clients share the machine; the last column has the cores that each "
            "of them used.",
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
