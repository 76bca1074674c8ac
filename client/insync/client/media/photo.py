"""Reading of photos and animated pictures with Pillow: upright, in sRGB, from any container.

FFmpeg reads most of them too, but not the tiles of an iPhone's HEIC, animated WebP, colour profiles, or all orientations.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from PIL import Image, ImageCms, ImageOps, ImageSequence, UnidentifiedImageError

from insync.client.media.files import ffmpeg_name
from insync.core.errors import UnreadableMedia

__all__ = ["ANIMATION_TIME_BASE", "Still", "animation", "read_still"]

ANIMATION_TIME_BASE = Fraction(1, 1000)
SHORTEST_MS = 20  # of an animation's frame; shorter times mean 100 ms, as in browsers
_BY_SHORT_TIME_MS = 100
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx")
_BLACK = (0, 0, 0)


class Still:
    """A photo.

    Attributes:
        rgb: uint8 [H, W, 3], upright, sRGB.
        transparent: whether it has transparent pixels, which are black in `rgb`.
    """

    def __init__(self, rgb: Any, transparent: bool) -> None:
        self.rgb, self.transparent = rgb, transparent


def read_still(path: Path) -> Still | None:
    """Read a photo; return None if the file is no picture that Pillow reads, or an animation.

    Raises:
        UnreadableMedia: the picture is damaged, larger than Pillow admits, or HEIC and pillow-heif is not installed.
    """
    with _opened(path) as image:
        if image is None or (getattr(image, "n_frames", 1) > 1 and image.format in ("GIF", "PNG", "WEBP", "AVIF")):
            return None
        if image.format == "JPEG" and _is_motion_jpeg(path):
            return None
        return _still(path, image)


def animation(path: Path) -> Iterator[tuple[int, Any]] | None:
    """Return the frames of an animated WebP, as times in ms and uint8 [H, W, 3] RGB; None for any other file.

    FFmpeg reads animated GIF, PNG and AVIF.
    """
    with _opened(path) as image:
        if image is None or image.format != "WEBP" or getattr(image, "n_frames", 1) < 2:
            return None
    return _frames(path)


def _frames(path: Path) -> Iterator[tuple[int, Any]]:
    at = 0
    with _opened(path) as image:
        assert image is not None
        for frame in ImageSequence.Iterator(image):
            rgb = _flattened(frame)[0]
            lasts = int(frame.info.get("duration", 0))  # known once the frame is read
            yield at, rgb
            at += lasts if lasts >= SHORTEST_MS else _BY_SHORT_TIME_MS


class _opened:
    """Opens a picture with Pillow; None if it is not one."""

    def __init__(self, path: Path) -> None:
        self._path, self._image = path, None

    def __enter__(self) -> Any:
        try:
            with open(self._path, "rb") as file:
                head = file.read(16)
            if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
                _register_heif(self._path)
                self._image = Image.open(self._path)
            else:
                self._image = Image.open(self._path, formats=_FORMATS)
        except (UnidentifiedImageError, OSError):
            return None  # `opened` of FFmpeg says what is wrong with it
        except Image.DecompressionBombError as exc:
            raise UnreadableMedia(f"{self._path}: {exc}") from exc
        return self._image

    def __exit__(self, *_: object) -> None:
        if self._image is not None:
            self._image.close()


def _is_motion_jpeg(path: Path) -> bool:
    """Return whether a file that begins with a JPEG is a video of them."""
    try:
        with av.open(ffmpeg_name(path)) as container:
            packets = (packet for packet in container.demux(video=0) if packet.size)
            return container.format.name == "mjpeg" and len(list(itertools.islice(packets, 2))) > 1
    except (av.error.FFmpegError, OSError):
        return False


def _register_heif(path: Path) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as exc:
        raise UnreadableMedia(f"{path}: a HEIC picture; pip install pillow-heif, or convert it to JPEG") from exc
    register_heif_opener()


def _still(path: Path, image: Any) -> Still:
    try:
        upright = ImageOps.exif_transpose(image)
        return Still(*_flattened(upright))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise UnreadableMedia(f"{path}: the picture is damaged or too large: {exc}") from exc


def _flattened(image: Any) -> tuple[Any, bool]:
    """Return a picture as uint8 [H, W, 3] in sRGB, with black where it is transparent, and whether it is anywhere."""
    profile = image.info.get("icc_profile")
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    alpha = None
    if has_alpha:
        alpha = image.convert("RGBA").getchannel("A")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = np.asarray(image, np.float64)
        top = 65_535 if grey.max() > 255 else 255
        rgb = Image.fromarray(np.clip(grey / top * 255, 0, 255).astype(np.uint8)).convert("RGB")
    elif profile:
        rgb = _in_srgb(image, profile)
    else:
        rgb = image.convert("RGB")
    if alpha is None or alpha.getextrema()[0] == 255:
        return np.asarray(rgb, np.uint8), False
    black = Image.new("RGB", rgb.size, _BLACK)
    black.paste(rgb, mask=alpha)
    return np.asarray(black, np.uint8), True


def _in_srgb(image: Any, profile: bytes) -> Any:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
        return ImageCms.profileToProfile(mode, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")  # a damaged profile, or one for another kind of picture


def frame_of(rgb: Any, pts: int) -> Any:
    """Return a picture as an av.VideoFrame in RGB at a time in ms."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    frame.pts, frame.time_base = pts, ANIMATION_TIME_BASE
    return frame
