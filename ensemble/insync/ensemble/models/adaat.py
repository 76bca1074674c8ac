"""AdaAT on the CPU: every feature channel is warped by its own similarity.

Adaptive affine transformation (Zhang et al., "Adaptive Affine Transformation: A Simple and Effective Operation for
Spatial Misaligned Image Generation", 2022). Equivalent to PyTorch's `affine_grid` and `grid_sample` (bilinear, zeros
outside, `align_corners=False`) for each channel; `insync.network.adaat` is the reference that tests compare with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.errors import BadInput

Floats = NDArray[np.float32]


def adaat(reference: Floats, affine: Floats, threads: int = 1) -> Floats:
    """Warp features channel by channel.

    Args:
        reference: float32 [B, C, H, W].
        affine: float32 [B, C, 4]: scale, rotation in radians, and translation x, y in coordinates where the
            picture spans [-1, 1]. They map output to input, as in `grid_sample`; angle and scale are in pixel space.
        threads: CPU threads that share the B × C planes.

    Returns:
        float32 [B, C, H, W].

    Raises:
        BadInput: the shapes do not match, or `affine` holds a number that is not finite.
    """
    if reference.ndim != 4 or affine.shape != (*reference.shape[:2], 4):
        raise BadInput(
            f"REFERENCE has shape {list(reference.shape)} and AFFINE {list(affine.shape)}, "
            "must be [B, C, H, W] and [B, C, 4]"
        )
    if not np.isfinite(affine).all():
        raise BadInput("AFFINE holds numbers that are not finite, must be scale, rotation, tx, ty for each channel")
    batch, channels, height, width = reference.shape
    aligned = np.empty((batch, channels, height, width), np.float32)
    planes = np.ascontiguousarray(reference, np.float32).reshape(-1, height, width)
    parameters = np.ascontiguousarray(affine, np.float32).reshape(-1, 4)
    kernel, set_threads = _kernel()
    set_threads(threads)
    kernel(planes, parameters, aligned.reshape(-1, height, width))
    return aligned


@functools.cache
def _kernel() -> tuple[Callable[[Floats, Floats, Floats], None], Callable[[int], None]]:
    """Compile the kernel on first use, which takes seconds, or load it from disk: importing this module stays cheap."""
    import numba

    def warp(planes: Any, parameters: Any, aligned: Any) -> None:
        count, height, width = planes.shape
        zero, one, two = np.float32(0), np.float32(1), np.float32(2)
        for plane in numba.prange(count):
            # One zero before and two after each axis: a clamped coordinate then reads four values without a branch.
            padded = np.zeros((height + 3, width + 3), np.float32)
            padded[1 : height + 1, 1 : width + 1] = planes[plane]
            flat = padded.ravel()
            stride = np.int32(width + 3)
            right, below = np.float32(width + 1), np.float32(height + 1)
            us, vs = np.empty(width, np.float32), np.empty(width, np.float32)
            places = np.empty(width, np.uint32)
            scale, angle = parameters[plane, 0], parameters[plane, 1]
            cos, sin = scale * np.cos(angle), scale * np.sin(angle)
            aspect = np.float32(height) / np.float32(width)  # rotation is in pixel space, also in non-square maps
            left = one / np.float32(width) - one
            for row in range(height):
                y = np.float32(2 * row + 1) / np.float32(height) - one
                x_start = ((cos * left - sin * aspect * y + parameters[plane, 2] + one) * np.float32(width) + one) / two
                y_start = (
                    (sin / aspect * left + cos * y + parameters[plane, 3] + one) * np.float32(height) + one
                ) / two
                # Two loops: the first one reads no memory, so the compiler vectorises it (sixteen columns at once).
                for column in range(width):
                    u = x_start + cos * np.float32(column)
                    v = y_start + sin * np.float32(column)
                    u = u if u > zero else zero  # not max(): not-a-number must become zero too
                    v = v if v > zero else zero
                    u = u if u < right else right
                    v = v if v < below else below
                    j, i = np.int32(u), np.int32(v)
                    us[column] = u - np.float32(j)
                    vs[column] = v - np.float32(i)
                    places[column] = i * stride + j
                for column in range(width):
                    at, u, v = np.intp(places[column]), us[column], vs[column]
                    top = flat[at] * (one - u) + flat[at + 1] * u
                    bottom = flat[at + stride] * (one - u) + flat[at + stride + 1] * u
                    aligned[plane, row, column] = top * (one - v) + bottom * v

    # Without "nnan" and "ninf": comparisons must hold for overflowing coordinates too, so that they are clamped outside.
    compile_ = functools.partial(
        numba.njit, parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy"
    )
    kernel: Callable[[Floats, Floats, Floats], None]
    try:
        kernel = compile_(cache=True)(warp)
    except RuntimeError:  # neither this folder nor the user's cache folder is writable
        kernel = compile_()(warp)
    return kernel, lambda threads: numba.set_num_threads(min(max(threads, 1), numba.config.NUMBA_NUM_THREADS))
