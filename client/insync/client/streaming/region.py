"""The region of a frame that is sent, and its size: the server needs only the face, at the crop's resolution."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.spec import CROP_SIZE

__all__ = ["Region", "RegionResult", "RegionTracker"]

GROWTH = 0.6  # margin of a new region around the face on every side, in sizes of the face
LEAST_MARGIN = 0.25  # a region is kept while its margin is at least this …
MOST_MARGIN = 1.2  # … and at most this
SCALE_SLACK = 1.2  # a region is kept while its scale is within this factor of the best one
CROP_PIXELS_PER_SENT = 1.0  # a sent pixel is never coarser than one of the crop
MAX_SEARCH_SIDE = 1280  # pixels; whole frames that are sent to find the face are shrunk to this
TRUSTED = 0.5  # face confidence from which a region's response is used
EDGE = 2.0  # sent pixels; a face this close to a region's edge may be cut off by it


@dataclass(frozen=True)
class Region:
    """A box of a frame, and the size at which it is sent. Pixel centres are at integer coordinates.

    Attributes:
        x0, y0, x1, y1: the box in frame pixels, half open.
        width, height: size of the sent picture, in pixels.
        whole: whether the box is the whole frame.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    width: int
    height: int
    whole: bool = False

    @property
    def to_sent(self) -> NDArray[np.float64]:
        """Transform [2, 3] from frame pixels to sent pixels. A sent pixel's centre is the centre of the area that it covers."""
        fx, fy = self.width / (self.x1 - self.x0), self.height / (self.y1 - self.y0)
        return np.array([[fx, 0, (0.5 - self.x0) * fx - 0.5], [0, fy, (0.5 - self.y0) * fy - 0.5]])

    @property
    def scale(self) -> float:
        """Sent pixels per frame pixel, the larger of both axes."""
        return max(self.width / (self.x1 - self.x0), self.height / (self.y1 - self.y0))

    def transform_to_frame(self, transform: NDArray[Any]) -> NDArray[np.float64]:
        """Convert TRANSFORM, [2, 3] from sent pixels to crop pixels, to one from frame pixels to crop pixels."""
        sent = self.to_sent
        matrix = np.asarray(transform, np.float64)
        return np.column_stack([matrix[:, :2] @ sent[:, :2], matrix[:, :2] @ sent[:, 2] + matrix[:, 2]])

    def box_to_frame(self, box: NDArray[Any]) -> NDArray[np.float32]:
        """Convert a box [x0, y0, x1, y1] from sent pixels to frame pixels; zeros (no face) stay zeros."""
        corners = np.asarray(box, np.float64).reshape(2, 2)
        if not corners.any():
            return np.zeros(4, np.float32)
        sent = self.to_sent
        return ((corners - sent[:, 2]) / np.diag(sent)).astype(np.float32).reshape(4)

    def box_to_sent(self, box: NDArray[Any]) -> NDArray[np.float32]:
        """Convert a box from frame pixels to sent pixels; zeros (no hint) stay zeros."""
        corners = np.asarray(box, np.float64).reshape(2, 2)
        if not corners.any():
            return np.zeros(4, np.float32)
        sent = self.to_sent
        return (corners * np.diag(sent) + sent[:, 2]).astype(np.float32).reshape(4)


@dataclass(frozen=True)
class RegionResult:
    """The server's response for a region, in frame pixels.

    Attributes:
        region: the region that was sent.
        confidence: face confidence in [0, 1].
        face: float32 [4], bounding box x0, y0, x1, y1; zeros without a face.
        mouth: float32 [12], the predicted mouth code.
        transform: float64 [2, 3], from frame pixels to crop pixels.
        patch: uint8 [256, 256, 4], RGBA.
        sent_bytes: bytes of the pictures sent for it.
    """

    region: Region
    confidence: float
    face: NDArray[np.float32]
    mouth: NDArray[np.float32]
    transform: NDArray[np.float64]
    patch: NDArray[np.uint8]
    sent_bytes: int


Call = Callable[[Region, NDArray[np.float32]], Awaitable[RegionResult]]  # sends a region, with a hint of the face's box


class RegionTracker:
    """Tracks one face over a stream, and proposes the region to send of the next frame.

    A region is kept while the face has enough margin in it: the server batches equal shapes together, and equal sampling
    does not flicker.

    Args:
        enabled: if False, every frame is sent whole and at its own size.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.hint: NDArray[np.float32] = np.zeros(4, np.float32)  # box of the last face found, in frame pixels
        self._crop: tuple[float, float, float, float] | None = None  # box of the frame that the crop covers
        self._scale = 1.0  # crop pixels per frame pixel
        self._region: Region | None = None
        self._size = (0, 0)
        self._newest = -1  # index of the newest frame whose response was observed

    async def locate(self, index: int, width: int, height: int, pixel_aspect: float, call: Call) -> RegionResult:
        """Find the face of a frame: send the proposed region, and if needed the whole frame or a finer region.

        Several frames may be located concurrently; the tracker uses the newest one that has a response.

        Args:
            index: index of the frame in its stream.
            width, height: size of the frame, in pixels.
            pixel_aspect: a pixel's width divided by its height.
            call: sends a region.

        Returns:
            The last response that is not doubtful, with the bytes of all pictures sent.
        """
        region = self.propose(width, height, pixel_aspect)
        result = await call(region, self.hint)
        sent = result.sent_bytes
        if self.doubtful(region, result.face, result.transform, result.confidence):
            if index >= self._newest:
                self.reset()
            whole = RegionTracker(self.enabled).propose(width, height, pixel_aspect)
            result = await call(whole, np.zeros(4, np.float32))
            sent += result.sent_bytes
        if index > self._newest:
            self._newest = index
            self.observe(result.face, result.transform, result.confidence)
        if result.region.whole and result.confidence > 0 and self.too_coarse(result.region, result.transform):
            # The face was found in a shrunk picture: now send it at the frame's resolution.
            alone = RegionTracker()
            alone.propose(width, height)
            alone.observe(result.face, result.transform, result.confidence)
            if alone.hint.any():
                finer = alone.propose(width, height, pixel_aspect)
                better = await call(finer, alone.hint)
                sent += better.sent_bytes
                if not alone.doubtful(finer, better.face, better.transform, better.confidence):
                    result = better
        return replace(result, sent_bytes=sent)

    def follow(self, index: int, face: NDArray[np.float32]) -> None:
        """Use a frame's face box as the next hint, from a response that has no transform."""
        if index > self._newest:
            self._newest = index
            self.hint = face

    def propose(self, width: int, height: int, pixel_aspect: float = 1.0) -> Region:
        """Return the region to send of the next frame.

        Args:
            width, height: size of the frame, in pixels.
            pixel_aspect: a pixel's width divided by its height; the sent picture has square pixels.
        """
        if self._size != (width, height):
            self.reset()
            self._size = (width, height)
        if not self.enabled:
            return Region(0, 0, width, height, width, height, whole=True)
        if self._crop is None:
            scale = min(1.0, MAX_SEARCH_SIDE / max(width, height))
            return _region((0, 0, width, height), scale, pixel_aspect, whole=True)
        if self._region is None or not self._fits(self._region):
            x0, y0, x1, y1 = self._grown(GROWTH)
            scale = min(1.0, self._scale / CROP_PIXELS_PER_SENT)
            self._region = _region(
                (x0, y0, x1, y1), scale, pixel_aspect, whole=(x0, y0, x1, y1) == (0, 0, width, height)
            )
        return self._region

    def observe(self, face: NDArray[Any], transform: NDArray[Any], confidence: float) -> None:
        """Use a response, in frame pixels, for the next proposals."""
        if confidence < TRUSTED or not face.any():
            self.reset()
            return
        self.hint = np.asarray(face, np.float32)
        self._crop = _crop_box(transform)
        self._scale = _magnification(transform)

    def reset(self) -> None:
        """Discard the face's position, so that it is searched for in whole frames."""
        self.hint = np.zeros(4, np.float32)
        self._crop = self._region = None

    def doubtful(self, region: Region, face: NDArray[Any], transform: NDArray[Any], confidence: float) -> bool:
        """Return whether a response, in frame pixels, may be wrong because only a region was sent.

        This is the case at low confidence, or if the face or the crop extends over an edge of the region that is not an
        edge of the frame.
        """
        if region.whole:
            return False
        if confidence < TRUSTED or not face.any():
            return True
        width, height = self._size
        edge = EDGE / region.scale
        x0, y0, x1, y1 = face
        if (
            (region.x0 > 0 and x0 < region.x0 + edge)
            or (region.y0 > 0 and y0 < region.y0 + edge)
            or (region.x1 < width and x1 > region.x1 - 1 - edge)
            or (region.y1 < height and y1 > region.y1 - 1 - edge)
        ):
            return True
        left, top, right, bottom = _clip(_crop_box(transform), width, height)
        slack = 0.02 * (right - left)  # the crop's corners are background
        return (
            left < region.x0 - slack
            or top < region.y0 - slack
            or right > region.x1 + slack
            or bottom > region.y1 + slack
        )

    def too_coarse(self, region: Region, transform: NDArray[Any]) -> bool:
        """Return whether the sent picture was so small that the crop enlarged it, while the frame has more detail."""
        return self.enabled and region.scale < 0.999 and region.scale * SCALE_SLACK < _magnification(transform)

    def _fits(self, region: Region) -> bool:
        scale = min(1.0, self._scale / CROP_PIXELS_PER_SENT)
        if not region.scale / SCALE_SLACK <= scale <= region.scale * SCALE_SLACK:
            return False
        inner, outer = self._grown(LEAST_MARGIN), self._grown(MOST_MARGIN)
        box = (region.x0, region.y0, region.x1, region.y1)
        return all(box[i] <= inner[i] and box[i] >= outer[i] for i in (0, 1)) and all(
            inner[i] <= box[i] <= outer[i] for i in (2, 3)
        )

    def _grown(self, growth: float) -> tuple[int, int, int, int]:
        """Return the box around the face with a margin and the crop's box, inside the frame and on even pixels."""
        x0, y0, x1, y1 = (float(value) for value in self.hint)
        by_x, by_y = growth * (x1 - x0), growth * (y1 - y0)
        crop = self._crop or (x0, y0, x1, y1)
        return _clip(
            (min(x0 - by_x, crop[0]), min(y0 - by_y, crop[1]), max(x1 + by_x, crop[2]), max(y1 + by_y, crop[3])),
            *self._size,
        )


def _clip(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """Clip a box to the frame and extend it to even pixels (pairs share a chroma sample); never empty."""
    x0 = min(max(0, math.floor(box[0] / 2) * 2), max(0, (width - 2) // 2 * 2))
    y0 = min(max(0, math.floor(box[1] / 2) * 2), max(0, (height - 2) // 2 * 2))
    x1 = min(max(x0 + 2, math.ceil(box[2] / 2) * 2), width)
    y1 = min(max(y0 + 2, math.ceil(box[3] / 2) * 2), height)
    return x0, y0, x1, y1


def _region(box: tuple[int, int, int, int], scale: float, pixel_aspect: float, whole: bool) -> Region:
    x0, y0, x1, y1 = box
    width = max(1, round((x1 - x0) * scale * min(1.0, pixel_aspect)))
    height = max(1, round((y1 - y0) * scale * min(1.0, 1 / pixel_aspect)))
    return Region(x0, y0, x1, y1, width, height, whole)


def _crop_box(transform: NDArray[Any]) -> tuple[float, float, float, float]:
    """Return the box around the crop's square, half open, in frame pixels."""
    # Plain floats: NumPy's calls would cost more than the arithmetic, for each frame.
    (a, b, tx), (c, d, ty) = (map(float, row) for row in transform)
    determinant = a * d - b * c
    ends = (-0.5, CROP_SIZE - 0.5)
    xs = [(d * (u - tx) - b * (v - ty)) / determinant + 0.5 for u in ends for v in ends]
    ys = [(a * (v - ty) - c * (u - tx)) / determinant + 0.5 for u in ends for v in ends]
    return min(xs), min(ys), max(xs), max(ys)


def _magnification(transform: NDArray[Any]) -> float:
    """Return crop pixels per frame pixel."""
    (a, b, _), (c, d, _) = (map(float, row) for row in transform)
    return math.sqrt(abs(a * d - b * c))
