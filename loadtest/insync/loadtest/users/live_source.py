"""A live source: a camera and a microphone that deliver in real time, whether or not the client keeps up.

Time comes from a `Clock`, so that tests can use virtual time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from insync.client.streaming.pictures import TimedFrame
from insync.core.images import Image
from insync.core.spec import SAMPLE_RATE_HZ, WINDOW_FUTURE_SAMPLES

__all__ = ["CHUNK_SAMPLES", "Camera", "Clock", "Microphone", "WallClock", "bounced", "ready_s"]

CHUNK_SAMPLES = 320  # samples that a microphone delivers at once: 20 ms


class Clock(Protocol):
    """The interface of a clock."""

    def now(self) -> float:
        """Return the time in seconds since an arbitrary start."""

    async def sleep_until(self, moment_s: float) -> None:
        """Sleep until a time; return at once if it is past."""


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Return the time; see `Clock`."""
        return time.monotonic()

    async def sleep_until(self, moment_s: float) -> None:
        """Sleep until a time; see `Clock`. Other tasks get a turn even if the time is past."""
        await asyncio.sleep(max(0.0, moment_s - time.monotonic()))


def bounced(index: int, count: int) -> int:
    """Return the frame to show at `index` when footage of `count` frames plays back and forth, so that it never jumps."""
    if count == 1:
        return 0
    place = index % (2 * count - 2)
    return place if place < count else 2 * count - 2 - place


def ready_s(index: int, fps: float) -> float:
    """Return the seconds after the start at which the microphone has delivered the audio of frame `index`, look-ahead included."""
    last_sample = round(Fraction(index) / Fraction(fps) * SAMPLE_RATE_HZ) + WINDOW_FUTURE_SAMPLES
    return math.ceil(last_sample / CHUNK_SAMPLES) * CHUNK_SAMPLES / SAMPLE_RATE_HZ


class Camera:
    """A camera with a bounded buffer: a slow client gets the oldest frame in it, and older frames are dropped.

    Args:
        frames: footage, played back and forth.
        fps: frames per second.
        clock: the source of time.
        start_s: time of frame 0.
        length_s: duration of the stream; infinity for an endless one.
        buffer_s: length of the buffer; older frames are dropped.

    Attributes:
        dropped: number of frames dropped so far.
        outstanding: numbers of the frames that were delivered and have no response yet, oldest first.
    """

    def __init__(
        self,
        frames: Sequence[Image],
        fps: float,
        clock: Clock,
        start_s: float,
        length_s: float = math.inf,
        buffer_s: float = 1.0,
    ) -> None:
        self._frames, self._fps, self._clock, self._start_s = frames, fps, clock, start_s
        self._length_s, self._buffer_s = length_s, buffer_s
        self._next = 0
        self.dropped = 0
        self.outstanding: deque[int] = deque()

    def __aiter__(self) -> AsyncIterator[TimedFrame]:
        return self

    async def __anext__(self) -> TimedFrame:
        await self._clock.sleep_until(self._start_s + self._next / self._fps)
        # The client reads a frame only when it can send one; frames that it did not read in time are lost, as with a real camera.
        oldest = math.ceil((self._clock.now() - self._start_s - self._buffer_s) * self._fps - 1e-6)
        if oldest > self._next:
            self.dropped += oldest - self._next
            self._next = oldest
        index = self._next
        if index / self._fps >= self._length_s:
            raise StopAsyncIteration
        self._next += 1
        self.outstanding.append(index)
        return TimedFrame(self._frames[bounced(index, len(self._frames))], Fraction(index) / Fraction(self._fps))

    def skip(self, count: int) -> None:
        """Record that the client skipped the oldest frames, which will have no response."""
        for _ in range(min(count, len(self.outstanding))):
            self.outstanding.popleft()

    def answered(self, time_s: float) -> tuple[int, bool]:
        """Record a response; return the frame's number, and whether it is the next one in order."""
        index = round(time_s * self._fps)
        if self.outstanding and self.outstanding[0] == index:
            self.outstanding.popleft()
            return index, True
        if index in self.outstanding:
            self.outstanding.remove(index)
        return index, False


class Microphone:
    """A microphone that delivers chunks of 20 ms, each when its last sample has been recorded; the speech is looped.

    Args:
        speech: float32 [N] at 16 kHz.
        clock, start_s, length_s: as for `Camera`. Speech continues for the look-ahead after `length_s`.
    """

    def __init__(self, speech: NDArray[np.float32], clock: Clock, start_s: float, length_s: float = math.inf) -> None:
        self._speech, self._clock, self._start_s = speech, clock, start_s
        self._end_s = length_s + WINDOW_FUTURE_SAMPLES / SAMPLE_RATE_HZ
        self._chunk = 0

    def __aiter__(self) -> AsyncIterator[NDArray[np.float32]]:
        return self

    async def __anext__(self) -> NDArray[np.float32]:
        first = self._chunk * CHUNK_SAMPLES
        if first / SAMPLE_RATE_HZ >= self._end_s:
            raise StopAsyncIteration
        self._chunk += 1
        await self._clock.sleep_until(self._start_s + (first + CHUNK_SAMPLES) / SAMPLE_RATE_HZ)
        return np.take(self._speech, np.arange(first, first + CHUNK_SAMPLES), mode="wrap")
