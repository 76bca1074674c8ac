"""The frames and speech that simulated users send: the sample, or the given files, read once per process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from insync.client.media.audio_reader import AudioFile
from insync.client.media.reader import VideoFile
from insync.core.images import Image
from insync.loadtest.errors import LoadTestError

__all__ = ["Footage", "load", "sample"]

MAX_FRAMES = 48
MAX_BYTES = 160 * 2**20  # of decoded frames
REGISTRATION_STRIDE = 4  # every fourth frame is enough to register the person


@dataclass(frozen=True)
class Footage:
    """The frames uint8 [H, W, 3] RGB, and the speech float32 [N] at 16 kHz."""

    frames: tuple[Image, ...]
    speech: NDArray[np.float32]

    @property
    def registration(self) -> tuple[Image, ...]:
        """The frames that a person is registered from."""
        return self.frames[::REGISTRATION_STRIDE]


def load(video: Path, audio: Path, height: int = 0) -> Footage:
    """Read footage; of a long video, about the first two seconds.

    Args:
        video, audio: the files.
        height: height in pixels that the frames are scaled to, at the same aspect ratio; 0 leaves them unscaled.

    Raises:
        MediaError: a file cannot be used.
    """
    file = VideoFile(video)
    frames: list[Image] = []
    for decoded in file.frames():
        frames.append(_scaled(np.ascontiguousarray(file.picture(decoded.frame).rgb()), height))
        if len(frames) == MAX_FRAMES or sum(frame.nbytes for frame in frames) > MAX_BYTES:
            break
    return Footage(tuple(frames), np.concatenate(list(AudioFile(audio).speech())))


def _scaled(frame: Image, height: int) -> Image:
    """Scale a frame to a height; 0 leaves it unscaled."""
    if height in (0, frame.shape[0]):
        return frame
    width = max(2, round(frame.shape[1] * height / frame.shape[0]))
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def sample() -> tuple[Path, Path]:
    """Return the paths of the checkout's sample clip and speech.

    Raises:
        LoadTestError: the installation does not include them.
    """
    folder = Path(__file__).resolve().parents[4] / "samples"
    video, audio = folder / "sample.mp4", folder / "speech.wav"
    if not (video.is_file() and audio.is_file()):
        raise LoadTestError("this installation does not include the sample clip: give footage with --video and --audio")
    return video, audio
