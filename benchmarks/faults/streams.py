"""Servers and streams for `benchmarks.faults.faults`: `insync serve` in a process of its own, and streams that count the frames received."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks import reports
from insync.client import Client, InsyncError
from insync.client.media.audio_reader import AudioFile
from insync.client.streaming.timings import StageClock
from insync.core import spec
from insync.ensemble.server.processes import processes

Image = NDArray[np.uint8]
START_TIMEOUT_S = 90.0
RETRY_S = 120.0  # of streams: a server starts more slowly if other work uses the machine
MOUTH_TOLERANCE = 0.02  # of a mouth code: rounding depends on the batch size
_SERVING = re.compile(r"gRPC (\S+:\d+)(?: with \S+)?, HTTP (\S+:\d+), metrics (\S+:\d+);")


class Serving:
    """`insync serve` in a process of its own, on the same ports after each start; a context manager."""

    def __init__(self, store: Path, log: Path, *options: str) -> None:
        self._store, self._log, self._options = store, log, options
        self._ports = ["0", "0", "0"]
        self._process: subprocess.Popen[str] | None = None
        self._dying: psutil.Process | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of gRPC."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def triton(self) -> psutil.Process:
        """The current Triton process."""
        assert self._process is not None
        (found,) = [child for child in psutil.Process(self._process.pid).children() if _name(child) == "tritonserver"]
        return found

    def __enter__(self) -> Serving:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=30)

    def start(self) -> None:
        """Start it, and wait until it serves."""
        if self._dying is not None:
            psutil.wait_procs([self._dying], START_TIMEOUT_S)  # it still has the ports
        if self._process is not None:
            self._process.communicate()
        options = [*self._options, "--twins", str(self._store), "--log", str(self._log)]
        for name, port in zip(("grpc", "http", "metrics"), self._ports, strict=True):
            options += [f"--{name}-port", port]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "insync.cli", "serve", *options],
            stdout=subprocess.PIPE,
            stderr=self._log.with_suffix(".supervisor").open("a"),
            text=True,
        )
        assert self._process.stdout is not None
        serving = _SERVING.search(self._process.stdout.readline())
        if serving is None:
            raise RuntimeError(f"the server did not start: see {self._log}")
        self._ports = [url.rpartition(":")[2] for url in serving.groups()]

    def supervisor_log(self) -> list[str]:
        """Return the lines that its supervisors have logged."""
        return self._log.with_suffix(".supervisor").read_text().splitlines()

    def kill(self) -> None:
        """Kill `insync serve` itself; its Triton ends with it."""
        assert self._process is not None
        self._dying = self.triton
        self._process.kill()
        self._process.wait()

    def kill_triton(self) -> None:
        """Kill Triton, but not its supervisor."""
        self.triton.kill()

    def kill_model(self, *models: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one process of each model; wait for models that are being reloaded."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        found: dict[str, int] = {}
        while not found.keys() >= set(models) and time.monotonic() < deadline_s:
            found = {model: process for process, model in processes(self.triton.pid).items()}
            time.sleep(0.05)
        for model in models:
            os.kill(found[model], how)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        return str(process.name())
    return ""


@dataclass(frozen=True)
class Footage:
    """Frames and speech for streams of any length: the sample clip forwards and backwards, its speech repeated."""

    images: list[Image]
    speech: NDArray[np.float32]

    @classmethod
    def load(cls, count: int, height: int) -> Footage:
        """Read the first `count` frames of the sample clip, scaled to `height` lines."""
        images = []
        with av.open(str(reports.SAMPLES / "sample.mp4")) as clip:
            for _, frame in zip(range(count), clip.decode(video=0), strict=False):
                width = round(frame.width * height / frame.height / 2) * 2
                images.append(frame.to_ndarray(width=width, height=height, format="rgb24"))
        speech = np.concatenate(list(AudioFile(reports.SAMPLES / "speech.wav").speech()))
        return cls(images, speech)

    def frames(self, count: int) -> Iterator[Image]:
        """Yield `count` frames; each is a copy, as the client draws on it."""
        back_and_forth = [*self.images, *self.images[-2:0:-1]]
        for index in range(count):
            yield back_and_forth[index % len(back_and_forth)].copy()

    def audio(self, count: int) -> NDArray[np.float32]:
        """Return the speech of `count` frames at 25 frames/s, and the rest of the last one's audio window."""
        return np.resize(self.speech, count * 640 + spec.WINDOW_FUTURE_SAMPLES)


@dataclass
class Arrivals:
    """Frames that a stream received.

    Attributes:
        expected: number of frames sent.
        indices, at_s: index and time of each frame received, in that order.
        mouths: mouth code float32 [12] of each.
        broken_s: time of each fault.
        clock: the client's timings and counters.
        error: the error that ended the stream early; empty if there was none.
    """

    expected: int
    indices: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    mouths: list[NDArray[np.float32]] = field(default_factory=list)
    broken_s: list[float] = field(default_factory=list)
    clock: StageClock = field(default_factory=StageClock)
    error: str = ""

    @property
    def lost(self) -> int:
        return self.expected - len(set(self.indices))

    @property
    def duplicated(self) -> int:
        return len(self.indices) - len(set(self.indices))

    @property
    def disordered(self) -> int:
        return sum(b <= a for a, b in pairwise(self.indices))

    def wrong(self, undisturbed: Arrivals) -> int:
        """Return the number of frames whose mouth code differs from that in an undisturbed stream."""
        pairs = zip(self.indices, self.mouths, strict=True)
        return sum(float(np.abs(mouth - undisturbed.mouths[index]).max()) > MOUTH_TOLERANCE for index, mouth in pairs)

    def recoveries_s(self) -> list[float]:
        """Return for each fault the seconds until the end of the longest pause between frames after it."""
        found = []
        for broken_s, next_s in pairwise([*self.broken_s, float("inf")]):
            after = [at for at in self.at_s if broken_s < at <= next_s]
            steps = [(b - a, b) for a, b in pairwise([broken_s, *after])]
            if steps:
                found.append(max(steps)[1] - broken_s)
        return found


async def stream(
    address: str,
    footage: Footage,
    twin: str,
    count: int,
    breaks: dict[int, Callable[[], None]] | None = None,
    client: dict[str, Any] | None = None,
    **options: Any,
) -> Arrivals:
    """Run a stream of `count` frames, and call each function of `breaks` after the frame with its index is received."""
    arrivals = Arrivals(count)
    frames, audio = footage.frames(count), footage.audio(count)
    try:
        async with Client(address, **{"retry_s": RETRY_S, **(client or {})}) as connected:
            async for one in connected.stream(frames, audio, twin=twin, clock=arrivals.clock, **options):
                arrivals.at_s.append(time.monotonic())
                arrivals.indices.append(one.index)
                arrivals.mouths.append(one.mouth)
                if breaks and one.index in breaks:
                    arrivals.broken_s.append(time.monotonic())
                    await asyncio.to_thread(breaks[one.index])
    except InsyncError as exc:
        arrivals.error = str(exc)
    return arrivals


async def register(address: str, footage: Footage) -> str:
    """Register the person of the footage."""
    async with Client(address) as client:
        return str(await client.register(footage.images[::6]))


def spread(values: list[float]) -> str:
    """Return median and largest value, for a table."""
    return f"{median(values):.1f} ({max(values):.1f})" if values else "–"
