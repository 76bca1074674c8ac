"""The sound of footage: read at 16 kHz, cut into windows, and looked at for silence and music."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from insync.ensemble.spec import SAMPLE_RATE_HZ, WINDOW_PAST_SAMPLES, WINDOW_SAMPLES

Floats = npt.NDArray[np.float32]

FRAME = 320  # samples, 20 ms
QUIET_DB = -50.0  # of full scale: silent whatever else is heard
BELOW_SPEECH_DB = 35.0  # below a clip's loud frames: silent too
LOUD_PERCENTILE = 95
# Music and noise fill the gaps that speech leaves: a second of speech falls this far below its loudest frame somewhere.
GAP_DB = 20.0
GAP_FRAMES = 50  # 1 s
FFT = 1024  # samples, 64 ms
# Noise fills its spectrum evenly, music does not: geometric over arithmetic mean of the power in the gaps (spectral flatness).
TONAL_FLATNESS = 0.15
MUSIC_BAND_HZ = (80, 4_000)


def read_speech(path: Path) -> Floats | None:
    """The sound of a file as float32 [samples], 16 kHz, mono; None where it has no audio track."""
    return read_sound(path)[0]


def read_sound(path: Path) -> tuple[Floats | None, float]:
    """The sound of a file, as `read_speech`, and the time in seconds at which its track begins on the file's clock."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None, 0.0
        resampler = av.AudioResampler("fltp", "mono", SAMPLE_RATE_HZ)
        begins_s, chunks = None, []
        for frame in container.decode(audio=0):
            begins_s = float(frame.time or 0.0) if begins_s is None else begins_s
            chunks += [part.to_ndarray()[0] for part in resampler.resample(frame) if part.samples]
    return np.concatenate(chunks).astype(np.float32) if chunks else None, begins_s or 0.0


def windows(audio: Floats, times_s: Floats) -> Floats:
    """The audio windows float32 [N, 6400] of frames at times_s [N]; zeros beyond both ends of audio float32 [samples]."""
    padded = np.concatenate([np.zeros(WINDOW_SAMPLES, np.float32), audio, np.zeros(WINDOW_SAMPLES, np.float32)])
    starts = np.round(times_s * SAMPLE_RATE_HZ).astype(int) - WINDOW_PAST_SAMPLES + WINDOW_SAMPLES
    starts = np.clip(starts, 0, len(padded) - WINDOW_SAMPLES)
    return np.asarray(padded[starts[:, None] + np.arange(WINDOW_SAMPLES)], np.float32)


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
    """Share of the sounding seconds in which something tonal goes on behind, or instead of, speech.

    A heuristic: speech pauses, so that in every second its quietest frames lie 20 dB or more below the loudest; where they do not, what
    fills the gaps is music if its spectrum is peaky, and noise if it is even. Long sung or shouted vowels count as music, quiet
    music far below the voice and rhythmic music with pauses does not.
    """
    levels = levels_db(audio)
    sounding = music = 0
    for start in range(0, len(levels) - GAP_FRAMES + 1, GAP_FRAMES):
        part = levels[start : start + GAP_FRAMES]
        if part.max() < QUIET_DB:
            continue
        sounding += 1
        low = float(np.percentile(part, 10))
        if part.max() - low < GAP_DB:
            gaps = start + np.flatnonzero(part <= np.percentile(part, 25))
            music += _flatness(audio, gaps * FRAME) < TONAL_FLATNESS
    return music / sounding if sounding else 0.0


def _flatness(audio: Floats, starts: npt.NDArray[np.int64]) -> float:
    starts = np.clip(starts - (FFT - FRAME) // 2, 0, max(0, len(audio) - FFT))
    pieces = audio[starts[:, None] + np.arange(min(FFT, len(audio)))] * np.hanning(min(FFT, len(audio)))
    power = (np.abs(np.fft.rfft(pieces, FFT)) ** 2).mean(0)
    hertz = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE_HZ)
    band = power[(hertz >= MUSIC_BAND_HZ[0]) & (hertz <= MUSIC_BAND_HZ[1])] + 1e-12
    # Speech-shaped noise slopes too: each third of an octave is judged by itself.
    thirds = np.array_split(band, 16)
    return float(np.mean([np.exp(np.log(t).mean()) / t.mean() for t in thirds]))


def read_stored(folder: Path, clip: str) -> Floats:
    """The sound of a clip as a data set keeps it, float32 [samples] at 16 kHz."""
    from insync.training.crops import part_path

    with np.load(part_path(folder, clip, ".npz")) as part:
        return np.asarray(part["audio"], np.float32) / 32767
