"""The frames of an output: a video is extended where its audio is longer, and gets more frames where it holds a picture while somebody speaks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

from insync.client.media.backwards import Spool
from insync.client.media.reader import DecodedFrame, VideoFile
from insync.client.media.yuv import copy_frame
from insync.core.errors import BadInput

__all__ = ["EXTENSIONS", "extended", "filled"]

EXTENSIONS = ("bounce", "loop", "freeze", "none")
HELD_S = Fraction(6, 100)  # a picture that lasts longer is held: a mouth needs more frames than that
SPOKEN_STEP_S = Fraction(1, 25)  # at most, between the frames of a mouth that speaks


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
    forwards, spool = extend == "loop", None
    try:
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
                # The frames after this time play backwards, and no others are needed.
                spool = spool or _spooled(video, max(0, 2 * times[-1] - math.ceil(end)))
                offset = now + times[-1]
                for number in range(len(spool) - 1):
                    pts = times[-2 - number]
                    if offset - pts >= end:
                        return
                    now = offset - pts
                    yield DecodedFrame(now, spool[len(spool) - 2 - number])
            forwards = extend == "loop" or not forwards
    finally:
        if spool is not None:
            spool.close()


def _spooled(video: VideoFile, since: int) -> Spool:
    """Keep a video's frames from `since` on, decoded once, for playing backwards."""
    spool = Spool(video.width, video.height, video.format)
    for frame in video.frames():
        if frame.pts >= since:
            spool.add(frame.frame)
    spool.finish()
    return spool


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
