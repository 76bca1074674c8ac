"""Mixing of audio channels to one, also where a channel's polarity is inverted and the plain sum would cancel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MonoMixer"]

HALF_LIFE_S = 0.5  # after this time, sound counts half as much for the decision as new sound
RAMP_S = 0.005  # a change of sign is faded over this time, so that it does not click
CANCELS, ADDS = 0.4, 1.0  # energy of a sum relative to its louder part: below, a channel is inverted; above, restored


class MonoMixer:
    """A mixer to mono that keeps its decisions between chunks. Not thread-safe.

    The output is the weighted sum of the channels. Where a channel cancels the channels before it, so that their mean has
    less than -10 dB of the louder one's energy, it is added with the opposite sign. It gets its own sign back only when the
    sum without the inversion is at least as loud as the louder one, so a decision does not alternate. For two equally loud
    channels these limits are correlations of -0.8 and -0.5. The energies are means over the sound so far with a half-life of
    0.5 s, so an inversion that begins in the middle of a sound is followed within 2 s. Silence changes no decision, and the
    first channel always keeps its sign.

    A file's reader calls `mix`, which decides on a chunk with the chunk itself. A live stream must not wait for a chunk: it
    calls `apply`, and `listen` afterwards.

    Args:
        weights: float [C], the weight of each channel in the sum.
        rate_hz: samples per second.
    """

    def __init__(self, weights: NDArray[np.float32], rate_hz: int) -> None:
        self._weights = np.asarray(weights, np.float32)
        self._signs = self._before = np.ones(len(self._weights), np.float32)
        self._energy = np.zeros((len(self._weights), len(self._weights)))  # of the weighted channels, and between them
        self._half_life = HALF_LIFE_S * rate_hz
        self._ramp = max(1, round(RAMP_S * rate_hz))  # samples
        self._since = self._ramp  # samples since the last change of sign
        self._begun = False  # whether sound was mixed: before, a change needs no fade

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self._weights)

    def mix(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mix a chunk, decided with the chunk itself: float32 [C, N] to float32 [N]."""
        self.listen(samples)
        return self.apply(samples)

    def listen(self, samples: NDArray[np.float32]) -> None:
        """Decide on the signs with the sound so far and this chunk: float32 [C, N]."""
        if self.channels == 1 or not samples.shape[1]:
            return
        weighted = samples * self._weights[:, None]
        self._energy *= 0.5 ** (samples.shape[1] / self._half_life)
        self._energy += weighted.astype(np.float64) @ weighted.T
        signs = self._signs.copy()
        for at in range(1, self.channels):
            own, before = self._energy[at, at], signs[:at] @ self._energy[:at, :at] @ signs[:at]
            both = own + before + 2 * signs[:at] @ self._energy[:at, at]
            louder = max(own, before)
            if both < CANCELS * louder:
                signs[at] = -1
            elif both > ADDS * louder:
                signs[at] = 1
        if (signs != self._signs).any():
            self._before, self._signs, self._since = self._signs, signs, 0 if self._begun else self._ramp

    def apply(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mix a chunk with the signs decided before: float32 [C, N] to float32 [N]."""
        self._begun = self._begun or samples.shape[1] > 0
        mixed: NDArray[np.float32] = (self._weights * self._signs) @ samples
        if self._since < self._ramp:
            fading = min(self._ramp - self._since, len(mixed))
            share = 1 - np.arange(self._since + 1, self._since + 1 + fading, dtype=np.float32) / self._ramp
            earlier = (self._weights * self._before) @ samples[:, :fading]
            mixed[:fading] += share * (earlier - mixed[:fading])
            self._since += fading
        return mixed
