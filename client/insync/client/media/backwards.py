"""Frames in reverse order: a video decodes forwards only, so the frames are kept in a temporary file in which each stands alone."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from typing import Any

import av

from insync.client.media.yuv import copy_frame
from insync.core.errors import UnreadableMedia

__all__ = ["Spool"]


class Spool:
    """Keeps frames on the disk without loss (H.264, key frames only), and returns them by number, in any order.

    Close it to free the disk.

    Args:
        width, height: size of the frames, in pixels.
        pixel_format: their format.
    """

    def __init__(self, width: int, height: int, pixel_format: str) -> None:
        self._file = tempfile.TemporaryFile(prefix="insync-")  # noqa: SIM115  closed by `close`
        self._places: list[tuple[int, int]] = []  # of each frame's packet: position and bytes
        self._tags: list[tuple[int, int, int, int]] = []
        encoder: Any = av.CodecContext.create("libx264", "w")
        encoder.width, encoder.height, encoder.pix_fmt = width, height, pixel_format
        encoder.time_base = Fraction(1, 25)
        encoder.options = {"preset": "ultrafast", "qp": "0", "x264-params": "keyint=1:bframes=0:log=-1"}
        encoder.thread_count = 1  # with more, packets come late
        self._encoder = encoder
        self._decoder: Any = av.CodecContext.create("h264", "r")
        self._decoder.thread_count = 1

    def __len__(self) -> int:
        return len(self._tags)

    def add(self, frame: Any) -> None:
        """Keep a frame; it stays as it is."""
        copy = copy_frame(frame)
        copy.pts, copy.time_base = len(self._tags), Fraction(1, 25)
        self._tags.append(
            (int(frame.colorspace), int(frame.color_range), int(frame.color_primaries), int(frame.color_trc))
        )
        self._write(self._encoder.encode(copy))

    def finish(self) -> None:
        """Write what the encoder holds back; call it after the last frame."""
        self._write(self._encoder.encode(None))

    def __getitem__(self, number: int) -> Any:
        """Return a copy of a frame, by its number in the order of `add`.

        Raises:
            UnreadableMedia: the temporary file cannot be read again.
        """
        at, size = self._places[number]
        self._file.seek(at)
        frames = self._decoder.decode(av.Packet(self._file.read(size)))
        if not frames:
            frames = self._decoder.decode(None)
            self._decoder.flush_buffers()
        if len(frames) != 1:
            raise UnreadableMedia(f"frame {number} of the temporary file for playing backwards cannot be read")
        frame = frames[0]
        frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = self._tags[number]
        return frame

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def _write(self, packets: list[Any]) -> None:
        for packet in packets:
            self._file.seek(0, 2)
            self._places.append((self._file.tell(), packet.size))
            self._file.write(bytes(packet))
