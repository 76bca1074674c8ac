"""Reading of video and photo files: every frame with its exact time, and no silent guesses."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from insync.client.media.files import LONGEST_DELAY_SAMPLES, LONGEST_LEAD_S, chosen, kinds, opened, pictures, sounds
from insync.client.media.hdr import HLG, PQ, table
from insync.client.media.orientation import UPRIGHT, Orientation, orientation_of
from insync.client.media.photo import ANIMATION_TIME_BASE, animation, frame_of, read_still
from insync.client.media.yuv import NATIVE_FORMATS, YuvPicture, plane_views, tag_like
from insync.core.errors import NoVideoTrack, UnreadableMedia
from insync.core.spec import SAMPLE_RATE_HZ

__all__ = ["DecodedFrame", "VideoFile"]

PHOTO_FPS = 25
PHOTO_MAX_SIDE = 1920  # pixels; larger photos are scaled down to this
LONGEST_STEP_S = 60  # between two frames; a longer one is a damaged time stamp, or the joint of two files
COARSEST = Fraction(1, 1000)  # time base, in seconds
_PHOTO_TIME_BASE = Fraction(1, 12_800)
_BT709 = 1
_LIMITED_RANGE = 1


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame, in a format of `NATIVE_FORMATS`.

    Attributes:
        pts: its time in the file's time base, 0 for the first frame, strictly rising.
        frame: an av.VideoFrame; the consumer may keep and change it.
    """

    pts: int
    frame: Any


class _Times:
    """Gives frames their times: from 0 on, strictly rising, whatever the file says.

    Where a file has no time, or one before the last frame's, or one a minute after it, the frame comes one usual step after the last; later times are
    counted from there.

    Args:
        step: usual time between two frames.
        time_base: unit of the times.
        scale: by which the file's times are multiplied.
    """

    def __init__(self, step: int, time_base: Fraction, scale: int = 1) -> None:
        self._step, self._longest, self._scale = step, int(LONGEST_STEP_S / time_base), scale
        self._last: int | None = None
        self._shift = 0
        self.mended = 0  # frames

    def __call__(self, pts: int | None) -> int:
        """Return the time of the next frame, from its time in the file."""
        pts = None if pts is None else int(pts) * self._scale
        if self._last is None:
            self._shift = -(pts or 0)
            self._last = 0
            self.mended += pts is None
            return 0
        now = self._last + self._step if pts is None else pts + self._shift
        if not self._last < now <= self._last + self._longest:
            now = self._last + self._step
            self._shift = now - (pts or 0)
            self.mended += 1
        elif pts is None:
            self.mended += 1
        self._last = now
        return now


class VideoFile:
    """A video, or a photo as a video of one frame.

    Args:
        path: the file.
        upright: turn and mirror the frames by their display matrix, for outputs that cannot carry it. Otherwise they stay as
            stored, and `orientation` is what displays them.
        track: number of the video track, from 1; None takes the file's default one.
        playable: convert the frames to 4:2:0 with even sides, which every player shows. Otherwise they keep their form where
            `NATIVE_FORMATS` has it.

    Attributes:
        width, height: size of the frames that `frames` yields, in pixels.
        format: pixel format, one of `NATIVE_FORMATS`.
        fps: average frames per second.
        time_base: unit of every pts, in seconds.
        step: usual time between two frames, in units of `time_base`.
        frames_expected: number of frames according to the file's header; 0 if unknown.
        orientation: how the frames that `frames` yields are turned and mirrored for display.
        lead_s: seconds by which the file's own sound begins before its first picture; less than an encoder's delay counts as 0.
            Sound that replaces it begins there too.
        pixel_aspect: a pixel's width divided by its height.
        colours: (colour space, range, primaries, transfer), as FFmpeg's numbers.
        photo: whether this is a still picture.
        skipped: number of packets that could not be decoded.
        mended: number of frames whose time was missing or wrong, once `frames` has run to its end.
        notes: messages for the user about conversions.

    Raises:
        UnreadableMedia: the file is missing, empty, damaged or of an unknown format.
        NoVideoTrack: it has no video track.
        BadInput: there is no track of this number.
    """

    def __init__(self, path: Path, upright: bool = False, track: int | None = None, playable: bool = False) -> None:
        self.path = path
        self.notes: list[str] = []
        self.skipped = self.mended = 0
        self._upright, self._number, self._playable = upright, track, playable
        self._scale = 1  # the file's time base divided by ours
        self._even = False  # whether frames are cropped to even sides
        self.pixel_aspect, self.lead_s = Fraction(1), Fraction(0)
        self._still = self._animated = None
        if path.is_file():  # whatever else it is, `opened` says
            self._still = read_still(path)
            self._animated = None if self._still else animation(path)
        self.photo = self._still is not None
        first = next(self._raw(), None)
        if first is None:
            raise UnreadableMedia(f"{path}: no video frame can be decoded; the file may be damaged")
        self._deinterlaced = bool(first.interlaced_frame)
        self._hdr = int(first.color_trc) if int(first.color_trc) in (PQ, HLG) else 0
        self.orientation = UPRIGHT if self.photo else orientation_of(first)
        if self.photo or self._animated:
            self._describe_picture(first)
        else:
            self._describe_track()
        self.step = max(1, round(1 / (self.fps * self.time_base)))
        if self._deinterlaced or self._hdr:
            first = next(self._smooth(self._raw()))
        self.format = self._target_format(first)
        shown = self._converted(first)
        self._note_changes()
        if upright:
            if self.orientation.sideways:
                self.pixel_aspect = 1 / self.pixel_aspect
            self.orientation = UPRIGHT
        self.width, self.height = int(shown.width), int(shown.height)
        self.colours = (
            int(shown.colorspace),
            int(shown.color_range),
            int(shown.color_primaries),
            int(shown.color_trc),
        )

    def frames(self) -> Iterator[DecodedFrame]:
        """Yield every frame from the first on."""
        times = _Times(self.step, self.time_base, self._scale)
        for frame in self._smooth(self._raw()):
            yield DecodedFrame(times(frame.pts), self._converted(frame))
        self.mended = times.mended

    def keyframes(self) -> Iterator[Any]:
        """Yield only the key frames, as av.VideoFrames; skipping the others is fast."""
        for frame in self._smooth(self._raw(keyframes=True), keyframes=True):
            yield self._converted(frame)

    def picture(self, frame: Any) -> YuvPicture:
        """Return a frame of this file as a picture for the stream."""
        return YuvPicture(frame, self.orientation, float(self.pixel_aspect))

    def _track(self, container: Any) -> tuple[Any, list[str]]:
        """Return the video track of an opened file, and notes on the choice."""
        tracks = pictures(container)
        if not tracks:
            raise NoVideoTrack(f"{self.path}: no video track and no photo; the file holds {kinds(container)}")
        track, notes = chosen(self.path, "video", tracks, self._number)
        track.thread_type = "AUTO"
        return track, notes

    def _describe_track(self) -> None:
        """Read frame rate, time base, length and pixel aspect from the file's header."""
        with opened(self.path) as container:
            track, notes = self._track(container)
            self.notes += notes
            self.fps = Fraction(track.average_rate or track.guessed_rate or PHOTO_FPS)
            # Fine enough for frames between those of a file that has few.
            self._scale = math.ceil(Fraction(track.time_base) / COARSEST)
            self.time_base = Fraction(track.time_base) / self._scale
            self.frames_expected = int(track.frames) or self._frames_by_duration(container, track)
            self.lead_s = _lead_s(container, track)
            # The container's aspect wins over the codec's, as in players.
            aspect = track.sample_aspect_ratio or track.codec_context.sample_aspect_ratio
            if aspect and aspect > 0:
                self.pixel_aspect = Fraction(aspect)

    def _describe_picture(self, first: Any) -> None:
        """Set the same for a photo, and for a picture that Pillow animates."""
        self.fps, self.time_base, self.frames_expected = Fraction(PHOTO_FPS), _PHOTO_TIME_BASE, 1
        if self.photo:
            if max(first.width, first.height) > PHOTO_MAX_SIDE:
                self.notes.append(f"{first.width}×{first.height} photo, scaled down to {PHOTO_MAX_SIDE} pixels")
            if self._still is not None and self._still.transparent:
                self.notes.append("transparent parts of the photo become black")
            return
        at = [ms for ms, _ in animation(self.path) or ()]
        self.time_base, self.frames_expected = ANIMATION_TIME_BASE, len(at)
        self.fps = Fraction(1000 * (len(at) - 1), max(1, at[-1])).limit_denominator(1000)

    def _note_changes(self) -> None:
        """Note what is changed about every frame."""
        if not self.orientation.exact:
            self.notes.append(
                "the display matrix does more than turn and mirror; for the face, the nearest of these is taken"
            )
        if self._deinterlaced:
            self.notes.append("interlaced video: it is deinterlaced, one frame from two fields")
        if self._hdr:
            name = "PQ" if self._hdr == PQ else "HLG"
            self.notes.append(f"HDR video ({name}): it is tone-mapped to SDR (BT.709, 8 bits); the result is no HDR")

    def _raw(self, keyframes: bool = False) -> Iterator[Any]:
        """Yield the decoded frames, or only the key frames, unconverted; skip and count packets that cannot be decoded."""
        if self._still is not None:
            yield frame_of(self._still.rgb, 0)
            return
        if self._animated is not None:
            yield from (frame_of(rgb, at) for at, rgb in animation(self.path) or ())
            return
        with opened(self.path) as container:
            track, _ = self._track(container)
            if keyframes:
                track.codec_context.skip_frame = "NONKEY"
            try:
                # AVI has no times of display, and FFmpeg's guess is wrong with B-frames. Frames come in that order, so they take the times of decoding in turn.
                unknown = container.format.name == "avi"
                waiting: deque[int] = deque()
                for packet in container.demux(track):
                    if (unknown or packet.pts is None) and packet.dts is not None and packet.size:
                        waiting.append(packet.dts)
                    try:
                        for frame in packet.decode():
                            if waiting:
                                frame.pts = waiting.popleft()
                            yield frame
                    except av.error.InvalidDataError:
                        self.skipped += 1
            except av.error.InvalidDataError:
                self.skipped += 1  # the container is truncated here
            except (av.error.FFmpegError, OSError) as exc:
                raise UnreadableMedia(f"{self.path}: reading failed: {exc}") from exc

    def _smooth(self, frames: Iterator[Any], keyframes: bool = False) -> Iterator[Any]:
        """Yield frames in SDR and without the combs of interlacing, one for each.

        Args:
            frames: decoded frames, in order.
            keyframes: whether they are only the key frames, which cannot help each other.
        """
        steps = []
        if self._deinterlaced:
            steps.append(
                ("estdif", "mode=frame:deint=interlaced")
                if keyframes
                else ("bwdif", "mode=send_frame:deint=interlaced")
            )
        if self._hdr:
            steps += [
                ("scale", "in_color_matrix=bt2020:in_range=auto:out_range=pc"), ("format", "gbrp10le"), ("lut3d", str(table(self._hdr))),
                ("scale", "in_range=pc:out_color_matrix=bt709:out_range=tv"), ("format", "yuv420p"),
                ("setparams", "colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"),
            ]  # fmt: skip
        if not steps:
            yield from frames
            return
        unit, graph = self.time_base * self._scale, None
        for frame in frames:
            if graph is None:
                graph = av.filter.Graph()
                source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=unit)
                nodes = [source, *(graph.add(*step) for step in steps), graph.add("buffersink")]
                graph.link_nodes(*nodes).configure()
            graph.push(frame)
            yield from _pulled(graph, unit)
        if graph is not None:
            graph.push(None)
            yield from _pulled(graph, unit)

    @staticmethod
    def _frames_by_duration(container: Any, stream: Any) -> int:
        if stream.duration and stream.average_rate:
            return int(stream.duration * stream.time_base * stream.average_rate + Fraction(1, 2))
        if container.duration and stream.average_rate:
            return int(Fraction(container.duration, av.time_base) * stream.average_rate + Fraction(1, 2))
        return 0

    def _target_format(self, frame: Any) -> str:
        if self.photo:
            return "yuv420p"
        name = str(frame.format.name)
        if self._playable:
            return self._playable_format(frame, name)
        across, down = 64 // max(1, frame.format.chroma_width(64)), 64 // max(1, frame.format.chroma_height(64))
        target = name if name in NATIVE_FORMATS else ""
        if not target:
            if name.startswith("gray") or (across >= 2 and down >= 2):
                target = "yuv420p"
            else:
                target = "yuv422p" if across >= 2 else "yuv444p"
        if (NATIVE_FORMATS[target][1] == 2 and frame.width % 2) or (
            NATIVE_FORMATS[target][2] == 2 and frame.height % 2
        ):
            target = "yuvj444p" if target.startswith("yuvj") else "yuv444p"  # subsampled chroma needs even sizes
        if self._upright and target in ("yuv422p", "yuvj422p") and self.orientation.sideways:
            target = target.replace("422", "444")  # after a quarter turn, its chroma would be subsampled vertically
        if target != name:
            self.notes.append(f"pixel format {name} is converted to {target}{_lost(name)}")
        return target

    def _playable_format(self, frame: Any, name: str) -> str:
        target = name if name in ("yuv420p", "yuvj420p") else "yuv420p"
        if target != name:
            self.notes.append(f"pixel format {name} is converted to {target}, which all players show{_lost(name)}")
        if frame.width % 2 or frame.height % 2:
            self._even = True
            self.notes.append(f"{frame.width}×{frame.height} is cropped to even sides, which all players show")
        return target

    def _converted(self, frame: Any) -> Any:
        """Convert a frame to `format`, and turn it upright if `upright` is set; return it as it is if nothing changes."""
        if self.photo:
            return _photo_frame(frame)
        orientation = orientation_of(frame) if self._upright else UPRIGHT
        if self._even:
            frame = _cropped(frame)
        if frame.format.name != self.format:
            frame = _reformatted(frame, self.format)
        return _upright(frame, orientation) if orientation.turns or orientation.mirrored else frame


def _lead_s(container: Any, track: Any) -> Fraction:
    """Return by how many seconds a file's first audio track begins before a video track; see `VideoFile`."""
    (sound, *_) = sounds(container) or [None]
    if sound is None or sound.start_time is None or track.start_time is None:
        return Fraction(0)
    lead_s = track.start_time * Fraction(track.time_base) - sound.start_time * Fraction(sound.time_base)
    return (
        lead_s
        if Fraction(LONGEST_DELAY_SAMPLES, sound.rate or SAMPLE_RATE_HZ) < lead_s <= LONGEST_LEAD_S
        else Fraction(0)
    )


def _lost(pixel_format: str) -> str:
    """Return what a conversion from a pixel format loses besides, for a note."""
    if pixel_format.startswith("yuva") or pixel_format in ("rgba", "argb", "bgra", "abgr", "gbrap", "ya8", "pal8"):
        return "; transparent parts become opaque"
    return ""


def _reformatted(frame: Any, pixel_format: str) -> Any:
    """Return a frame in a YUV format, at the same time; RGB becomes BT.709 in limited range."""
    pts, time_base = frame.pts, frame.time_base
    if frame.format.is_rgb:
        frame = frame.reformat(format=pixel_format, dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
        frame.colorspace, frame.color_range = _BT709, _LIMITED_RANGE
    else:
        frame = frame.reformat(format=pixel_format)
    frame.pts, frame.time_base = pts, time_base
    return frame


def _cropped(frame: Any) -> Any:
    """Copy a frame without the last column or row of odd sides; chroma is sampled at every pixel then."""
    if frame.format.name not in ("yuv444p", "yuvj444p"):
        frame = _reformatted(frame, "yuvj444p" if frame.format.name.startswith("yuvj") else "yuv444p")
    even = av.VideoFrame(frame.width // 2 * 2, frame.height // 2 * 2, frame.format.name)
    for target, source in zip(plane_views(even), plane_views(frame), strict=True):
        target[...] = source[: even.height, : even.width]
    tag_like(even, frame)
    even.pts, even.time_base = frame.pts, frame.time_base
    return even


def _pulled(graph: Any, time_base: Fraction) -> Iterator[Any]:
    """Yield what a filter graph has ready, with times in `time_base`."""
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if frame.pts is not None:
            frame.pts, frame.time_base = round(frame.pts * Fraction(frame.time_base) / time_base), time_base
        yield frame


def _photo_frame(frame: Any) -> Any:
    """Convert a photo to the format that all video players support: BT.709, limited range, 4:2:0, even sides."""
    scale = min(1.0, PHOTO_MAX_SIDE / max(frame.width, frame.height))
    width, height = (max(2, round(side * scale) // 2 * 2) for side in (frame.width, frame.height))
    frame = frame.reformat(
        width, height, "yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE, interpolation="AREA"
    )
    frame.colorspace = frame.color_primaries = frame.color_trc = _BT709
    frame.color_range = _LIMITED_RANGE
    return frame


def _upright(frame: Any, orientation: Orientation) -> Any:
    """Copy a frame as it is displayed."""
    width, height = (frame.height, frame.width) if orientation.sideways else (frame.width, frame.height)
    shown = av.VideoFrame(width, height, frame.format.name)
    for target, source in zip(plane_views(shown), plane_views(frame), strict=True):
        target[...] = orientation.upright(source)
    tag_like(shown, frame)
    shown.pts, shown.time_base = frame.pts, frame.time_base
    return shown
