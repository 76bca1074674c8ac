"""Positions of a face's landmarks in the patch's window, for the source's mouth shape and for any other.

Landmarks are of two kinds: those of lips and chin, which speech moves, and those around them on cheeks, nose and jaw, which keep the
source's positions. *Places* are the positions of both, in x and y with the window's outer edges at ±1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from insync.core.mouth import POINTS, skull_fit
from insync.core.spec import HEAD, PLACES, WINDOW_COLUMNS, WINDOW_ROWS

Floats = NDArray[np.float32]

# FaceMesh indices: nose, cheeks, jaw.
STILL = (
    2, 98, 327, 64, 294, 36, 266, 203, 423, 205, 425, 50, 280, 187, 411, 207, 427, 192, 416, 214, 434, 132, 361, 58, 288, 172, 397, 136, 365,
)  # fmt: skip
PLACED = POINTS + STILL
_START = np.array([WINDOW_COLUMNS[0], WINDOW_ROWS[0]], np.float32)
_HALF = np.array([WINDOW_COLUMNS[1] - WINDOW_COLUMNS[0], WINDOW_ROWS[1] - WINDOW_ROWS[0]], np.float32) / 2


def in_window(points: Floats) -> Floats:
    """Convert points float32 [..., 2] from crop pixels, centres at integers, to coordinates with the window's outer edges at ±1."""
    return np.asarray((points + 0.5 - _START) / _HALF - 1, np.float32)


def places_of(landmarks: Floats, transform: Floats) -> Floats:
    """Return the places float32 [73, 2] of a face, from landmarks float32 [468, 3] in frame pixels and the transform from frame to crop, float32 [2, 3]."""
    return in_window(landmarks[list(PLACED), :2] @ transform[:, :2].T + transform[:, 2])


def head_of(landmarks: Floats, transform: Floats, rigid: Floats) -> Floats:
    """Return HEAD, the head pose as the network takes it, float32 [75, 2]; see `places`.

    Args:
        landmarks: float32 [468, 3], in frame pixels.
        transform: float32 [2, 3], from frame to crop.
        rigid: float32 [R, 3], see `MouthBasis`.

    Returns:
        Two rows: the displacement of a place when a shape's x or y grows by 1. 44 rows: the places of lips and chin for a shape of zeros.
        29 rows: the places of the landmarks that speech does not move.
    """
    turn, shift = skull_fit(landmarks, rigid)
    depth = (landmarks @ turn.T + shift)[list(POINTS), 2]
    back = transform[:, :2] @ np.linalg.inv(turn)[:2]
    zero = depth[:, None] * back[:, 2] - back @ shift + transform[:, 2]
    still = places_of(landmarks, transform)[len(POINTS) :]
    return np.asarray(np.concatenate([back[:, :2].T / _HALF, in_window(zero), still]), np.float32)


def places(head: Floats, shape: Floats) -> Floats:
    """Return the places float32 [73, 2] of a head float32 [75, 2] with a mouth shape float32 [44, 2]; `Placing` computes the same in the network."""
    lips = head[2 : 2 + len(POINTS)] + shape @ head[:2]
    return np.asarray(np.concatenate([lips, head[2 + len(POINTS) :]]), np.float32)


assert PLACES.shape == (len(PLACED), 2)
assert HEAD.shape == (len(PLACED) + 2, 2)
