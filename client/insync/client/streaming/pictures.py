"""Pictures: frames from which the stream cuts regions, and into which it pastes patches."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np

from insync.client.streaming.region import Region
from insync.core import images
from insync.core.compositing import Placed, blend
from insync.core.errors import BadInput
from insync.core.images import Image
from insync.core.spec import MAX_FRAME_BYTES

__all__ = [
    "Image",
    "Picture",
    "RgbPicture",
    "TimedFrame",
    "decode_image",
    "open_picture",
]

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
MIN_SIDE = 16  # pixels


@runtime_checkable
class Picture(Protocol):
    """A frame in any pixel format, with upright coordinates: y points down. Not thread-safe."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""

    @property
    def pixel_aspect(self) -> float:
        """A pixel's width divided by its height."""

    def cut(self, region: Region) -> Image:
        """Return the region, scaled to its sent size: uint8 [region.height, region.width, 3] RGB."""

    def paste(self, placed: Placed) -> None:
        """Blend a patch in. No pixel outside the patch changes."""

    def rgb(self) -> Image:
        """Return the whole frame: uint8 [height, width, 3] RGB."""


@dataclass(frozen=True)
class TimedFrame:
    """A frame with its own time, for `Client.stream` with a variable frame rate.

    Attributes:
        frame: uint8 [H, W, 3] RGB, or the bytes of a JPEG or PNG.
        time_s: seconds on the audio's clock (0 is the audio's first sample), not before the previous frame's.
        cut: whether another shot begins: the whole frame is searched for a face, not where the last one was.
    """

    frame: Any
    time_s: float | Fraction
    cut: bool = False


class RgbPicture:
    """A picture of RGB pixels. The caller's array is never written to.

    Args:
        image: uint8 [H, W, 3].
        encoded: the JPEG or PNG that it was decoded from, sent as it is if the whole frame is sent.
    """

    def __init__(self, image: Image, encoded: bytes | None = None) -> None:
        self._image = image
        self._own = False
        self.encoded = encoded
        self.height, self.width = int(image.shape[0]), int(image.shape[1])
        self.pixel_aspect = 1.0

    def cut(self, region: Region) -> Image:
        """Return the region, scaled to its sent size; see `Picture`."""
        part = self._image[region.y0 : region.y1, region.x0 : region.x1]
        return images.resize(part, (region.width, region.height))

    def paste(self, placed: Placed) -> None:
        """Blend a patch in; see `Picture`."""
        if not self._own:
            self._image, self._own = self._image.copy(), True
        self.encoded = None
        blend(self._image, placed)

    def rgb(self) -> Image:
        """Return the whole frame; see `Picture`."""
        return self._image


def open_picture(frame: Any, name: str) -> Picture:
    """Return the caller's frame as a picture.

    Args:
        frame: uint8 [H, W, 3] RGB, or the bytes of a JPEG or PNG, or a `Picture`.
        name: name of the frame in messages, such as "frame 12".

    Raises:
        BadInput: another type or shape, fewer than 16 pixels a side, or bytes that cannot be decoded.
    """
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise BadInput(f"{name} is {frame.dtype} {list(frame.shape)}; it must be uint8 [height, width, 3] RGB")
        if min(frame.shape[:2]) < MIN_SIDE:
            raise BadInput(
                f"{name} is {frame.shape[1]}×{frame.shape[0]} pixels; it must be at least {MIN_SIDE}×{MIN_SIDE}"
            )
        return RgbPicture(frame)
    if isinstance(frame, (bytes, bytearray, memoryview)):
        data = bytes(frame)
        # Decoding applies the EXIF orientation; the server may not, so then the decoded pixels are sent.
        oriented = b"Exif\0\0" in data[:64] or b"eXIf" in data[:4096]
        return RgbPicture(decode_image(data, name), None if oriented else data)
    if isinstance(frame, Picture):
        return frame
    raise BadInput(
        f"{name} is a {type(frame).__name__}; it must be a NumPy array uint8 [height, width, 3] RGB, "
        "or the bytes of a JPEG or PNG"
    )


def decode_image(data: bytes, name: str) -> Image:
    """Decode a JPEG or PNG: uint8 [H, W, 3] RGB.

    Raises:
        BadInput: it is not a JPEG or PNG, or it is too long, cut off or damaged.
    """
    if not data.startswith(_SIGNATURES):
        raise BadInput(f"{name} is {len(data)} bytes that begin with {data[:4]!r}; it must be a JPEG or PNG")
    if len(data) > MAX_FRAME_BYTES:
        raise BadInput(f"{name} is {len(data)} bytes; it must be at most {MAX_FRAME_BYTES}")
    # A decoder fills the missing part of a truncated JPEG with grey, so check for the end marker.
    end = b"IEND" if data[0] == 0x89 else b"\xff\xd9"
    if end not in data[-64:]:
        raise BadInput(f"{name} is cut off: the {'PNG' if data[0] == 0x89 else 'JPEG'}'s end is missing")
    image = images.decode(data)
    if image is None:
        raise BadInput(f"{name} is damaged: it cannot be decoded")
    return image
