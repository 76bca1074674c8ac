"""Compositing of a generated patch into its frame, on the server and in the client.

Uses OpenCV where it is installed, else NumPy alone, which is more than ten times slower. The results differ by rounding only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.errors import BadInput
from insync.core.images import average, opencv
from insync.core.spec import CROP_SIZE

HIDDEN_BELOW = 0.3  # face confidence up to which the patch is invisible
WHOLE_ABOVE = 0.7  # face confidence from which the patch is fully visible
SHRINK_FIRST = 1.25  # patches that shrink by more than this are averaged first: bilinear sampling alone would alias


@dataclass(frozen=True)
class Placed:
    """A patch warped into the pixels of its frame.

    Attributes:
        x0, y0, x1, y1: bounding box in frame pixels, half open, inside the frame and not empty.
        rgb: uint8 [y1 - y0, x1 - x0, 3].
        alpha: float32 [y1 - y0, x1 - x0] in [0, 1]; exactly 0 where the frame must stay.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    rgb: NDArray[np.uint8]
    alpha: NDArray[np.float32]


def visibility(confidence: float) -> float:
    """Return the opacity of a patch at a face confidence: 0 up to 0.3, 1 from 0.7, a smooth ramp between (NaN: 0)."""
    x = (confidence - HIDDEN_BELOW) / (WHOLE_ABOVE - HIDDEN_BELOW)
    if not x > 0:
        return 0.0
    x = min(x, 1.0)
    return x * x * (3 - 2 * x)


def place(
    patch: NDArray[np.uint8], transform: NDArray[Any], confidence: float, width: int, height: int
) -> Placed | None:
    """Warp a patch from the crop into the frame.

    Args:
        patch: uint8 [256, 256, 4], RGBA with straight alpha.
        transform: [2, 3], the similarity from frame pixels to crop pixels, pixel centres at integers.
        confidence: face confidence in [0, 1]; see `visibility`.
        width, height: size of the frame, in pixels.

    Returns:
        The placed patch, or None if nothing of it is visible.

    Raises:
        BadInput: the patch has another shape or type, or the transform is not an invertible finite 2×3 matrix.
    """
    if patch.shape != (CROP_SIZE, CROP_SIZE, 4) or patch.dtype != np.uint8:
        raise BadInput(f"patch is {patch.dtype} {list(patch.shape)}, expected uint8 [{CROP_SIZE}, {CROP_SIZE}, 4]")
    matrix = np.asarray(transform, np.float64)
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all() or _determinant(matrix) == 0:
        raise BadInput("transform is not an invertible, finite 2×3 matrix")
    shown = visibility(confidence)
    u, v, columns, rows = _bounds(patch[..., 3])
    if shown == 0 or columns == 0:
        return None
    x0, y0, x1, y1 = _box(matrix, u, v, columns, rows, width, height)
    if x0 >= x1 or y0 >= y1:
        return None

    matrix = matrix.copy()
    shrink = math.sqrt(abs(_determinant(matrix)))
    if shrink > SHRINK_FIRST:
        size = max(1, round(CROP_SIZE / shrink))
        patch = average(patch, (size, size))
        ratio = size / CROP_SIZE
        matrix *= ratio
        matrix[:, 2] += (ratio - 1) / 2  # centres stay centres
    matrix[:, 2] += matrix[:, :2] @ (x0, y0)
    # Beyond the patch's edge its colours continue and its alpha is 0. A border of one pixel gives both with a single warp.
    matrix[:, 2] += 1
    rgb, alpha = _warp(_bordered(patch), matrix, x1 - x0, y1 - y0)
    return Placed(x0, y0, x1, y1, rgb, np.multiply(alpha, shown / 255, dtype=np.float32))


def blend(image: NDArray[np.uint8], placed: Placed) -> None:
    """Blend a placed patch into its frame, in place. Pixels with alpha 0 keep their value exactly.

    Args:
        image: uint8 [H, W, 3] RGB, writable, of the size that was given to `place`.
        placed: result of `place`.

    Raises:
        BadInput: the image has another type or is smaller than the patch's box.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    if placed.y1 > image.shape[0] or placed.x1 > image.shape[1]:
        raise BadInput(f"image is {image.shape[1]}×{image.shape[0]}, smaller than the patch's box")
    region = image[placed.y0 : placed.y1, placed.x0 : placed.x1]
    cv2 = opencv()
    # Both branches round to nearest, so weights of 1 and 0 return the frame's value exactly.
    if cv2 is not None:
        region[...] = cv2.blendLinear(placed.rgb, np.ascontiguousarray(region), placed.alpha, 1 - placed.alpha)
    else:
        weight = placed.alpha[..., None]
        region[...] = np.rint(placed.rgb * weight + region * (1 - weight))


def _box(
    matrix: NDArray[np.float64], u: int, v: int, columns: int, rows: int, width: int, height: int
) -> tuple[int, int, int, int]:
    """Return the frame's box around a box of crop pixels, with a margin for the bilinear (or averaged) edge."""
    (a, b, tx), (c, d, ty) = matrix.tolist()
    determinant = _determinant(matrix)
    # An averaged pixel covers as many crop pixels as the patch shrinks by.
    margin = 1 + math.sqrt(abs(determinant))
    us = (u - margin - tx, u + columns - 1 + margin - tx)
    vs = (v - margin - ty, v + rows - 1 + margin - ty)
    xs = [(d * du - b * dv) / determinant for du in us for dv in vs]
    ys = [(a * dv - c * du) / determinant for du in us for dv in vs]
    x0, x1 = (min(max(edge, 0), width) for edge in (math.floor(min(xs)), math.ceil(max(xs)) + 1))
    y0, y1 = (min(max(edge, 0), height) for edge in (math.floor(min(ys)), math.ceil(max(ys)) + 1))
    return x0, y0, x1, y1


def _determinant(matrix: NDArray[np.float64]) -> float:
    """Return the determinant of the linear part of a [2, 3] matrix.

    Computed by hand: NumPy's `linalg` wakes OpenBLAS's threads even for four numbers, and they then spin while they wait
    for more work, for longer than a frame takes.
    """
    (a, b, _), (c, d, _) = matrix.tolist()
    return float(a * d - b * c)


def _bounds(alpha: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Return the bounding box of the nonzero values: first column, first row, columns, rows; zeros if all are 0."""
    cv2 = opencv()
    if cv2 is not None:
        box: tuple[int, int, int, int] = cv2.boundingRect(np.ascontiguousarray(alpha))
        return box
    columns, rows = np.flatnonzero(alpha.any(axis=0)), np.flatnonzero(alpha.any(axis=1))
    if not len(columns):
        return 0, 0, 0, 0
    u, v = int(columns[0]), int(rows[0])
    return u, v, int(columns[-1]) - u + 1, int(rows[-1]) - v + 1


def _bordered(patch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the patch with a border of one pixel: its own colours, alpha 0."""
    height, width = patch.shape[:2]
    bordered = np.empty((height + 2, width + 2, 4), np.uint8)
    bordered[1:-1, 1:-1] = patch
    bordered[0], bordered[-1] = bordered[1], bordered[-2]
    bordered[:, 0], bordered[:, -1] = bordered[:, 1], bordered[:, -2]
    bordered[(0, -1), :, 3] = 0
    bordered[:, (0, -1), 3] = 0
    return bordered


def _warp(
    patch: NDArray[np.uint8], matrix: NDArray[np.float64], width: int, height: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Sample a patch bilinearly at matrix · (x, y, 1) of each pixel; its edge values are repeated beyond its edge.

    Returns:
        The colours, uint8 [height, width, 3], and the alpha, uint8 [height, width].
    """
    cv2 = opencv()
    if cv2 is not None:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(patch, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB), cv2.extractChannel(warped, 3)
    # Coordinates are rounded to a 32nd of a pixel, as in OpenCV.
    across = np.rint(1024 * matrix[:, 0, None] * np.arange(width))
    down = np.rint(1024 * (matrix[:, 1, None] * np.arange(height) + matrix[:, 2, None]))
    places = (across[:, None, :] + down[:, :, None] + 16).astype(np.int64) >> 5
    limits = np.array([patch.shape[1] - 1, patch.shape[0] - 1])[:, None, None]
    (u0, v0), (u1, v1) = np.clip(places >> 5, 0, limits), np.clip((places >> 5) + 1, 0, limits)
    fu, fv = (places & 31)[..., None].astype(np.int32)
    top = patch[v0, u0] * (32 - fu) + patch[v0, u1] * fu
    bottom = patch[v1, u0] * (32 - fu) + patch[v1, u1] * fu
    sampled = ((top * (32 - fv) + bottom * fv + 512) >> 10).astype(np.uint8)
    return np.ascontiguousarray(sampled[..., :3]), sampled[..., 3]
