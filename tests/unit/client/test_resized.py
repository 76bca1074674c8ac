"""Pictures are made smaller in steps: what comes out has to lie where slow averaging would put it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from insync.client.streaming.pictures import Image, resized


def waves(width: int, height: int, channels: int = 1) -> Image:
    """A smooth picture: waves of 75 pixels and more, in both directions, another in each channel."""
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
def test_lies_where_averaging_puts_it(size: tuple[int, int], target: tuple[int, int]) -> None:
    picture = waves(*size)
    exact = cv2.resize(picture, target, interpolation=cv2.INTER_AREA if target < size else cv2.INTER_LINEAR)
    quick = resized(picture, target)
    assert quick.shape == (target[1], target[0])
    assert quick.dtype == np.uint8
    difference = np.abs(quick.astype(float) - exact)
    # A shift by half a pixel of the result would differ by 3 to 20 on these waves.
    assert difference.mean() < 0.8
    assert difference.max() < 3


def test_channels_and_views() -> None:
    picture = waves(400, 300, channels=3)
    part = picture[20:260, 40:360]
    quick = resized(part, (100, 75))
    assert quick.shape == (75, 100, 3)
    for channel in range(3):
        np.testing.assert_array_equal(quick[..., channel], resized(np.ascontiguousarray(part[..., channel]), (100, 75)))


def test_same_size_is_not_touched() -> None:
    picture = waves(64, 48)
    assert resized(picture, (64, 48)) is picture
