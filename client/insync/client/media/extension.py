"""The order of frames where the audio is longer than the video."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from insync.client.media.reader import DecodedFrame, VideoFile
from insync.client.media.yuv import copy_frame
from insync.core.errors import BadInput

__all__ = ["EXTENSIONS", "extended"]

EXTENSIONS = ("bounce", "loop", "freeze", "none")
_CHUNK_BYTES = 96 * 2**20  # of frames held in memory while a video runs backwards


def extended(video: VideoFile, until_s: Fraction, extend: str, trim: bool) -> Iterator[DecodedFrame]:
    """A video's frames, going on until the audio ends.

    Args:
        video: the source. A photo stands still, whatever `extend` says.
        until_s: the audio's end.
        extend: after the video's end it runs backwards and forwards in turn ("bounce"), starts again ("loop"), stands
            still ("freeze"), or ends ("none").
        trim: end at the audio's end, where the video is longer.

    Yields:
        Frames with rising pts; those of the source keep theirs.
    """
    if extend not in EXTENSIONS:
        raise BadInput(f"extend is {extend!r}; allowed: {', '.join(EXTENSIONS)}")
    end = until_s / video.time_base  # in ticks
    times: list[int] = []
    last: DecodedFrame | None = None
    for frame in video.frames():
        if trim and times and frame.pts >= end:
            return
        times.append(frame.pts)
        if video.photo or extend == "freeze":
            last = DecodedFrame(frame.pts, copy_frame(frame.frame))
        yield frame
    if extend == "none" and not video.photo:
        return
    now = times[-1]
    if last is not None:
        while (now := now + video.step) < end:
            yield DecodedFrame(now, copy_frame(last.frame))
        return
    if len(times) == 1:
        extend = "loop"  # one frame has no way back
    forwards = extend == "loop"
    while now + video.step < end:
        if forwards:
            offset = now + video.step if extend == "loop" else now
            source = video.frames()
            if extend == "bounce":
                next(source, None)  # the turning frame was shown already
            for frame in source:
                if offset + frame.pts >= end:
                    return
                now = offset + frame.pts
                yield DecodedFrame(now, frame.frame)
        else:
            offset = now + times[-1]
            for frame in _backwards(video, times[:-1]):
                if offset - frame.pts >= end:
                    return
                now = offset - frame.pts
                yield DecodedFrame(now, frame.frame)
        forwards = extend == "loop" or not forwards


def _backwards(video: VideoFile, times: list[int]) -> Iterator[DecodedFrame]:
    """The frames of these times in reverse, decoded again in pieces that fit into memory."""
    size = max(8, _CHUNK_BYTES // (video.width * video.height * 3))
    for end in range(len(times), 0, -size):
        chunk = times[max(0, end - size) : end]
        yield from reversed(video.between(chunk[0], chunk[-1]))
