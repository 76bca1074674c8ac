"""The audio of footage: reading it at 16 kHz, and cutting it into windows."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from insync.client.media.speech import speech_chunks
from insync.core.spec import SAMPLE_RATE_HZ, WINDOW_PAST_SAMPLES, WINDOW_SAMPLES

Floats = npt.NDArray[np.float32]


def read_speech(path: Path) -> Floats | None:
    """Read a file's audio as float32 [samples], 16 kHz, mono; None if it has no audio track."""
    return read_sound(path)[0]


def read_sound(path: Path) -> tuple[Floats | None, float]:
    """Read a file's audio as `read_speech` does; also return the start time of the track in seconds of the file's timestamps."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None, 0.0
        frames = container.decode(audio=0)
        first = next(frames, None)
        if first is None:
            return None, 0.0
        begins_s = float(first.time or 0.0)
        chunks = list(speech_chunks(itertools.chain((first,), frames)))
    return np.concatenate(chunks) if chunks else None, begins_s


def windows(audio: Floats, times_s: Floats) -> Floats:
    """Return the audio windows float32 [N, 6400] of frames at times_s [N]; audio float32 [samples] is zero-padded at both ends."""
    padded = np.concatenate([np.zeros(WINDOW_SAMPLES, np.float32), audio, np.zeros(WINDOW_SAMPLES, np.float32)])
    starts = np.round(times_s * SAMPLE_RATE_HZ).astype(int) - WINDOW_PAST_SAMPLES + WINDOW_SAMPLES
    starts = np.clip(starts, 0, len(padded) - WINDOW_SAMPLES)
    return np.asarray(padded[starts[:, None] + np.arange(WINDOW_SAMPLES)], np.float32)


def read_stored(folder: Path, clip: str) -> Floats:
    """Read a clip's audio from a data set: float32 [samples] at 16 kHz."""
    from insync.training.data.segments import part_path

    with np.load(part_path(folder, clip, ".npz")) as part:
        return np.asarray(part["audio"], np.float32) / 32767
