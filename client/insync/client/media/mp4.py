"""The one thing that PyAV cannot write: the display matrix of an MP4 or MOV file's video track.

Boxes as in ISO/IEC 14496-12: a 32-bit length, a four-letter type, the content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["write_display_matrix"]

_MATRIX_OFFSET = {0: 40, 1: 52}  # in a tkhd box's content, by its version
_MATRIX = struct.Struct(">9i")


def write_display_matrix(path: Path, matrix: tuple[int, ...]) -> None:
    """Writes a display matrix into the track header of every video track, in place.

    Args:
        path: an MP4 or MOV file.
        matrix: nine integers, as FFmpeg's side data gives them.

    Raises:
        ValueError: the file has no video track header.
    """
    written = False
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        for kind, start, end in _boxes(file, 0, size):
            if kind != b"moov":
                continue
            for track, track_start, track_end in list(_boxes(file, start, end)):
                if track != b"trak" or not _is_video(file, track_start, track_end):
                    continue
                for header, header_start, _ in list(_boxes(file, track_start, track_end)):
                    if header == b"tkhd":
                        file.seek(header_start)
                        offset = _MATRIX_OFFSET[file.read(1)[0]]
                        file.seek(header_start + offset)
                        file.write(_MATRIX.pack(*matrix))
                        written = True
    if not written:
        raise ValueError(f"{path} has no video track header")


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the content of each box in a range of the file."""
    while start + 8 <= end:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        content = start + 8
        if length == 1:  # 64-bit length follows
            (length,) = struct.unpack(">Q", file.read(8))
            content += 8
        elif length == 0:  # to the end
            length = end - start
        if length < content - start:
            return
        yield kind, content, start + length
        start += length


def _is_video(file: BinaryIO, start: int, end: int) -> bool:
    for kind, media_start, media_end in list(_boxes(file, start, end)):
        if kind == b"mdia":
            for inner, handler_start, _ in list(_boxes(file, media_start, media_end)):
                if inner == b"hdlr":
                    file.seek(handler_start + 8)
                    return file.read(4) == b"vide"
    return False
