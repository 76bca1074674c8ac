"""Resampling of audio of any rate and channel count to 16 kHz mono, chunk by chunk.

Own implementation because its delay adds to a live stream's latency: libsoxr delays by 20 ms at its lowest quality with a
filter and by 37 ms at the default one; this filter delays by 1 ms.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.errors import BadInput
from insync.core.mono import MonoMixer
from insync.core.spec import SAMPLE_RATE_HZ

__all__ = ["Resampler"]

MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
ZERO_CROSSINGS = 16  # of the windowed sinc, on either side
KAISER_BETA = 8.0  # of its window: 80 dB of stop-band attenuation
BLOCK_S = 0.02  # after so much audio, the mixing of channels may change
ROLL_OFF = 0.97  # end of the pass band, as a share of the lower Nyquist frequency


def _scaled(chunk: NDArray[Any], first_sample: int) -> NDArray[np.float32]:
    """Convert one chunk of audio to float32.

    Args:
        chunk: float [-1, 1] or int16 / int32 / uint8 PCM, [N] or [N, channels].
        first_sample: index of the chunk's first sample, used in messages.

    Returns:
        float32 [N, channels].

    Raises:
        BadInput: another type or shape, or a value that is not finite.
    """
    samples = np.asarray(chunk)
    if samples.ndim == 2 and 1 <= samples.shape[1] <= 64:
        channels = samples.shape[1]
    elif samples.ndim == 1:
        channels = 1
    else:
        raise BadInput(
            f"audio chunk has shape {list(samples.shape)}; it must be [samples] or [samples, channels] with 1 to 64 channels"
        )
    if samples.dtype == np.int16:
        scaled = samples.astype(np.float32) / 2**15
    elif samples.dtype == np.int32:
        scaled = (samples / 2**31).astype(np.float32)
    elif samples.dtype == np.uint8:
        scaled = (samples.astype(np.float32) - 128) / 128
    elif np.issubdtype(samples.dtype, np.floating):
        scaled = samples.astype(np.float32, copy=False)
        finite = np.isfinite(scaled)
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise BadInput(
                f"audio sample {first_sample + row} is {scaled[row]}; every sample must be a finite number in [-1, 1]"
            )
    else:
        raise BadInput(f"audio chunk is {samples.dtype}; it must be float32, float64, int16, int32 or uint8")
    return scaled.reshape(-1, channels)


class Resampler:
    """A polyphase resampler to 16 kHz mono that keeps its state between chunks. Not thread-safe.

    Output sample m is the input at time m / 16,000 s, through a sinc low-pass with a Kaiser window (Smith, «Digital Audio
    Resampling», 1984–2020). It does not depend on how the input is split into chunks.

    Channels are averaged, but an inverted one does not cancel the others: `MonoMixer` decides on the audio before each block
    of 20 ms, so that no sample waits for later ones. The first block of such audio may be silent.

    Args:
        rate_hz: rate of the pushed audio.

    Raises:
        BadInput: the rate is outside 4–384 kHz.
    """

    def __init__(self, rate_hz: int) -> None:
        if not isinstance(rate_hz, int) or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            raise BadInput(
                f"audio rate is {rate_hz!r} Hz; it must be a whole number from {MIN_RATE_HZ} to {MAX_RATE_HZ}"
            )
        self.rate_hz = rate_hz
        self._taken = self._given = 0
        self._mixer: MonoMixer | None = None  # of audio with several channels
        self._block = np.zeros((0, 1), np.float32)  # mixed already, but the mixer has not listened to it yet
        if rate_hz != SAMPLE_RATE_HZ:
            self._up, self._down, self._filters = _polyphase(rate_hz)
            self._reach = self._filters.shape[1] // 2  # input samples used on either side of an output sample
            self._held = np.zeros(self._reach, np.float32)  # from input sample `_first` on; silence before the start
            self._first = -self._reach

    def push(self, chunk: NDArray[Any]) -> NDArray[np.float32]:
        """Append a chunk; return the samples at 16 kHz that it completes.

        Args:
            chunk: float [-1, 1] or int16 / int32 / uint8 PCM, [N] or [N, channels].

        Returns:
            float32 [M].

        Raises:
            BadInput: another type or shape, or a value that is not finite.
        """
        samples = self._mixed(_scaled(chunk, self._taken))
        self._taken += len(samples)
        return samples if self.rate_hz == SAMPLE_RATE_HZ else self._filtered(samples)

    def flush(self) -> NDArray[np.float32]:
        """Return the samples that the filter still held. The total is the input's duration, rounded to samples."""
        if self.rate_hz == SAMPLE_RATE_HZ or not self._taken:
            return np.zeros(0, np.float32)
        left = round(Fraction(self._taken * SAMPLE_RATE_HZ, self.rate_hz)) - self._given
        # Rounding may add half an output sample beyond the input's end.
        return self._filtered(np.zeros(2 * self._reach, np.float32))[: max(0, left)]

    def _mixed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mix a chunk float32 [N, channels] to mono; N may be anything, the blocks start at multiples of their length."""
        channels = samples.shape[1]
        if channels == 1:
            return samples[:, 0]
        if self._mixer is None or self._mixer.channels != channels:
            self._mixer = MonoMixer(np.full(channels, 1 / channels, np.float32), self.rate_hz)
            self._block = np.zeros((0, channels), np.float32)
        size, parts, at = round(BLOCK_S * self.rate_hz), [], 0
        while at < len(samples):
            part = samples[at : at + size - len(self._block)]
            parts.append(self._mixer.apply(part.T))
            self._block = np.concatenate([self._block, part])
            if len(self._block) == size:
                self._mixer.listen(self._block.T)
                self._block = self._block[:0]
            at += len(part)
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _filtered(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        self._held = np.concatenate([self._held, samples])
        # Output m needs the input from floor(m · down / up) − reach + 1 to floor(m · down / up) + reach.
        last = self._first + len(self._held) - 1 - self._reach
        count = max(0, ((last + 1) * self._up - 1) // self._down + 1 - self._given) if last >= 0 else 0
        if not count:
            return np.zeros(0, np.float32)
        at = np.arange(self._given, self._given + count, dtype=np.int64) * self._down
        starts = at // self._up - self._reach + 1 - self._first
        taps = 2 * self._reach
        around = np.lib.stride_tricks.sliding_window_view(self._held, taps)[starts]
        resampled: NDArray[np.float32] = np.einsum("ij,ij->i", around, self._filters[at % self._up])
        self._given += count
        keep = self._given * self._down // self._up - self._reach + 1  # first input sample of the next output
        self._held = self._held[max(0, keep - self._first) :]
        self._first = max(self._first, keep)
        return resampled


@lru_cache(4)
def _polyphase(rate_hz: int) -> tuple[int, int, NDArray[np.float32]]:
    """Return up, down (output over input rate, reduced) and the filter of each phase: float32 [up, taps]."""
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    up, down = SAMPLE_RATE_HZ // divisor, rate_hz // divisor
    cutoff = ROLL_OFF * min(1.0, SAMPLE_RATE_HZ / rate_hz)  # of the input's Nyquist frequency
    reach = math.ceil(ZERO_CROSSINGS / min(1.0, SAMPLE_RATE_HZ / rate_hz))
    offsets = np.arange(1 - reach, reach + 1) - np.arange(up)[:, None] / up  # input samples from the output's position
    inside = np.clip(1 - (offsets / reach) ** 2, 0, None)
    filters = cutoff * np.sinc(cutoff * offsets) * np.i0(KAISER_BETA * np.sqrt(inside)) / np.i0(KAISER_BETA)
    return up, down, (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)
