"""Measures of a clip's audio: the shares of silence, of a voice and of music, which tell how clear its speech is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter1d

from insync.training.data.audio import Floats

FRAME = 320  # samples, 20 ms


QUIET_DB = -50.0  # dBFS: quieter frames always count as silent


BELOW_SPEECH_DB = 35.0  # frames that are this much quieter than a clip's loud ones also count as silent


LOUD_PERCENTILE = 95


# Continuous frequency activation (Seyerlehner et al., Automatic Music Detection in Television Productions, 2007): musical tones
# have a constant frequency, voices do not.
FFT, HOP = 1024, 256  # samples: 64 and 16 ms


LOWEST_BIN = 5  # 78 Hz: excludes mains hum


BLOCK = 128  # frames, 2 s; consecutive blocks overlap by half


MIN_BLOCK = 100  # frames: shorter blocks are not reliable


NEIGHBOURS = 21  # bins: a bin stands out relative to their mean


STANDS_OUT_DB = 3.0


FAINT_DB = -30.0  # power of a bin: below it is rounding noise


PEAKS = 5


MUSIC = 2.4  # sum of the five highest peaks of activation; clean speech has 0.8 to 2.1, speech over music 2.6 to 4


def levels_db(audio: Floats) -> Floats:
    """Return the level of every 20 ms of audio float32 [samples] in dBFS: float32 [samples // 320]."""
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME)
    return np.asarray(10 * np.log10((frames.astype(np.float64) ** 2).mean(1) + 1e-10), np.float32)


def silence_share(audio: Floats) -> float:
    """Return the share of 20 ms frames that are silent: below -50 dBFS, or 35 dB below the clip's loud ones. 1 without audio."""
    levels = levels_db(audio)
    if not len(levels):
        return 1.0
    loud = float(np.percentile(levels, LOUD_PERCENTILE))
    return float((levels < max(QUIET_DB, loud - BELOW_SPEECH_DB)).mean())


def voice_share(audio: Floats) -> float:
    """Return the share of the audio in which Silero's voice activity detector hears a voice; 0 without audio."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    if not len(audio):
        return 0.0
    spans = get_speech_timestamps(audio, VadOptions(min_silence_duration_ms=200, speech_pad_ms=60))
    heard: int = sum(min(span["end"], len(audio)) - span["start"] for span in spans)
    return heard / len(audio)


def music_share(audio: Floats) -> float:
    """Return the share of the audio that has tonal sound under, or instead of, speech; 0 if the audio is shorter than 1.6 s.

    This is a heuristic: sustained frequencies count as music. Sustained notes of singers count too; drums alone, and music much
    quieter than the voice, do not.
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
    """Return the summed heights of the highest peaks in the share of time that each bin bool [T, bins] stands out. A peak's height is taken on its lower side."""
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
