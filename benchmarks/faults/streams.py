"""What `benchmarks.faults.faults` breaks: servers as people run them, and streams that count what arrives."""

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
from numpy.typing import NDArray

from benchmarks import reports
from insync.client import Client, InsyncError
from insync.client.media.reader import AudioFile
from insync.client.streaming.timings import StageClock
from insync.core import spec
from insync.ensemble.server.processes import processes

Image = NDArray[np.uint8]
START_TIMEOUT_S = 90.0
PATIENCE_S = 120.0  # of streams: a server's start takes longer where others work on the machine
ONE_MOUTH = 0.02  # of a mouth code, as far as a batch's size moves it by rounding
_SAID = re.compile(r"gRPC (\S+:\d+)(?: with \S+)?, HTTP (\S+:\d+), metrics (\S+:\d+);")


class Serving:
    """`insync serve` as a process of its own, on the same ports each time it is started; a context manager."""

    def __init__(self, store: Path, log: Path, *options: str) -> None:
        self._store, self._log, self._options = store, log, options
        self._ports = ["0", "0", "0"]
        self._process: subprocess.Popen[str] | None = None
        self._dying: int | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of gRPC."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def triton(self) -> int:
        """Process id of the Triton that serves now."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        (found,) = [int(child) for child in children if _name(int(child)) == "tritonserver"]
        return found

    def __enter__(self) -> Serving:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=30)

    def start(self) -> None:
        """Starts it, and waits until it serves."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self._dying is not None and _name(self._dying) and time.monotonic() < deadline_s:
            time.sleep(0.05)  # it still has the ports
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
        said = _SAID.search(self._process.stdout.readline())
        if said is None:
            raise RuntimeError(f"the server did not start: see {self._log}")
        self._ports = [url.rpartition(":")[2] for url in said.groups()]

    def said(self) -> list[str]:
        """What its supervisors have said."""
        return self._log.with_suffix(".supervisor").read_text().splitlines()

    def kill(self) -> None:
        """Kills `insync serve` itself; its Triton goes with it."""
        assert self._process is not None
        self._dying = self.triton
        self._process.kill()
        self._process.wait()

    def kill_triton(self) -> None:
        """Kills the server under its supervisor."""
        os.kill(self.triton, signal.SIGKILL)

    def kill_model(self, *models: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to one process of each model, once they are there: they may be on their way back."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        found: dict[str, int] = {}
        while not found.keys() >= set(models) and time.monotonic() < deadline_s:
            found = {model: process for process, model in processes(self.triton).items()}
            time.sleep(0.05)
        for model in models:
            os.kill(found[model], how)


def _name(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().strip()
    return ""


@dataclass(frozen=True)
class Footage:
    """Frames and speech for streams of any length: the sample clip back and forth, its speech again and again."""

    images: list[Image]
    speech: NDArray[np.float32]

    @classmethod
    def load(cls, count: int, height: int) -> Footage:
        """The first `count` frames of the sample clip, scaled."""
        images = []
        with av.open(str(reports.SAMPLES / "sample.mp4")) as clip:
            for _, frame in zip(range(count), clip.decode(video=0), strict=False):
                width = round(frame.width * height / frame.height / 2) * 2
                images.append(frame.to_ndarray(width=width, height=height, format="rgb24"))
        speech = np.concatenate(list(AudioFile(reports.SAMPLES / "speech.wav").speech()))
        return cls(images, speech)

    def frames(self, count: int) -> Iterator[Image]:
        """So many frames; a copy each, as the client draws on them."""
        back_and_forth = [*self.images, *self.images[-2:0:-1]]
        for index in range(count):
            yield back_and_forth[index % len(back_and_forth)].copy()

    def audio(self, count: int) -> NDArray[np.float32]:
        """Speech for so many frames at 25 per second, and what the last one hears after it, as it would in a longer stream."""
        return np.resize(self.speech, count * 640 + spec.WINDOW_FUTURE_SAMPLES)


@dataclass
class Arrivals:
    """What a stream got.

    Attributes:
        expected: frames sent in.
        indices, at_s: of the frames that came, in the order in which they came.
        mouths: float32 [12] of each.
        broken_s: when something was broken.
        clock: what the client says.
        error: what ended the stream before its end.
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
        """Frames whose mouth is not the one that they have in an undisturbed stream."""
        pairs = zip(self.indices, self.mouths, strict=True)
        return sum(float(np.abs(mouth - undisturbed.mouths[index]).max()) > ONE_MOUTH for index, mouth in pairs)

    def recoveries_s(self) -> list[float]:
        """For each break, seconds until the end of the longest pause between frames that followed it."""
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
    """A stream of `count` frames, with something broken when the frames of `breaks` have come."""
    arrivals = Arrivals(count)
    frames, audio = footage.frames(count), footage.audio(count)
    try:
        async with Client(address, **{"retry_s": PATIENCE_S, **(client or {})}) as connected:
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
    """Registers the person of the footage."""
    async with Client(address) as client:
        return str(await client.register(footage.images[::6]))


def spread(values: list[float]) -> str:
    """Median and largest, for a table."""
    return f"{median(values):.1f} ({max(values):.1f})" if values else "–"
