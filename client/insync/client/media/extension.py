"""The frames of an output: a video is extended where its audio is longer, and gets more frames where it holds a picture while somebody speaks."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from insync.client.media.reader import DecodedFrame, VideoFile
from insync.client.media.yuv import copy_frame
from insync.core.errors import BadInput

__all__ = ["EXTENSIONS", "extended", "filled"]

EXTENSIONS = ("bounce", "loop", "freeze", "none")
HELD_S = Fraction(6, 100)  # a picture that lasts longer is held: a mouth needs more frames than that
SPOKEN_STEP_S = Fraction(1, 25)  # at most, between the frames of a mouth that speaks
_CHUNK_BYTES = 96 * 2**20  # bytes of frames in memory while a video plays backwards


def extended(video: VideoFile, until_s: Fraction, extend: str, trim: bool) -> Iterator[DecodedFrame]:
    """Yield a video's frames, continued until the audio ends.

    Args:
        video: the source. A photo is always repeated, whatever `extend` is.
        until_s: end of the audio, in seconds.
        extend: after its end, the video plays backwards and forwards in turn ("bounce"), starts again ("loop"), repeats its
            last frame ("freeze"), or ends ("none").
        trim: end with the audio if the video is longer.

    Yields:
        Frames with increasing pts; the source's frames keep theirs.

    Raises:
        BadInput: `extend` is none of these.
    """
    if extend not in EXTENSIONS:
        raise BadInput(f"extend is {extend!r}; it must be one of {', '.join(EXTENSIONS)}")
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
        extend = "loop"  # one frame cannot play backwards
    forwards = extend == "loop"
    while now + video.step < end:
        if forwards:
            offset = now + video.step if extend == "loop" else now
            source = video.frames()
            if extend == "bounce":
                next(source, None)  # the frame at the turning point was already shown
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
    """Yield the frames with these pts in reverse, decoded again in chunks that fit into memory."""
    size = max(8, _CHUNK_BYTES // (video.width * video.height * 3))
    for end in range(len(times), 0, -size):
        chunk = times[max(0, end - size) : end]
        yield from reversed(video.between(chunk[0], chunk[-1]))


def filled(frames: Iterator[DecodedFrame], video: VideoFile, until_s: Fraction) -> Iterator[tuple[DecodedFrame, bool]]:
    """Yield frames, with copies between those that lie far apart, while somebody speaks.

    Args:
        frames: in order.
        video: where they are from.
        until_s: end of the audio, in seconds.

    Yields:
        Frames with increasing pts, and whether each was added.
    """
    held, step, end = HELD_S / video.time_base, SPOKEN_STEP_S / video.time_base, until_s / video.time_base
    last = next(frames, None)
    while last is not None:
        following = next(frames, None)
        gap = 0 if following is None else following.pts - last.pts
        count = -int(-gap // step) if gap > held else 1  # of frames in the gap, the first with it
        copies = [copy_frame(last.frame) for _ in range(1, count)] if last.pts < end else []
        yield last, False
        for number, copy in enumerate(copies, 1):
            pts = last.pts + round(number * Fraction(gap, count))
            if pts >= end:
                break
            yield DecodedFrame(pts, copy), True
        last = following
