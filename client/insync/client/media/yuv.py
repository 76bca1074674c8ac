"""Decoded video frames as pictures: regions are cut out of the YUV planes, and patches are blended into them.

The rest of the frame is not converted, so every sample outside a patch stays as decoded. Chroma samples are assumed to be
centred between their luma pixels in both directions: whatever the source's siting, cut and paste agree.
"""

from __future__ import annotations

import functools
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from insync.client.media.orientation import UPRIGHT, Orientation
from insync.client.streaming.region import Region
from insync.core.compositing import Placed
from insync.core.images import Image, resize

__all__ = ["NATIVE_FORMATS", "YuvPicture", "copy_frame", "plane_views", "rgb_to_yuv", "tag_like", "yuv_to_rgb"]

# By pixel format: whether it is full range by definition, and horizontal and vertical luma pixels per chroma sample.
NATIVE_FORMATS: dict[str, tuple[bool, int, int]] = {
    "yuv420p": (False, 2, 2),
    "yuvj420p": (True, 2, 2),
    "yuv422p": (False, 2, 1),
    "yuvj422p": (True, 2, 1),
    "yuv444p": (False, 1, 1),
    "yuvj444p": (True, 1, 1),
}
# Weights of red and blue in luma, by FFmpeg's AVColorSpace number (ITU-T H.273, MatrixCoefficients).
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
_BT601 = (0.299, 0.114)
_UNSPECIFIED = 2
_FULL_RANGE = 2


@functools.lru_cache(maxsize=32)
def rgb_to_yuv(colorspace: int, full: bool, height: int) -> NDArray[np.float64]:
    """Return the matrix [3, 4] from R'G'B' in [0, 255] to Y'CbCr in [0, 255].

    Args:
        colorspace: FFmpeg's AVColorSpace; if unspecified, BT.709 from 720 lines on and BT.601 below, like players.
        full: full range, instead of 16–235 and 16–240.
        height: height of the frame, in pixels.
    """
    if colorspace == _UNSPECIFIED and height >= 720:
        colorspace = 1
    red, blue = _WEIGHTS.get(colorspace, _BT601)
    luma = np.array([red, 1 - red - blue, blue])
    matrix = np.stack([luma, ([0, 0, 1] - luma) / (2 * (1 - blue)), ([1, 0, 0] - luma) / (2 * (1 - red))])
    if full:
        return np.column_stack([matrix, [0, 128, 128]])
    return np.column_stack([matrix * (np.array([[219], [224], [224]]) / 255), [16, 128, 128]])


@functools.lru_cache(maxsize=32)
def yuv_to_rgb(colorspace: int, full: bool, height: int) -> NDArray[np.float64]:
    """Return the inverse of `rgb_to_yuv`, [3, 4]."""
    forward = rgb_to_yuv(colorspace, full, height)
    inverse = np.linalg.inv(forward[:, :3])
    return np.column_stack([inverse, -inverse @ forward[:, 3]])


class YuvPicture:
    """A decoded 8-bit planar YUV frame. Not thread-safe.

    Args:
        frame: an av.VideoFrame in one of `NATIVE_FORMATS`.
        orientation: how the frame is turned and mirrored for display. The picture's coordinates are those of the display;
            the frame's planes stay as stored.
        pixel_aspect: a stored pixel's width divided by its height.
    """

    def __init__(self, frame: Any, orientation: Orientation = UPRIGHT, pixel_aspect: float = 1.0) -> None:
        self.frame = frame
        self._orientation = orientation
        sideways = orientation.sideways
        self.width, self.height = (frame.height, frame.width) if sideways else (frame.width, frame.height)
        self.pixel_aspect = 1 / pixel_aspect if sideways else pixel_aspect
        full, self._across, self._down = NATIVE_FORMATS[frame.format.name]
        self._colours = (
            int(frame.colorspace),
            full or int(frame.color_range) == _FULL_RANGE,
            min(frame.height, frame.width),
        )
        self._planes: list[NDArray[np.uint8]] | None = None
        self._own = False

    def cut(self, region: Region) -> Image:
        """Return the region, scaled to its sent size; see `Picture`."""
        x0, y0, x1, y1 = self._stored_box(region.x0, region.y0, region.x1, region.y1)
        size = (region.height, region.width) if self._orientation.sideways else (region.width, region.height)
        luma, *chroma = self._views()
        across, down = self._across, self._down
        parts = [resize(luma[y0:y1, x0:x1], size)] + [
            resize(plane[y0 // down : -(-y1 // down), x0 // across : -(-x1 // across)], size) for plane in chroma
        ]
        image = cv2.transform(cv2.merge(parts), yuv_to_rgb(*self._colours))
        return np.ascontiguousarray(self._orientation.upright(image))

    def paste(self, placed: Placed) -> None:
        """Blend a patch in; see `Picture`."""
        if not self._own:
            # The decoder may still use this memory to predict later frames.
            self.frame.make_writable()
            self._planes, self._own = None, True
        x0, y0, x1, y1 = self._stored_box(placed.x0, placed.y0, placed.x1, placed.y1)
        patch = cv2.transform(np.ascontiguousarray(self._orientation.stored(placed.rgb)), rgb_to_yuv(*self._colours))
        alpha = np.ascontiguousarray(self._orientation.stored(placed.alpha))
        luma, *chroma = self._views()
        _mix(luma[y0:y1, x0:x1], cv2.extractChannel(patch, 0), alpha)

        across, down = self._across, self._down
        if (across, down) != (1, 1):  # extend to whole chroma samples; the border is transparent
            left, top, right, bottom = x0 % across, y0 % down, -x1 % across, -y1 % down
            patch = cv2.copyMakeBorder(patch, top, bottom, left, right, cv2.BORDER_REPLICATE)
            alpha = cv2.copyMakeBorder(alpha, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
            size = (patch.shape[1] // across, patch.shape[0] // down)
            patch = cv2.resize(patch, size, interpolation=cv2.INTER_AREA)
            alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
        for channel, plane in enumerate(chroma, 1):
            part = plane[y0 // down : -(-y1 // down), x0 // across : -(-x1 // across)]
            _mix(part, cv2.extractChannel(patch, channel), alpha)

    def rgb(self) -> Image:
        """Return the whole frame; see `Picture`."""
        return self.small((self.width, self.height))

    def small(self, size: tuple[int, int]) -> Image:
        """Return the whole frame in RGB, scaled to a size (width, height)."""
        return self.cut(Region(0, 0, self.width, self.height, *size, whole=True))

    def _views(self) -> list[NDArray[np.uint8]]:
        if self._planes is None:
            self._planes = plane_views(self.frame)
        return self._planes

    def _stored_box(self, x0: int, y0: int, x1: int, y1: int) -> tuple[int, int, int, int]:
        """Convert a box of the display to coordinates of the stored frame."""
        turns = self._orientation.turns
        if self._orientation.mirrored:
            x0, x1 = self.width - x1, self.width - x0
        if turns == 1:
            return self.height - y1, x0, self.height - y0, x1
        if turns == 2:
            return self.width - x1, self.height - y1, self.width - x0, self.height - y0
        if turns == 3:
            return y0, self.width - x1, y1, self.width - x0
        return x0, y0, x1, y1


def plane_views(frame: Any) -> list[NDArray[np.uint8]]:
    """Return views of the planes' samples without padding, uint8 [rows, columns] each, in the frame's memory."""
    return [
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        for plane in frame.planes
    ]


def copy_frame(frame: Any) -> Any:
    """Copy a frame, with its samples, colour tags and pts."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for target, source in zip(plane_views(copy), plane_views(frame), strict=True):
        target[...] = source
    tag_like(copy, frame)
    copy.pts = frame.pts
    return copy


def tag_like(frame: Any, source: Any) -> None:
    """Give a frame another one's colour tags."""
    frame.colorspace, frame.color_range = source.colorspace, source.color_range
    frame.color_primaries, frame.color_trc = source.color_primaries, source.color_trc


def _mix(part: NDArray[np.uint8], patch: NDArray[np.uint8], alpha: NDArray[np.float32]) -> None:
    # blendLinear rounds to nearest: where alpha is 0, the plane's value stays exactly the same.
    part[...] = cv2.blendLinear(np.ascontiguousarray(patch), np.ascontiguousarray(part), alpha, 1 - alpha)
