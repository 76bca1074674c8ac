"""Conversion of audio of any rate and channel count to the 16 kHz mono windows that the network takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.client.streaming.resampler import Resampler
from insync.core.errors import BadInput
from insync.core.spec import SAMPLE_RATE_HZ, WINDOW_FUTURE_SAMPLES, WINDOW_PAST_SAMPLES, WINDOW_SAMPLES

__all__ = ["AudioWindows", "slices"]

SLICE_S = 0.25  # long arrays are processed in slices of this length, so that memory stays bounded


def slices(samples: NDArray[Any], rate_hz: int) -> Iterator[NDArray[Any]]:
    """Yield a long array as consecutive slices of `SLICE_S`."""
    step = max(1, int(rate_hz * SLICE_S))
    for start in range(0, len(samples), step):
        yield samples[start : start + step]


class AudioWindows:
    """The audio windows of frames, cut out of audio that arrives in chunks.

    The window of a frame at time t is the 4,480 samples before `round(t * 16000)` and the 1,920 from it on: it is complete
    120 ms after t. Before the audio's start and after its end there is silence. Windows must be requested in the order of
    their times. Samples that no later frame needs are dropped, so memory holds one window and the audio pushed ahead.

    Args:
        rate_hz: rate of the pushed audio, 4–384 kHz.
    """

    def __init__(self, rate_hz: int = SAMPLE_RATE_HZ) -> None:
        self._resampler = Resampler(rate_hz)
        self._kept = np.zeros(WINDOW_PAST_SAMPLES, np.float32)
        self._start = -WINDOW_PAST_SAMPLES  # index of the first kept sample
        self._finished = False

    @property
    def end(self) -> int:
        """Number of samples at 16 kHz that have arrived."""
        return self._start + len(self._kept)

    @property
    def finished(self) -> bool:
        """Whether the audio has ended."""
        return self._finished

    def push(self, chunk: NDArray[Any]) -> None:
        """Append the next chunk of audio, as in `Resampler.push`.

        Raises:
            BadInput: a wrong type or shape, a value that is not finite, or a chunk after `finish`.
        """
        if self._finished:
            raise BadInput("audio was pushed after its end")
        self._append(self._resampler.push(chunk))

    def finish(self) -> None:
        """Mark the audio as ended: every window is complete now, with silence after the end."""
        if not self._finished:
            self._append(self._resampler.flush())
            self._finished = True

    def ready(self, time_s: float | Fraction) -> bool:
        """Return whether the window of the frame at this time is complete."""
        return self._finished or self.end >= _centre(time_s) + WINDOW_FUTURE_SAMPLES

    def window(self, k: int, fps: float | Fraction) -> NDArray[np.float32]:
        """Return the window of frame k at a constant frame rate; see `window_at`."""
        return self.window_at(k / Fraction(fps))

    def window_at(self, time_s: float | Fraction) -> NDArray[np.float32]:
        """Return the window of the frame at this time: float32 [6400] at 16 kHz.

        Raises:
            BadInput: the window is not complete yet, or it lies before one that was already requested.
        """
        first = _centre(time_s) - WINDOW_PAST_SAMPLES
        if not self.ready(time_s):
            raise BadInput(f"the audio up to {float(time_s):.3f} s + 120 ms has not arrived yet")
        if first < self._start:
            raise BadInput(
                f"frame time {float(time_s):.3f} s lies before a frame that was already requested; times must not decrease"
            )
        self._kept = self._kept[first - self._start :]  # empty if the audio ended before the window
        self._start = first
        window = np.zeros(WINDOW_SAMPLES, np.float32)
        part = self._kept[:WINDOW_SAMPLES]
        window[: len(part)] = part
        return window

    def _append(self, samples: NDArray[np.float32]) -> None:
        if len(samples):
            self._kept = np.concatenate([self._kept, samples])


def _centre(time_s: float | Fraction) -> int:
    if not isinstance(time_s, Fraction) and not math.isfinite(time_s):
        raise BadInput(f"frame time is {time_s}; it must be a finite number of seconds")
    return math.floor(Fraction(time_s) * SAMPLE_RATE_HZ + Fraction(1, 2))
