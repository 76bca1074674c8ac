"""Pictures and sounds that tests make, and the comparison of pictures."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]


def corners(width: int = 96, height: int = 64) -> Picture:
    """Return a picture whose four quarters have different colours."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (200, 40, 40)
    picture[: height // 2, width // 2 :] = (40, 160, 40)
    picture[height // 2 :, : width // 2] = (40, 40, 200)
    picture[height // 2 :, width // 2 :] = (220, 220, 60)
    return picture


def assert_alike(got: Picture, wanted: Picture, most: float = 6) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).mean() < most


def tone(seconds: float, rate_hz: int, hz: float = 440) -> Floats:
    return np.asarray(0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz), np.float32)


def write_wav(path: Path, samples: Floats, rate_hz: int = 16_000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.repeat((samples * 32_767).astype("<i2"), channels).tobytes())
    return path
