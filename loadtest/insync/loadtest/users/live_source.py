"""A live source: a camera and a microphone that give what they have when it is there, whoever waits.

Time comes from a `Clock`, so that tests turn it by hand.
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

CHUNK_SAMPLES = 320  # what a microphone gives at once: 20 ms


class Clock(Protocol):
    """Time in seconds, and waiting for it."""

    def now(self) -> float:
        """Seconds since some moment."""

    async def sleep_until(self, moment_s: float) -> None:
        """Returns at that moment, at once where it is past."""


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    async def sleep_until(self, moment_s: float) -> None:
        """See `Clock`. Gives others a turn even where nothing is waited for."""
        await asyncio.sleep(max(0.0, moment_s - time.monotonic()))


def bounced(index: int, count: int) -> int:
    """Frame `index` of footage that runs back and forth for ever: no jump where it begins anew."""
    if count == 1:
        return 0
    place = index % (2 * count - 2)
    return place if place < count else 2 * count - 2 - place


def ready_s(index: int, fps: float) -> float:
    """Seconds after the start at which the microphone has given all that frame `index` needs: its look-ahead too."""
    last_sample = round(Fraction(index) / Fraction(fps) * SAMPLE_RATE_HZ) + WINDOW_FUTURE_SAMPLES
    return math.ceil(last_sample / CHUNK_SAMPLES) * CHUNK_SAMPLES / SAMPLE_RATE_HZ


class Camera:
    """Frames at their times. A client that is behind gets the oldest of a bounded buffer; what is older is dropped.

    Args:
        frames: footage, run through back and forth.
        fps: frames per second.
        clock: where time comes from.
        start_s: when frame 0 is there.
        length_s: of the whole stream; infinite for one without end.
        buffer_s: frames older than this are dropped.

    Attributes:
        dropped: frames thrown away so far.
        outstanding: numbers of the frames given and not yet answered, oldest first.
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
        # The client asks again only when it has room; what it did not fetch in time is gone, as from a real camera.
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

    def left_out(self, count: int) -> None:
        """Takes in that the oldest frames will not be answered: the client does without them."""
        for _ in range(min(count, len(self.outstanding))):
            self.outstanding.popleft()

    def answered(self, time_s: float) -> tuple[int, bool]:
        """Takes an answer in: the frame's number, and whether it is the one that was next to come."""
        index = round(time_s * self._fps)
        if self.outstanding and self.outstanding[0] == index:
            self.outstanding.popleft()
            return index, True
        if index in self.outstanding:
            self.outstanding.remove(index)
        return index, False


class Microphone:
    """Speech in pieces of 20 ms, each when its last sample has been spoken; begins anew at its end.

    Args:
        speech: float32 [N] at 16 kHz.
        clock, start_s, length_s: as for `Camera`. Speech goes on for the look-ahead after `length_s`.
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
