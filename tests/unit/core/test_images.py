"""Resizing in steps gives the same picture as averaging over areas; encoding and decoding of JPEG and PNG."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image as pillow

from insync.core import images
from insync.core.images import Image, resize


@pytest.fixture(params=["OpenCV", "Pillow"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with OpenCV, and as if it were not installed."""
    if request.param == "Pillow":
        monkeypatch.setattr(images, "opencv", lambda: None)


def waves(width: int, height: int, channels: int = 1) -> Image:
    """Return a smooth picture: waves of 75 pixels and more, in both directions, different in each channel."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    planes = [127 + 60 * np.sin(x / (12 + k)) + 60 * np.cos(y / (13 + k)) for k in range(channels)]
    return np.asarray(np.stack(planes, -1).round().squeeze(), np.uint8)


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((1092, 720), (417, 275)),  # halved, then sampled
        ((546, 360), (417, 275)),  # sampled
        ((638, 408), (400, 256)),  # averaged: a little more than is sampled
        ((1920, 1080), (400, 256)),  # halved twice, then sampled
        ((631, 405), (211, 135)),  # sides that cannot be halved
        ((512, 512), (128, 128)),  # halved alone
        ((100, 80), (260, 240)),  # enlarged
    ],
)
def test_resizing_does_not_shift_the_picture(size: tuple[int, int], target: tuple[int, int]) -> None:
    picture = waves(*size)
    exact = cv2.resize(picture, target, interpolation=cv2.INTER_AREA if target < size else cv2.INTER_LINEAR)
    quick = resize(picture, target)
    assert quick.shape == (target[1], target[0])
    assert quick.dtype == np.uint8
    difference = np.abs(quick.astype(float) - exact)
    # A shift by half a pixel of the result would differ by 3 to 20 on these waves.
    assert difference.mean() < 0.8
    assert difference.max() < 3


def test_channels_and_views() -> None:
    picture = waves(400, 300, channels=3)
    part = picture[20:260, 40:360]
    quick = resize(part, (100, 75))
    assert quick.shape == (75, 100, 3)
    for channel in range(3):
        np.testing.assert_array_equal(quick[..., channel], resize(np.ascontiguousarray(part[..., channel]), (100, 75)))


def test_a_picture_of_the_same_size_is_not_copied() -> None:
    picture = waves(64, 48)
    assert resize(picture, (64, 48)) is picture


def test_jpegs_and_pngs_are_encoded_and_decoded() -> None:
    picture = waves(160, 96, channels=3)
    assert images.encode_png(picture)[:4] == b"\x89PNG"
    found = images.decode(images.encode_png(picture))
    assert found is not None
    np.testing.assert_array_equal(found, picture)
    jpeg = images.encode_jpeg(picture, 95)
    found = images.decode(jpeg)
    assert found is not None
    assert np.abs(found.astype(int) - picture).mean() < 1.5
    assert len(images.encode_jpeg(picture, 20)) < len(jpeg)


def test_damaged_data_is_none() -> None:
    jpeg = images.encode_jpeg(waves(64, 48, channels=3), 90)
    assert images.decode(b"no picture") is None
    assert images.decode(jpeg[:30]) is None
    assert images.decode(b"") is None


def test_exif_orientation_is_applied() -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    file = io.BytesIO()
    pillow.fromarray(waves(64, 48, channels=3)).save(file, "JPEG", quality=95, exif=exif)
    found = images.decode(file.getvalue())
    assert found is not None
    assert found.shape == (64, 48, 3)
    expected = np.rot90(waves(64, 48, channels=3), -1).astype(int)
    assert np.abs(found - expected).mean() < 2
