"""Sequences of speech for training: log-mel of whole recordings, with mouth codes every 20 ms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from insync.core.mouth import MouthBasis
from insync.core.spec import MEL_BANDS, MOUTH, SAMPLE_RATE_HZ, WINDOW_PAST_SAMPLES
from insync.ensemble.models.log_mel import HOP, LogMel
from insync.training.data.audio import read_speech, read_stored
from insync.training.data.dataset import Dataset
from insync.training.data.teacher import STEP_S, Features, Teacher

Floats = npt.NDArray[np.float32]

ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".mkv", ".webm", ".mov", ".mpg")
MIN_STEPS = 40  # 0.8 s; shorter sequences are not used
SILENCE = -1.0  # log-mel of digital silence
MEL_PER_STEP = 2
NOTHING = np.zeros((0, MOUTH), np.float32)
UNHEARD: Features = np.zeros((0, 0), np.float16)
PAST_MEL = WINDOW_PAST_SAMPLES // HOP  # columns of a window before its frame's time


@dataclass(frozen=True)
class Spoken:
    """A sequence of speech.

    Attributes:
        name: of the clip or file.
        mel: float16 [80, T], log-mel of the whole recording.
        first: number of the step, of 20 ms, that the codes begin at.
        codes: float32 [N, 12], mouth codes; filmed, or `read` where nothing was filmed.
        read: float32 [N, 12], the mouth codes that a reader of the teacher's features expects; empty before it has read them.
        features: float16 [N, W], the teacher's features at the same times; W is 0 where they are not needed.
        filmed: whether the codes are filmed ones.
        person: who speaks; empty if unknown.
    """

    name: str
    mel: Features
    first: int
    codes: Floats
    read: Floats
    features: Features
    filmed: bool
    person: str = ""

    def window(self, start: int, length: int) -> Floats:
        """Return the log-mel [80, length] that `AudioProjection.sequence` needs for the steps of the codes from `start` on."""
        begin = MEL_PER_STEP * (self.first + start) - PAST_MEL
        result = np.full((MEL_BANDS, length), SILENCE, np.float32)
        low, high = max(0, begin), min(self.mel.shape[1], begin + length)
        if high > low:
            result[:, low - begin : high - begin] = self.mel[:, low:high]
        return result


def of_footage(dataset: Dataset, basis: MouthBasis, teacher: Teacher | None) -> list[Spoken]:
    """Return a sequence for every segment whose mouth follows its audio.

    Left and right cannot be heard, so a code is the mean of the filmed one and its mirror image.

    Args:
        dataset: the footage.
        basis: its mouth basis.
        teacher: computes the features; None leaves them empty.
    """
    plain, mirror = dataset.codes(basis)
    codes = (plain + mirror) / 2
    spoken = [n for n, speaks in enumerate(dataset.speaks) if speaks]
    clips = list(dict.fromkeys(dataset.segments[n].clip for n in spoken))
    audio = [read_stored(dataset.folder, clip) for clip in clips]
    mels = {clip: mel.astype(np.float16) for clip, mel in zip(clips, LogMel.of_recordings(audio), strict=True)}
    features = {} if teacher is None else dict(zip(clips, teacher(audio, "teacher, footage"), strict=True))
    sequences = []
    for number in spoken:
        rows, clip = dataset.rows(number), dataset.segments[number].clip
        times = dataset.time_s[rows].astype(np.float64) + dataset.offsets_s[number]
        first, last = max(0, int(np.ceil(times[0] / STEP_S))), int(times[-1] / STEP_S)
        last = min(last, mels[clip].shape[1] // MEL_PER_STEP - 1)
        if last - first + 1 < MIN_STEPS:
            continue
        grid = np.arange(first, last + 1) * STEP_S
        at_steps = np.stack([np.interp(grid, times, column) for column in codes[rows].T], 1).astype(np.float32)
        of_clip = features.get(clip, np.zeros((last + 1, 0), np.float16))[first : last + 1]
        sequences.append(Spoken(clip, mels[clip], first, at_steps, NOTHING, of_clip, True, dataset.people[number]))
    return sequences


def read_recordings(folder: Path) -> dict[str, Floats]:
    """Read the audio of every file in a folder and its sub-folders, float32 [samples] at 16 kHz; files without audio are left out.

    Raises:
        FileNotFoundError: the folder does not exist, or no file in it has audio.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.name}: no such folder")
    found = {}
    # Not `Path.rglob`, which leaves out folders that are links.
    inside = (Path(at) / name for at, _, names in os.walk(folder, followlinks=True) for name in names)
    for path in tqdm(sorted(inside), desc=f"read {folder.name}", unit="file"):
        if path.suffix.lower() not in ENDINGS:
            continue
        try:
            audio = read_speech(path)
        except av.error.FFmpegError:
            continue
        if audio is not None and len(audio) >= MIN_STEPS * STEP_S * SAMPLE_RATE_HZ:
            found[str(path.relative_to(folder))] = audio
    if not found:
        raise FileNotFoundError(f"no file in {folder.name} has audio; file names must end in {', '.join(ENDINGS)}")
    return found


def of_recordings(recordings: dict[str, Floats], read: Sequence[Floats]) -> list[Spoken]:
    """Return a sequence for every recording, with the mouth codes [N, 12] that readers expect of it."""
    mels = LogMel.of_recordings(recordings.values())
    return [
        Spoken(name, mel.astype(np.float16), 0, codes, codes, UNHEARD, False)
        for name, mel, codes in zip(recordings, mels, read, strict=True)
    ]
