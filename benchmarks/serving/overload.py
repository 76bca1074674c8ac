"""What admitted streams get while three times as many want in: `python -m benchmarks.serving.overload`.

First an embedded server without a limit shows how many frames it holds, and what becomes of live streams in a crowd of three
times as many and a job without a deadline. Then live streams take what a server with a limit promises, alone, and again in
the same crowd, which asks for room again and again. The crowd runs in a process of its own, and so do the admitted streams:
what each of them and the server take of the cores is told.
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
_SHARE = 0.7  # of what the server holds, that its limit promises


@dataclass(frozen=True)
class Crowd:
    """Live streams that all begin at once.

    Attributes:
        streams: how many; each comes back after a refusal, when the server says.
        fps: of each.
        seconds: until they end.
        deadline_s: in which each frame is wanted; one that is not there by then is left out.
        job: one more stream, without a deadline.
    """

    streams: int
    fps: float
    seconds: float
    deadline_s: float
    job: bool = False


@dataclass(frozen=True)
class Got:
    """What a crowd got.

    Attributes:
        frames: that came.
        in_time: of them, those within their deadline.
        latencies_s: of the live frames.
        refused: streams that were told to come back, each time.
        hints: of those refusals, with a time to come back at.
        job_frames: of the job.
        seconds: that it took.
        cores: that the crowd's own process took of the machine.
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
    """Read once in a process, before the crowd begins."""
    return Footage.load(30, HEIGHT)


def crowd(address: str, twin: str, asked: Crowd) -> Got:
    """Runs a crowd to its end."""
    return asyncio.run(_crowd(address, twin, asked))


async def _crowd(address: str, twin: str, asked: Crowd) -> Got:
    film = footage()
    speech = film.audio(round(25 * asked.seconds) + 50)
    ends_s = time.monotonic() + asked.seconds
    latencies: list[float] = []
    refused = hints = job_frames = 0

    async def live(client: Client, number: int) -> None:
        nonlocal refused, hints
        await asyncio.sleep(number / asked.streams / asked.fps)  # cameras do not keep step
        while time.monotonic() < ends_s:
            frames = _camera(film, asked.fps, ends_s)
            try:
                async for one in client.stream(
                    frames, speech, twin=twin, fps=asked.fps, deadline_s=asked.deadline_s, late="skip", in_flight=8
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
        tasks = [live(client, number) for number in range(asked.streams)]
        await asyncio.gather(*tasks, *([job(client)] if asked.job else []))
    in_time = sum(latency <= asked.deadline_s for latency in latencies)
    seconds = time.monotonic() - started_s
    cores = (time.process_time() - before_s) / seconds
    return Got(len(latencies), in_time, latencies, refused, hints, job_frames, seconds, cores)


async def _camera(footage: Footage, fps: float, ends_s: float) -> AsyncIterator[Image]:
    """Frames at their pace, whoever waits for them."""
    started_s = time.monotonic()
    for index, image in enumerate(footage.frames(1_000_000)):
        at_s = started_s + index / fps
        if max(at_s, time.monotonic()) >= ends_s:
            return
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        yield image


def _progress(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")


def _endless(footage: Footage, ends_s: float) -> Iterator[Image]:
    for image in footage.frames(1_000_000):
        if time.monotonic() >= ends_s:
            return
        yield image


@contextmanager
def serving(store: Path, capacity_fps: int) -> Iterator[EmbeddedServer]:
    """A server with a limit; 0: without."""
    os.environ[CAPACITY_VARIABLE] = str(capacity_fps)
    with EmbeddedServer(twin_store=store) as server:
        yield server


async def _holds(address: str, twin: str, frames: int) -> float:
    """Frames/s that a server answers to a job without a deadline, the client's work included."""
    arrivals = await stream(address, footage(), twin, frames, in_flight=8)
    third = frames // 3  # it warms up meanwhile
    return (frames - third) / (arrivals.at_s[-1] - arrivals.at_s[third - 1])


@dataclass(frozen=True)
class Phase:
    """What happened side by side, in one round or in several.

    Attributes:
        admitted: streams that were there first.
        others: the crowd, if there was one.
        server_cores: that the server and its models took of the machine.
        newcomer_cores: that work which is none of this benchmark's took.
    """

    admitted: Got
    others: Got | None
    server_cores: float
    newcomer_cores: float


def _sum(phases: Sequence[Phase]) -> Phase:
    def together(parts: Sequence[Got]) -> Got:
        return Got(
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
        fmean(phase.newcomer_cores for phase in phases),
    )


def _phase(server: EmbeddedServer, run: Callable[[], tuple[Got, Got | None]]) -> Phase:
    assert server.pid is not None
    started_s, before = time.monotonic(), sum(processor_s(server.pid).values())
    psutil.cpu_percent()  # from now on
    admitted, others = run()
    all_cores = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
    server_cores = (sum(processor_s(server.pid).values()) - before) / (time.monotonic() - started_s)
    clients_cores = admitted.cores + (others.cores if others else 0.0)
    return Phase(admitted, others, server_cores, max(0.0, all_cores - server_cores - clients_cores))


def _row(what: str, streams: int, phases: Sequence[Phase], asked: Crowd) -> list[str]:
    phase, seconds = _sum(phases), asked.seconds * len(phases)
    got, other = phase.admitted, phase.others
    expected = asked.fps * seconds * streams
    latencies_ms = 1000 * np.asarray(got.latencies_s or [np.nan])
    return [
        what,
        f"{streams} × {asked.fps:g}",
        f"{got.in_time / seconds / streams:.2f}",
        f"{100 * got.in_time / max(1.0, expected):.0f} %",
        f"{np.percentile(latencies_ms, 50):.0f}",
        f"{np.percentile(latencies_ms, 99):.0f}",
        "–" if other is None else f"{other.refused} ({other.hints} with a hint)",
        "–" if other is None else f"{other.frames}",
        "–" if other is None else f"{other.job_frames / other.seconds:.1f}",
        f"{phase.server_cores:.2f} / {got.cores:.2f} / {other.cores if other else 0:.2f} / {phase.newcomer_cores:.2f}",
    ]


HEADER = (
    "crowd",
    "admitted streams × frames/s",
    "in time, frames/s of each",
    "of those sent",
    "p50, ms",
    "p99, ms",
    "others: refused",
    "others: live frames let in",
    "others: the job's frames/s",
    "cores: server / admitted clients / others / other work",
)


def measure(options: argparse.Namespace) -> tuple[list[list[str]], str]:
    """Runs all phases; returns the table's rows, and the sentence that matters."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, mp_context=context) as pool:
        store = Path(folder) / "twins"

        def together(server: EmbeddedServer) -> Phase:
            def run() -> tuple[Got, Got]:
                first = pool.submit(crowd, server.grpc_url, twin, asked)
                time.sleep(2.0)  # who was admitted was there first
                second = pool.submit(crowd, server.grpc_url, twin, others)
                return first.result(), second.result()

            return _phase(server, run)

        with serving(store, 0) as server:
            address = server.grpc_url
            twin = asyncio.run(register(address, footage()))
            warm = [pool.submit(crowd, address, twin, Crowd(1, options.fps, 2.0, options.deadline)) for _ in range(2)]
            for one in warm:  # both processes import, the server warms up
                one.result()
            holds = asyncio.run(_holds(address, twin, options.warm_frames))
            streams = max(1, int(_SHARE * holds / options.fps))
            capacity = math.ceil(streams * options.fps)
            _progress(f"holds {holds:.1f} frames/s, admits {capacity}")
            asked = Crowd(streams, options.fps, options.seconds, options.deadline)
            others = Crowd(2 * streams, options.fps, options.seconds - 2, options.deadline, job=True)
            lawless = together(server)
            _progress(f"without a limit: {lawless.admitted.in_time} of {lawless.admitted.frames} in time")
        with serving(store, capacity) as server:
            alone, crowded = [], []
            for _ in range(options.rounds):  # by turns: what else the machine does changes
                alone.append(_phase(server, lambda: (pool.submit(crowd, server.grpc_url, twin, asked).result(), None)))
                _progress(f"alone: {alone[-1].admitted.in_time} of {alone[-1].admitted.frames} in time")
                crowded.append(together(server))
                _progress(f"crowded: {crowded[-1].admitted.in_time} of {crowded[-1].admitted.frames} in time")
    before = max(1, _sum(alone).admitted.in_time)
    kept = _sum(crowded).admitted.in_time / before
    without = options.rounds * lawless.admitted.in_time / before
    rows = [
        _row("as many as there is room for", streams, alone, asked),
        _row("three times as many and a job", streams, crowded, asked),
        _row("the same, on a server without a limit", streams, [lawless], asked),
    ]
    lines = (
        f"The server held {holds:.1f} frames/s of a job; its limit was {capacity} frames/s. Admitted streams kept "
        f"**{100 * kept:.0f} %** of their frames in time while three times the capacity was asked for (aim: at least 90 %); "
        f"without a limit it was {100 * without:.0f} %."
    )
    return rows, lines


def main() -> int:
    """Runs it and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fps", type=float, default=5.0, help="of one live stream (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="on the server with a limit (default: %(default)s)")
    parser.add_argument("--deadline", type=float, default=0.5, help="of a frame, in seconds (default: %(default)s)")
    parser.add_argument("--warm-frames", type=int, default=90, help="to find the capacity by (default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / "overload.md")
    options = parser.parse_args()
    warning = reports.busy()
    rows, sentence = measure(options)
    reports.write(
        options.out,
        "Admitted streams in a crowd",
        "python -m benchmarks.serving.overload " + " ".join(sys.argv[1:]),
        [
            warning,
            sentence,
            reports.table(HEADER, rows),
            f"Frames of {HEIGHT} lines, of cameras that wait for nobody. A frame is in time within {options.deadline:g} s of having "
            "it and its audio; streams leave out those that are not (`late='skip'`), so p50 and p99 are of those that came. Others "
            "ask again when the server's hint says so. Server and all clients share the machine; the last column says what each "
            "of them took of it.",
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
