"""Which part of a frame is sent, and at what size: the server only needs the face, at the crop's own resolution."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.spec import CROP_SIZE

__all__ = ["Answer", "Region", "RegionTracker"]

GROWTH = 0.6  # of the face's size, on every side
LEAST_MARGIN = 0.25  # a region is kept while the face has this much room …
MOST_MARGIN = 1.2  # … and not more than this
SCALE_SLACK = 1.2  # a region is kept while its scale fits the face within this factor
CROP_PIXELS_PER_SENT = 1.0  # a sent pixel is never coarser than one of the crop
MAX_SEARCH_SIDE = 1280  # whole frames, sent to look for a face, are shrunk to this
TRUSTED = 0.5  # confidence from which a region's answer is taken
EDGE = 2.0  # sent pixels; a face this near to a region's edge may be cut by it


@dataclass(frozen=True)
class Region:
    """A box of a frame, and the size at which it is sent. All pixel coordinates have pixel centres at integers.

    Attributes:
        x0, y0, x1, y1: the box in frame pixels, half open.
        width, height: of the sent picture, in pixels.
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
        """[2, 3], frame pixel → sent pixel. A sent pixel's centre is the centre of the area that it covers."""
        fx, fy = self.width / (self.x1 - self.x0), self.height / (self.y1 - self.y0)
        return np.array([[fx, 0, (0.5 - self.x0) * fx - 0.5], [0, fy, (0.5 - self.y0) * fy - 0.5]])

    @property
    def scale(self) -> float:
        """Sent pixels per frame pixel, the larger of the two axes'."""
        return max(self.width / (self.x1 - self.x0), self.height / (self.y1 - self.y0))

    def transform_to_frame(self, transform: NDArray[Any]) -> NDArray[np.float64]:
        """TRANSFORM of the sent picture ([2, 3], sent pixel → crop pixel) as one of the frame's pixels."""
        sent = self.to_sent
        matrix = np.asarray(transform, np.float64)
        return np.column_stack([matrix[:, :2] @ sent[:, :2], matrix[:, :2] @ sent[:, 2] + matrix[:, 2]])

    def box_to_frame(self, box: NDArray[Any]) -> NDArray[np.float32]:
        """A box [x0, y0, x1, y1] of sent pixels in frame pixels; zeros (no face) stay zeros."""
        corners = np.asarray(box, np.float64).reshape(2, 2)
        if not corners.any():
            return np.zeros(4, np.float32)
        sent = self.to_sent
        return ((corners - sent[:, 2]) / np.diag(sent)).astype(np.float32).reshape(4)

    def box_to_sent(self, box: NDArray[Any]) -> NDArray[np.float32]:
        """A box of frame pixels in sent pixels; zeros (no hint) stay zeros."""
        corners = np.asarray(box, np.float64).reshape(2, 2)
        if not corners.any():
            return np.zeros(4, np.float32)
        sent = self.to_sent
        return (corners * np.diag(sent) + sent[:, 2]).astype(np.float32).reshape(4)


@dataclass(frozen=True)
class Answer:
    """What the server found in a region, in frame pixels.

    Attributes:
        region: that was sent.
        confidence: that a face was found, in [0, 1].
        face: float32 [4], x0, y0, x1, y1; zeros without a face.
        mouth: float32 [12], the predicted mouth code.
        transform: float64 [2, 3], frame pixel → crop pixel.
        patch: uint8 [256, 256, 4], RGBA.
        sent_bytes: length of the pictures sent for it.
    """

    region: Region
    confidence: float
    face: NDArray[np.float32]
    mouth: NDArray[np.float32]
    transform: NDArray[np.float64]
    patch: NDArray[np.uint8]
    sent_bytes: int


Call = Callable[[Region, NDArray[np.float32]], Awaitable[Answer]]  # sends a region, with a hint where the face is


class RegionTracker:
    """Follows one face over a stream and says what to send of the next frame.

    A region stays as it is while the face keeps enough room in it: equal shapes are batched together by the server, and
    equal sampling does not flicker.

    Args:
        enabled: without it, every frame is sent whole and at its own size.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.hint: NDArray[np.float32] = np.zeros(4, np.float32)  # the face last seen, in frame pixels
        self._crop: tuple[float, float, float, float] | None = None  # the box of the frame that the crop covered
        self._scale = 1.0  # crop pixels per frame pixel
        self._region: Region | None = None
        self._size = (0, 0)
        self._newest = -1  # index of the newest frame whose answer was observed

    async def locate(self, index: int, width: int, height: int, pixel_aspect: float, call: Call) -> Answer:
        """Find the face of a frame: send its likely surroundings, and more or finer ones where the answer asks for it.

        Frames may be located at the same time; the tracker follows the newest one that was answered.

        Args:
            index: of the frame in its stream.
            width, height: of the frame, in pixels.
            pixel_aspect: a pixel's width over its height.
            call: sends a region.
        """
        region = self.propose(width, height, pixel_aspect)
        answer = await call(region, self.hint)
        sent = answer.sent_bytes
        if self.doubtful(region, answer.face, answer.transform, answer.confidence):
            if index >= self._newest:
                self.reset()
            whole = RegionTracker(self.enabled).propose(width, height, pixel_aspect)
            answer = await call(whole, np.zeros(4, np.float32))
            sent += answer.sent_bytes
        if index > self._newest:
            self._newest = index
            self.observe(answer.face, answer.transform, answer.confidence)
        if answer.region.whole and answer.confidence > 0 and self.too_coarse(answer.region, answer.transform):
            # The face was found in a picture made small for the search: now send it as fine as the frame has it.
            alone = RegionTracker()
            alone.propose(width, height)
            alone.observe(answer.face, answer.transform, answer.confidence)
            if alone.hint.any():
                finer = alone.propose(width, height, pixel_aspect)
                better = await call(finer, alone.hint)
                sent += better.sent_bytes
                if not alone.doubtful(finer, better.face, better.transform, better.confidence):
                    answer = better
        return replace(answer, sent_bytes=sent)

    def follow(self, index: int, face: NDArray[np.float32]) -> None:
        """Take where a frame's face was, of an answer that says no more: the next hint."""
        if index > self._newest:
            self._newest = index
            self.hint = face

    def propose(self, width: int, height: int, pixel_aspect: float = 1.0) -> Region:
        """What to send of the next frame.

        Args:
            width, height: of the frame, in pixels.
            pixel_aspect: a pixel's width over its height; the sent picture has square pixels.
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
        """Takes an answer, in frame pixels: the next proposals follow it."""
        if confidence < TRUSTED or not face.any():
            self.reset()
            return
        self.hint = np.asarray(face, np.float32)
        self._crop = _crop_box(transform)
        self._scale = _magnification(transform)

    def reset(self) -> None:
        """The face is lost: look for it in whole frames."""
        self.hint = np.zeros(4, np.float32)
        self._crop = self._region = None

    def doubtful(self, region: Region, face: NDArray[Any], transform: NDArray[Any], confidence: float) -> bool:
        """Whether an answer, in frame pixels, may be wrong because only a region was sent.

        So it is at low confidence, and where the face or the crop reaches over an edge behind which the frame goes on.
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
        """Whether a picture was sent so small that the crop had to enlarge it, though the frame holds more detail."""
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
        """The face grown on every side and joined with the crop's box, inside the frame and on even pixels."""
        x0, y0, x1, y1 = (float(value) for value in self.hint)
        by_x, by_y = growth * (x1 - x0), growth * (y1 - y0)
        crop = self._crop or (x0, y0, x1, y1)
        return _clip(
            (min(x0 - by_x, crop[0]), min(y0 - by_y, crop[1]), max(x1 + by_x, crop[2]), max(y1 + by_y, crop[3])),
            *self._size,
        )


def _clip(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """A box inside the frame, grown to even pixels (chroma samples are shared by pairs), never empty."""
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
    """The box of the frame around the crop's square, half open, in frame pixels."""
    # Plain numbers: NumPy's calls would cost more than the arithmetic, for every frame.
    (a, b, tx), (c, d, ty) = (map(float, row) for row in transform)
    determinant = a * d - b * c
    ends = (-0.5, CROP_SIZE - 0.5)
    xs = [(d * (u - tx) - b * (v - ty)) / determinant + 0.5 for u in ends for v in ends]
    ys = [(a * (v - ty) - c * (u - tx)) / determinant + 0.5 for u in ends for v in ends]
    return min(xs), min(ys), max(xs), max(ys)


def _magnification(transform: NDArray[Any]) -> float:
    """Crop pixels per frame pixel."""
    (a, b, _), (c, d, _) = (map(float, row) for row in transform)
    return math.sqrt(abs(a * d - b * c))
