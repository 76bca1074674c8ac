"""Checks a frame and an audio window before anything costly touches them.

A frame is judged by its structure alone: its kind, its size in pixels before any pixel is decoded, what it would cost
to decode, and whether it was cut off. JPEG: ITU-T T.81; PNG: ISO/IEC 15948.
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

MAX_AMPLITUDE = 4.0  # audio is in [-1, 1]; resampling may overshoot, 16-bit integers turned to float may not pass
MIN_SIDE = 16  # pixels
MAX_SEGMENTS = 20_000  # of a JPEG before its pixels, or chunks of a PNG: more are only there to be walked through
MAX_EXTRAS = 200  # chunks of a PNG beside its pixels: decoders may log a line about each
MAX_SCANS = 64  # of a progressive JPEG: each one goes through the whole picture again, and may take three bytes

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_SCAN = b"\xff\xda"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # bits by colour type
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC


class Size(NamedTuple):
    """Of a picture, in pixels, as stored (an EXIF turn is not applied)."""

    width: int
    height: int


def check_frame(data: bytes | memoryview, name: str = "FRAME") -> Size:
    """Checks one encoded frame.

    Args:
        data: a whole JPEG or PNG file.
        name: of the field, for the error's text.

    Returns:
        Its size.

    Raises:
        BadInput: it is empty, of another kind, cut off, too large or small in bytes or pixels, or made to be costly.
    """
    if len(data) == 0:
        raise BadInput(f"{name} is empty (0 bytes), expected a whole JPEG or PNG picture")
    if len(data) > MAX_FRAME_BYTES:
        raise BadInput(f"{name} has {len(data):,} bytes, allowed are up to {MAX_FRAME_BYTES:,}")
    head = bytes(data[:33])
    if head.startswith(b"\xff\xd8\xff"):
        size = _jpeg_size(memoryview(data), name)
        whole = bytes(data[-2:]) == b"\xff\xd9"
    elif head.startswith(_PNG):
        size = _png_size(head, name)
        whole = bytes(data[-12:]) == _PNG_END
    else:
        raise BadInput(f"{name} is neither JPEG nor PNG: it begins with bytes {head[:4].hex(' ')}")
    if size.width * size.height > MAX_PIXELS:
        raise BadInput(
            f"{name} is {size.width}×{size.height} ({size.width * size.height / 1e6:.1f} megapixels), "
            f"allowed are up to {MAX_PIXELS / 1e6:.1f} megapixels: scale it down"
        )
    if min(size) < MIN_SIDE or max(size) > MAX_SIDE:
        raise BadInput(
            f"{name} is {size.width}×{size.height}, allowed are sides from {MIN_SIDE} to {MAX_SIDE:,} pixels"
        )
    if not whole:
        raise BadInput(f"{name} is truncated: its {len(data):,} bytes have no end marker, send the whole picture")
    if head.startswith(_PNG):
        _check_chunks(memoryview(data), name)
    else:
        # Inside of compressed pixels these two bytes never meet; a thumbnail in the metadata may add one.
        scans = bytes(data).count(_SCAN)
        if scans > MAX_SCANS:
            raise BadInput(f"{name} is a JPEG of {scans} scans, allowed are up to {MAX_SCANS}: save it anew")
    return size


def check_registration(frames: Sequence[bytes], name: str = "FRAMES") -> None:
    """Checks a registration's frames, before any is decoded.

    Args:
        frames: whole JPEG or PNG files.
        name: of the field, for the error's text.

    Raises:
        BadInput: none, too many, too large together, or one that `check_frame` refuses.
    """
    if not 1 <= len(frames) <= MAX_REGISTRATION_FRAMES:
        raise BadInput(
            f"{name} holds {len(frames)} frames, allowed are 1 to {MAX_REGISTRATION_FRAMES}: "
            "send every n-th frame of 10 to 20 seconds of footage"
        )
    total = sum(len(data) for data in frames)
    if total > MAX_REGISTRATION_BYTES:
        raise BadInput(f"{name} have {total:,} bytes together, allowed are up to {MAX_REGISTRATION_BYTES:,}")
    sizes = [check_frame(data, f"{name}[{k}]") for k, data in enumerate(frames)]
    pixels = sum(size.width * size.height for size in sizes)
    if pixels > MAX_REGISTRATION_PIXELS:
        raise BadInput(
            f"{name} have {pixels / 1e6:,.0f} megapixels together, allowed are up to "
            f"{MAX_REGISTRATION_PIXELS / 1e6:,.0f}: send fewer frames, or scale them down"
        )


def check_audio(audio: NDArray[np.float32], name: str = "AUDIO") -> None:
    """Checks one audio window.

    Args:
        audio: float32 [6400].
        name: of the field, for the error's text.

    Raises:
        BadInput: another length, not-a-number or infinite samples, or samples far outside [-1, 1].
    """
    if audio.shape != (WINDOW_SAMPLES,):
        raise BadInput(f"{name} has shape {list(audio.shape)}, expected [{WINDOW_SAMPLES}] samples")
    peak = float(np.abs(audio).max())  # NaN wins over every number
    if not np.isfinite(peak):
        wrong = int(np.count_nonzero(~np.isfinite(audio)))
        raise BadInput(f"{name} has {wrong} samples that are not finite, expected numbers in [-1, 1]")
    if peak > MAX_AMPLITUDE:
        raise BadInput(f"{name} reaches {peak:g}, expected float samples in [-1, 1]: divide integers by their range")


def _png_size(head: bytes, name: str) -> Size:
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise BadInput(f"{name} is truncated: a PNG without its header")
    length, _, width, height, depth, kind = struct.unpack(">I4sIIBB", head[8:26])
    if length != 13 or depth not in _PNG_DEPTHS.get(kind, ()):
        raise BadInput(f"{name} is a damaged PNG: its header has colour type {kind} with {depth} bits")
    return Size(width, height)


def _check_chunks(data: memoryview, name: str) -> None:
    """Walks a PNG's chunks: the pixels have to be there, once."""
    pixels = False
    extras = 0
    position = 33
    for _ in range(MAX_SEGMENTS):
        if position + 12 > len(data):
            raise BadInput(f"{name} is truncated: a PNG whose chunks go on after its {len(data):,} bytes")
        chunk = data[position + 4 : position + 8].tobytes()
        if chunk == b"IEND":
            if not pixels:
                raise BadInput(f"{name} is a PNG without pixels")
            return
        if chunk in (b"IHDR", b"acTL"):
            raise BadInput(f"{name} is a PNG of several pictures, send one")
        pixels = pixels or chunk == b"IDAT"
        extras += chunk != b"IDAT"
        if extras > MAX_EXTRAS:
            raise BadInput(f"{name} is a PNG of more than {MAX_EXTRAS} chunks beside its pixels: save it anew")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise BadInput(f"{name} is a PNG of more than {MAX_SEGMENTS:,} chunks: save it anew")


def _jpeg_size(data: memoryview, name: str) -> Size:
    """Walks the segments up to the frame header."""
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
        if marker in (0xD9, 0xDA):  # the end, or pixels, before any frame header
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAME_HEADERS:
            if marker not in (_BASELINE, _EXTENDED, _PROGRESSIVE):
                raise BadInput(f"{name} is a JPEG of a rare kind (SOF{marker - 0xC0}), send baseline or progressive")
            if position + 10 > len(data):
                break
            if data[position + 4] != 8:
                raise BadInput(f"{name} is a JPEG of {data[position + 4]} bits per sample, expected 8")
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return Size(width, height)
        position += 2 + max(length, 2)
    else:
        raise BadInput(f"{name} is a JPEG of more than {MAX_SEGMENTS:,} segments: save it anew")
    raise BadInput(f"{name} is truncated: a JPEG without a frame header in its {len(data):,} bytes")
