"""Measure how well speech can be heard in a clip's sound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter1d

from insync.training.data.audio import Floats

FRAME = 320  # samples, 20 ms


QUIET_DB = -50.0  # of full scale: silent whatever else is heard


BELOW_SPEECH_DB = 35.0  # below a clip's loud frames: silent too


LOUD_PERCENTILE = 95


# Continuous frequency activation (Seyerlehner et al., Automatic Music Detection in Television Productions, 2007): tones hold
# their frequency, voices glide.
FFT, HOP = 1024, 256  # samples: 64 and 16 ms


LOWEST_BIN = 5  # 78 Hz: below it hums the mains


BLOCK = 128  # frames, 2 s; every second one begins halfway through the one before


MIN_BLOCK = 100  # frames: fewer say little


NEIGHBOURS = 21  # bins: what stands out is held against their mean


STANDS_OUT_DB = 3.0


FAINT_DB = -30.0  # of the power of a bin: below it is rounding


PEAKS = 5


MUSIC = (
    2.4  # sum of the five highest peaks of activation; clean speech lies at 0.8 to 2.1, music behind speech at 2.6 to 4
)


def levels_db(audio: Floats) -> Floats:
    """Loudness of every 20 ms of audio float32 [samples], in dB of full scale: float32 [samples // 320]."""
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME)
    return np.asarray(10 * np.log10((frames.astype(np.float64) ** 2).mean(1) + 1e-10), np.float32)


def silence_share(audio: Floats) -> float:
    """Share of 20 ms frames that are silent: below -50 dB of full scale, or 35 dB below the clip's loud ones. 1 without sound."""
    levels = levels_db(audio)
    if not len(levels):
        return 1.0
    loud = float(np.percentile(levels, LOUD_PERCENTILE))
    return float((levels < max(QUIET_DB, loud - BELOW_SPEECH_DB)).mean())


def music_share(audio: Floats) -> float:
    """Share of the sound in which something tonal goes on behind, or instead of, speech; 0 where there is less than 1.6 s of it.

    A heuristic: what counts as music are frequencies that are held. Held notes of singers count too; drums alone, and quiet music far
    below the voice, do not.
    """
    frames = (len(audio) - FFT) // HOP + 1
    if frames < MIN_BLOCK:
        return 0.0
    pieces = np.lib.stride_tricks.sliding_window_view(audio, FFT)[::HOP] * np.hanning(FFT).astype(np.float32)
    power_db = 10 * np.log10(np.abs(np.fft.rfft(pieces, FFT)) ** 2 + 1e-9)[:, LOWEST_BIN:]
    outstanding = power_db - uniform_filter1d(power_db, NEIGHBOURS, axis=1) > STANDS_OUT_DB
    outstanding &= power_db > FAINT_DB
    starts = range(0, max(1, frames - BLOCK // 2), BLOCK // 2)
    blocks = [outstanding[start : start + BLOCK] for start in starts]
    return float(np.mean([_activation(block) > MUSIC for block in blocks if len(block) >= MIN_BLOCK]))


def _activation(block: npt.NDArray[np.bool_]) -> float:
    """Sum of the heights of the highest peaks of how long each bin bool [T, bins] stands out; a peak is as high as its lower side."""
    activation = np.pad(block.mean(0), 1)
    heights = []
    for peak in np.flatnonzero((activation[1:-1] >= activation[:-2]) & (activation[1:-1] > activation[2:])) + 1:
        left = right = int(peak)
        while left > 0 and activation[left - 1] <= activation[left]:
            left -= 1
        while right < len(activation) - 1 and activation[right + 1] <= activation[right]:
            right += 1
        heights.append(float(activation[peak] - max(activation[left], activation[right])))
    return sum(sorted(heights)[-PEAKS:])
