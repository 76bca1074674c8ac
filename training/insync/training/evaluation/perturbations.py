"""Perturbations of frames before they are dubbed, for the robustness conditions: poor light, an occluder, motion blur."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from insync.core.spec import CROP_SIZE

Picture = npt.NDArray[np.uint8]


def darkened(crop: Picture, _number: int) -> Picture:
    """Darken a crop, as in poor, warm light."""
    return np.asarray(np.round(crop * np.array([0.45, 0.38, 0.3])), np.uint8)


def covered(crop: Picture, number: int) -> Picture:
    """Cover the mouth with a bar that moves from side to side."""
    x = CROP_SIZE // 2 + int(40 * np.sin(number / 8))
    return np.asarray(
        cv2.line(crop.copy(), (x, 150), (x + 40, CROP_SIZE + 20), (40, 70, 150), 18, cv2.LINE_AA), np.uint8
    )


def moving(crop: Picture, number: int) -> Picture:
    """Blur a crop along one direction, as when the head shakes."""
    length = 7
    kernel = np.zeros((length, length), np.float32)
    angle = number / 6
    ends = [tuple(round(length / 2 - 0.5 + sign * 3 * f) for f in (np.cos(angle), np.sin(angle))) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return np.asarray(cv2.filter2D(crop, -1, kernel / kernel.sum()), np.uint8)


ROBUSTNESS: dict[str, Callable[[Picture, int], Picture]] = {
    "darkened": darkened,
    "covered": covered,
    "moving": moving,
}
