"""Puts a generated patch back into its frame. Used by the server and by the client: NumPy and OpenCV alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from insync.core.errors import BadInput
from insync.core.spec import CROP_SIZE

HIDDEN_BELOW = 0.3  # confidence at and under which nothing of the patch shows
WHOLE_ABOVE = 0.7  # confidence at and over which all of it does
SHRINK_FIRST = 1.25  # patches shrunk by more than this are averaged first, or bilinear sampling aliases


@dataclass(frozen=True)
class Placed:
    """A patch in the pixels of its frame.

    Attributes:
        x0, y0, x1, y1: the touched box, half open, inside the frame and not empty.
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
    """How much of a patch shows at a face confidence: 0 up to 0.3, 1 from 0.7, a smooth ramp between (NaN: 0)."""
    x = (confidence - HIDDEN_BELOW) / (WHOLE_ABOVE - HIDDEN_BELOW)
    if not x > 0:
        return 0.0
    x = min(x, 1.0)
    return x * x * (3 - 2 * x)


def place(
    patch: NDArray[np.uint8], transform: NDArray[Any], confidence: float, width: int, height: int
) -> Placed | None:
    """Warps a patch from the crop into the frame.

    Args:
        patch: uint8 [256, 256, 4], RGBA with straight alpha.
        transform: [2, 3], the similarity from frame pixels to crop pixels, pixel centres at integers.
        confidence: of the face, in [0, 1]; see `visibility`.
        width, height: of the frame, in pixels.

    Returns:
        The placed patch, or None where nothing of it shows.

    Raises:
        BadInput: the patch has another shape or type, or the transform is not an invertible finite 2×3 matrix.
    """
    if patch.shape != (CROP_SIZE, CROP_SIZE, 4) or patch.dtype != np.uint8:
        raise BadInput(f"patch is {patch.dtype} {list(patch.shape)}, expected uint8 [{CROP_SIZE}, {CROP_SIZE}, 4]")
    matrix = np.asarray(transform, np.float64)
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all() or _determinant(matrix) == 0:
        raise BadInput("transform is not an invertible, finite 2×3 matrix")
    shown = visibility(confidence)
    u, v, columns, rows = cv2.boundingRect(cv2.extractChannel(patch, 3))
    if shown == 0 or columns == 0:
        return None
    x0, y0, x1, y1 = _box(matrix, u, v, columns, rows, width, height)
    if x0 >= x1 or y0 >= y1:
        return None

    matrix = matrix.copy()
    shrink = math.sqrt(abs(_determinant(matrix)))
    if shrink > SHRINK_FIRST:
        size = max(1, round(CROP_SIZE / shrink))
        patch = np.asarray(cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
        ratio = size / CROP_SIZE
        matrix *= ratio
        matrix[:, 2] += (ratio - 1) / 2  # centres stay centres
    matrix[:, 2] += matrix[:, :2] @ (x0, y0)
    # Colours go on beyond the patch's edge and alpha ends there. A rim of one pixel says so, and one warp does for both.
    framed = cv2.copyMakeBorder(patch, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    framed[(0, -1), :, 3] = 0
    framed[:, (0, -1), 3] = 0
    matrix[:, 2] += 1
    warped = cv2.warpAffine(
        framed,
        matrix,
        (x1 - x0, y1 - y0),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    rgb = np.asarray(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB), np.uint8)
    alpha = np.multiply(cv2.extractChannel(warped, 3), shown / 255, dtype=np.float32)
    return Placed(x0, y0, x1, y1, rgb, alpha)


def blend(image: NDArray[np.uint8], placed: Placed) -> None:
    """Blends a placed patch into its frame, in place; pixels with alpha 0 keep their value exactly.

    Args:
        image: uint8 [H, W, 3] RGB, writable, of the size that the patch was placed for.
        placed: from `place`.

    Raises:
        BadInput: the image has another type or is smaller than the patch's box.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    if placed.y1 > image.shape[0] or placed.x1 > image.shape[1]:
        raise BadInput(f"image is {image.shape[1]}×{image.shape[0]}, smaller than the patch's box")
    region = image[placed.y0 : placed.y1, placed.x0 : placed.x1]
    # blendLinear rounds to nearest, so weights of 1 and 0 give the frame's value back exactly.
    region[...] = cv2.blendLinear(placed.rgb, np.ascontiguousarray(region), placed.alpha, 1 - placed.alpha)


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """A JPEG file, uint8 [bytes], of an image uint8 [H, W, 3] RGB, quality 1 to 100."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    data: NDArray[np.uint8] = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return data


def _box(
    matrix: NDArray[np.float64], u: int, v: int, columns: int, rows: int, width: int, height: int
) -> tuple[int, int, int, int]:
    """The frame's box around a box of crop pixels, with room for the bilinear (or averaged) edge."""
    (a, b, tx), (c, d, ty) = matrix.tolist()
    determinant = _determinant(matrix)
    # An averaged pixel reaches over as many crop pixels as the patch shrinks by.
    margin = 1 + math.sqrt(abs(determinant))
    us = (u - margin - tx, u + columns - 1 + margin - tx)
    vs = (v - margin - ty, v + rows - 1 + margin - ty)
    xs = [(d * du - b * dv) / determinant for du in us for dv in vs]
    ys = [(a * dv - c * du) / determinant for du in us for dv in vs]
    x0, x1 = (min(max(edge, 0), width) for edge in (math.floor(min(xs)), math.ceil(max(xs)) + 1))
    y0, y1 = (min(max(edge, 0), height) for edge in (math.floor(min(ys)), math.ceil(max(ys)) + 1))
    return x0, y0, x1, y1


def _determinant(matrix: NDArray[np.float64]) -> float:
    """Of the linear part of a [2, 3] matrix.

    Plain numbers: NumPy's `linalg` wakes OpenBLAS's threads even for four numbers, and they then wait for more work by
    spinning, for longer than a frame takes.
    """
    (a, b, _), (c, d, _) = matrix.tolist()
    return float(a * d - b * c)
