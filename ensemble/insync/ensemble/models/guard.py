"""Input validation: checks of frames and audio windows before any costly processing.

A frame is checked by its structure alone, before any pixel is decoded: its format, its size in pixels, the cost of
decoding it, and whether it is truncated. JPEG: ITU-T T.81; PNG: ISO/IEC 15948.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from insync.core.errors import BadInput
from insync.core.spec import (
    MAX_FRAME_BYTES,
    MAX_PIXELS,
    MAX_REGISTRATION_BYTES,
    MAX_REGISTRATION_FRAMES,
    MAX_REGISTRATION_PIXELS,
    MAX_SIDE,
    WINDOW_SAMPLES,
)

MAX_AMPLITUDE = 4.0  # audio is in [-1, 1]; resampling may overshoot, but 16-bit integers cast to float must be refused
MIN_SIDE = 16  # pixels
MAX_SEGMENTS = 20_000  # segments of a JPEG before its pixels, or chunks of a PNG: more would only cost parsing time
MAX_EXTRAS = 200  # chunks of a PNG other than its pixels: decoders may log a line for each
MAX_SCANS = 64  # of a progressive JPEG: each scan decodes the whole picture again, and can be as short as three bytes

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_SCAN = b"\xff\xda"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # bits by colour type
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC


class Size(NamedTuple):
    """The size of a picture in pixels, as stored (EXIF rotation is not applied)."""

    width: int
    height: int


def check_frame(data: bytes | memoryview, name: str = "FRAME") -> Size:
    """Check one encoded frame.

    Args:
        data: a whole JPEG or PNG file.
        name: name of the field, for the error message.

    Returns:
        Its size.

    Raises:
        BadInput: it is empty, of another format, truncated, too large or small in bytes or pixels, or too costly to decode.
    """
    if len(data) == 0:
        raise BadInput(f"{name} is empty (0 bytes): it must be a whole JPEG or PNG picture")
    if len(data) > MAX_FRAME_BYTES:
        raise BadInput(f"{name} has {len(data):,} bytes: it must have at most {MAX_FRAME_BYTES:,}")
    head = bytes(data[:33])
    if head.startswith(b"\xff\xd8\xff"):
        size = _jpeg_size(memoryview(data), name)
        whole = bytes(data[-2:]) == b"\xff\xd9"
    elif head.startswith(_PNG):
        size = _png_size(head, name)
        whole = bytes(data[-12:]) == _PNG_END
    else:
        raise BadInput(f"{name} must be a JPEG or PNG picture: it begins with bytes {head[:4].hex(' ')}")
    if size.width * size.height > MAX_PIXELS:
        raise BadInput(
            f"{name} is {size.width}×{size.height} ({size.width * size.height / 1e6:.1f} megapixels): "
            f"it must have at most {MAX_PIXELS / 1e6:.1f} megapixels, scale it down"
        )
    if min(size) < MIN_SIDE or max(size) > MAX_SIDE:
        raise BadInput(f"{name} is {size.width}×{size.height}: its sides must be {MIN_SIDE} to {MAX_SIDE:,} pixels")
    if not whole:
        raise BadInput(f"{name} is truncated: its {len(data):,} bytes have no end marker, send the whole picture")
    if head.startswith(_PNG):
        _check_chunks(memoryview(data), name)
    else:
        # These two bytes never occur within compressed pixels; a thumbnail in the metadata may add one.
        scans = bytes(data).count(_SCAN)
        if scans > MAX_SCANS:
            raise BadInput(f"{name} is a JPEG of {scans} scans: it must have at most {MAX_SCANS}, re-encode it")
    return size


def check_registration(frames: Sequence[bytes], name: str = "FRAMES") -> None:
    """Check a registration's frames, before any is decoded.

    Args:
        frames: whole JPEG or PNG files.
        name: name of the field, for the error message.

    Raises:
        BadInput: no frames, too many, too large together, or one that `check_frame` refuses.
    """
    if not 1 <= len(frames) <= MAX_REGISTRATION_FRAMES:
        raise BadInput(
            f"{name} holds {len(frames)} frames, must hold 1 to {MAX_REGISTRATION_FRAMES}: "
            "send every n-th frame of 10 to 20 seconds of footage"
        )
    total = sum(len(data) for data in frames)
    if total > MAX_REGISTRATION_BYTES:
        raise BadInput(f"{name} have {total:,} bytes together, must have at most {MAX_REGISTRATION_BYTES:,}")
    sizes = [check_frame(data, f"{name}[{k}]") for k, data in enumerate(frames)]
    pixels = sum(size.width * size.height for size in sizes)
    if pixels > MAX_REGISTRATION_PIXELS:
        raise BadInput(
            f"{name} have {pixels / 1e6:,.0f} megapixels together, must have at most "
            f"{MAX_REGISTRATION_PIXELS / 1e6:,.0f}: send fewer frames, or scale them down"
        )


def check_audio(audio: NDArray[np.float32], name: str = "AUDIO") -> None:
    """Check one audio window.

    Args:
        audio: float32 [6400].
        name: name of the field, for the error message.

    Raises:
        BadInput: wrong length, not-a-number or infinite samples, or samples far outside [-1, 1].
    """
    if audio.shape != (WINDOW_SAMPLES,):
        raise BadInput(f"{name} has shape {list(audio.shape)}, must be [{WINDOW_SAMPLES}] samples")
    peak = float(np.abs(audio).max())  # not-a-number propagates
    if not np.isfinite(peak):
        wrong = int(np.count_nonzero(~np.isfinite(audio)))
        raise BadInput(f"{name} has {wrong} samples that are not finite, must be numbers in [-1, 1]")
    if peak > MAX_AMPLITUDE:
        raise BadInput(f"{name} reaches {peak:g}, must be float samples in [-1, 1]: divide integers by their range")


def _png_size(head: bytes, name: str) -> Size:
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise BadInput(f"{name} is truncated: a PNG without its header")
    length, _, width, height, depth, kind = struct.unpack(">I4sIIBB", head[8:26])
    if length != 13 or depth not in _PNG_DEPTHS.get(kind, ()):
        raise BadInput(f"{name} is a damaged PNG: its header has colour type {kind} with {depth} bits")
    return Size(width, height)


def _check_chunks(data: memoryview, name: str) -> None:
    """Check a PNG's chunks: it must have pixels, and only one picture."""
    pixels = False
    extras = 0
    position = 33
    for _ in range(MAX_SEGMENTS):
        if position + 12 > len(data):
            raise BadInput(f"{name} is truncated: a PNG whose chunks do not end within its {len(data):,} bytes")
        chunk = data[position + 4 : position + 8].tobytes()
        if chunk == b"IEND":
            if not pixels:
                raise BadInput(f"{name} is a PNG without pixels, send a whole picture")
            return
        if chunk in (b"IHDR", b"acTL"):
            raise BadInput(f"{name} is a PNG of several pictures, send one")
        pixels = pixels or chunk == b"IDAT"
        extras += chunk != b"IDAT"
        if extras > MAX_EXTRAS:
            raise BadInput(f"{name} is a PNG of more than {MAX_EXTRAS} chunks other than pixels: re-encode it")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise BadInput(f"{name} is a PNG of more than {MAX_SEGMENTS:,} chunks: re-encode it")


def _jpeg_size(data: memoryview, name: str) -> Size:
    """Return the size in the frame header of a JPEG."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + 4 > len(data):
            break
        if data[position] != 0xFF:
            raise BadInput(f"{name} is a damaged JPEG: no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # fill bytes and markers without a segment
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):  # end of image, or pixels, before any frame header
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAME_HEADERS:
            if marker not in (_BASELINE, _EXTENDED, _PROGRESSIVE):
                raise BadInput(f"{name} must be a baseline or progressive JPEG, got SOF{marker - 0xC0}")
            if position + 10 > len(data):
                break
            if data[position + 4] != 8:
                raise BadInput(f"{name} is a JPEG of {data[position + 4]} bits per sample, must be 8")
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return Size(width, height)
        position += 2 + max(length, 2)
    else:
        raise BadInput(f"{name} is a JPEG of more than {MAX_SEGMENTS:,} segments: re-encode it")
    raise BadInput(f"{name} is truncated: a JPEG without a frame header in its {len(data):,} bytes")
