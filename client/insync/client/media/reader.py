"""Reading of video, photo and audio files with PyAV: every frame with its exact time, and no silent guesses."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from insync.client.media.speech import packed, shifted, speech_chunks
from insync.client.media.yuv import NATIVE_FORMATS, YuvPicture, plane_views
from insync.core.errors import BadInput, NoAudioTrack, NoVideoTrack, UnreadableMedia
from insync.core.spec import SAMPLE_RATE_HZ

__all__ = ["AudioFile", "DecodedFrame", "VideoFile"]

PHOTO_FPS = 25
PHOTO_MAX_SIDE = 1920  # pixels; larger photos are scaled down to this
LONGEST_DELAY_SAMPLES = 2_112  # that an encoder puts before the sound: the AAC encoder of Apple
LONGEST_LEAD_S = 60  # of silence before a track; a later start is a damaged or a live stream's timestamp
_PHOTO_TIME_BASE = Fraction(1, 12_800)
_BT709 = 1
_LIMITED_RANGE = 1
# Formats that FFmpeg recognises in plain text; never meant as a video.
_NOT_MEDIA = {"tty", "lrc", "srt", "webvtt", "ass"}


@dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame, in a format of `NATIVE_FORMATS`.

    Attributes:
        pts: its time in the file's time base, 0 for the first frame, strictly rising.
        frame: an av.VideoFrame; the consumer may keep and change it.
    """

    pts: int
    frame: Any


class VideoFile:
    """A video, or a photo as a video of one frame.

    Args:
        path: the file.
        upright: rotate the frames by their rotation tag, for outputs that cannot carry the tag. Otherwise they stay as
            stored, and `turns` and `matrix` are their display rotation.

    Attributes:
        width, height: size of the frames that `frames` yields, in pixels.
        format: pixel format, one of `NATIVE_FORMATS`.
        fps: average frames per second.
        time_base: unit of every pts, in seconds.
        step: usual time between two frames, in units of `time_base`.
        frames_expected: number of frames according to the file's header; 0 if unknown.
        turns: counter-clockwise quarter turns that make the frames upright.
        matrix: the file's display matrix, nine integers as in the MP4 format, or None.
        pixel_aspect: a pixel's width divided by its height.
        colours: (colour space, range, primaries, transfer), as FFmpeg's numbers.
        photo: whether this is a still picture.
        notes: messages for the user about conversions.

    Raises:
        UnreadableMedia: the file is missing, empty, damaged or of an unknown format.
        NoVideoTrack: it has no video track.
    """

    def __init__(self, path: Path, upright: bool = False) -> None:
        self.path = path
        self.notes: list[str] = []
        self.skipped = 0  # packets that could not be decoded
        self._upright = upright
        with _opened(path) as container:
            stream = self._stream(container)
            # A photo is opened by an image demuxer. Cover art in an audio file has no frame rate either, but is not a photo.
            self.photo = container.format.name == "image2" or container.format.name.endswith("_pipe")
            first = next(self._raw(container, stream), None)
            if first is None:
                raise UnreadableMedia(f"{path}: no video frame can be decoded; the file may be damaged")
            self._source_format = first.format.name
            self.turns, self.matrix = _orientation(first)
            self.fps = Fraction(stream.average_rate or stream.guessed_rate or PHOTO_FPS)
            self.time_base = Fraction(stream.time_base)
            self.frames_expected = int(stream.frames) or self._frames_by_duration(container, stream)
            aspect = stream.codec_context.sample_aspect_ratio
            self.pixel_aspect = Fraction(aspect) if aspect and aspect > 0 else Fraction(1)
            if self.photo:
                self.fps, self.time_base, self.frames_expected = Fraction(PHOTO_FPS), _PHOTO_TIME_BASE, 1
                self.pixel_aspect = Fraction(1)
            self.format = self._target_format(first)
            shown = self._converted(first)
            if upright or self.photo:
                if self.turns % 2:
                    self.pixel_aspect = 1 / self.pixel_aspect
                self.turns, self.matrix = 0, None
            self.width, self.height = int(shown.width), int(shown.height)
            self.colours = (
                int(shown.colorspace),
                int(shown.color_range),
                int(shown.color_primaries),
                int(shown.color_trc),
            )
        self.step = max(1, round(1 / (self.fps * self.time_base)))

    @property
    def sideways(self) -> bool:
        """Whether width and height are swapped for display."""
        return self.turns % 2 == 1

    def frames(self) -> Iterator[DecodedFrame]:
        """Yield every frame from the first on."""
        with _opened(self.path) as container:
            stream = self._stream(container)
            start: int | None = None
            last = -1
            for frame in self._raw(container, stream):
                pts = last + self.step if frame.pts is None or self.photo else int(frame.pts) - (start or 0)
                if start is None:
                    start = int(frame.pts or 0)
                    pts = 0
                last = pts = max(pts, last + 1)
                yield DecodedFrame(pts, self._converted(frame))
                if self.photo:
                    return
            self._start = start or 0

    def between(self, first: int, last: int) -> list[DecodedFrame]:
        """Return the frames with first ≤ pts ≤ last, decoded again. `frames` must have run to its end before."""
        for seek in (True, False):  # some files do not support seeking: then read from the start
            found: list[DecodedFrame] = []
            with _opened(self.path) as container:
                stream = self._stream(container)
                if seek:
                    container.seek(first + self._start, stream=stream, backward=True)
                for frame in self._raw(container, stream):
                    if frame.pts is None:
                        break
                    pts = int(frame.pts) - self._start
                    if pts > first and not found:
                        break
                    if pts > last:
                        return found
                    if pts >= first:
                        found.append(DecodedFrame(pts, self._converted(frame)))
                else:
                    if found:
                        return found
        raise UnreadableMedia(
            f"{self.path}: the frames around {float(first * self.time_base):.2f} s cannot be read again"
        )

    def keyframes(self) -> Iterator[Any]:
        """Yield only the key frames, as av.VideoFrames; skipping the others is fast."""
        with _opened(self.path) as container:
            stream = self._stream(container)
            stream.codec_context.skip_frame = "NONKEY"
            for frame in self._raw(container, stream):
                yield self._converted(frame)

    def picture(self, frame: Any) -> YuvPicture:
        """Return a frame of this file as a picture for the stream."""
        return YuvPicture(frame, self.turns, float(self.pixel_aspect))

    def _stream(self, container: Any) -> Any:
        videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not videos or container.format.name in _NOT_MEDIA:
            kinds = sorted({s.type for s in container.streams}) or ["nothing"]
            raise NoVideoTrack(f"{self.path}: no video track and no photo; the file holds {', '.join(kinds)}")
        videos[0].thread_type = "AUTO"
        return videos[0]

    def _raw(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield the decoded frames unconverted; skip and count packets that cannot be decoded."""
        try:
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    self.skipped += 1
        except av.error.InvalidDataError:
            self.skipped += 1  # the container is truncated here
        except (av.error.FFmpegError, OSError) as exc:
            raise UnreadableMedia(f"{self.path}: reading failed: {exc}") from exc

    @staticmethod
    def _frames_by_duration(container: Any, stream: Any) -> int:
        if stream.duration and stream.average_rate:
            return int(stream.duration * stream.time_base * stream.average_rate + Fraction(1, 2))
        if container.duration and stream.average_rate:
            return int(Fraction(container.duration, av.time_base) * stream.average_rate + Fraction(1, 2))
        return 0

    def _target_format(self, frame: Any) -> str:
        if self.photo:
            if max(frame.width, frame.height) > PHOTO_MAX_SIDE:
                self.notes.append(f"{frame.width}×{frame.height} photo, scaled down to {PHOTO_MAX_SIDE} pixels")
            return "yuv420p"
        name = str(frame.format.name)
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
        if self._upright and target in ("yuv422p", "yuvj422p") and self.turns % 2:
            target = target.replace("422", "444")  # after a quarter turn, its chroma would be subsampled vertically
        if target != name:
            self.notes.append(f"pixel format {name} is converted to {target}")
        return target

    def _converted(self, frame: Any) -> Any:
        """Convert a frame to `format`, and turn it upright if `upright` is set; return it as it is if nothing changes."""
        if self.photo:
            return self._photo(frame)
        turns = _orientation(frame)[0] if self._upright else 0
        if frame.format.name != self.format:
            pts, time_base = frame.pts, frame.time_base
            if frame.format.is_rgb:
                frame = frame.reformat(format=self.format, dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
                frame.colorspace, frame.color_range = _BT709, _LIMITED_RANGE
            else:
                frame = frame.reformat(format=self.format)
            frame.pts, frame.time_base = pts, time_base
        return _turned(frame, turns) if turns else frame

    def _photo(self, frame: Any) -> Any:
        """Convert a photo to the format that all video players support: BT.709, limited range, 4:2:0, even sides, upright."""
        turns = _orientation(frame)[0]
        scale = min(1.0, PHOTO_MAX_SIDE / max(frame.width, frame.height))
        width, height = (max(2, round(side * scale) // 2 * 2) for side in (frame.width, frame.height))
        frame = frame.reformat(
            width, height, "yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE, interpolation="AREA"
        )
        if turns:
            frame = _turned(frame, turns)
        frame.colorspace = frame.color_primaries = frame.color_trc = _BT709
        frame.color_range = _LIMITED_RANGE
        return frame


class AudioFile:
    """The first audio track of any file. The constructor decodes it once, to find its exact length.

    Time 0 is the file's first picture; without a video track, it is the start of an MP4 file's timeline, and in other files
    the track's first sample. If the track starts later, there is silence first, as in a player. If it starts earlier by no
    more than an encoder's delay, it is cut; a longer beginning is kept, and then time 0 is its first sample.

    Attributes:
        rate_hz: samples per second.
        layout: FFmpeg's name of the channel layout, such as "stereo".
        channels: number of channels.
        samples: number of samples per channel, with the silence.
        wide: whether samples have more than 16 bits.

    Raises:
        UnreadableMedia: the file is missing, empty, damaged or of an unknown format.
        NoAudioTrack: it has no audio track, or one of length 0.
        BadInput: a sample is not finite.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = 0
        self.rate_hz = 0
        self.layout = "mono"
        self.channels = 1
        self.wide = False
        for frame in self.frames():
            if not self.rate_hz:
                self.rate_hz, self.layout = int(frame.sample_rate), str(frame.layout.name)
                self.channels = int(frame.layout.nb_channels)
                self.wide = frame.format.name not in ("s16", "s16p", "u8", "u8p")
            if frame.format.name.startswith(("flt", "dbl")):
                finite = np.isfinite(packed(frame)).all(axis=1)
                if not finite.all():
                    at = self.samples + int(np.argmin(finite))
                    raise BadInput(
                        f"{path}: the audio's sample {at} ({at / self.rate_hz:.3f} s) is not a finite number; "
                        "every sample must be in [-1, 1]"
                    )
            self.samples += int(frame.samples)
        if not self.samples:
            raise NoAudioTrack(f"{path}: the audio track has length 0; there is nothing to speak")

    @property
    def duration_s(self) -> Fraction:
        """Exact duration in seconds."""
        return Fraction(self.samples, self.rate_hz)

    def frames(self) -> Iterator[Any]:
        """Yield the decoded av.AudioFrames from time 0 on. Only the order of samples counts, not the frames' own times."""
        with _opened(self.path) as container:
            if not container.streams.audio or container.format.name in _NOT_MEDIA:
                kinds = sorted({s.type for s in container.streams}) or ["nothing"]
                raise NoAudioTrack(f"{self.path}: no audio track; the file holds {', '.join(kinds)}")
            try:
                decoded = (
                    frame for packet in container.demux(container.streams.audio[0]) for frame in _decoded(packet)
                )
                first = next(decoded, None)
                if first is not None:
                    yield from shifted(itertools.chain((first,), decoded), _lead(container, first))
            except av.error.InvalidDataError:
                return  # the container is truncated here; use what was decoded
            except (av.error.FFmpegError, OSError) as exc:
                raise UnreadableMedia(f"{self.path}: reading failed: {exc}") from exc

    def speech(self) -> Iterator[NDArray[np.float32]]:
        """Yield the track at 16 kHz mono, in chunks float32 [N]; see `speech_chunks`."""
        left = round(self.duration_s * SAMPLE_RATE_HZ)
        for chunk in speech_chunks(self.frames()):
            yield chunk[:left]
            left -= len(chunk[:left])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        if os.path.getsize(path) == 0:
            raise UnreadableMedia(f"{path}: the file is empty (0 bytes)")
        container = av.open(str(path))
    except FileNotFoundError as exc:
        raise UnreadableMedia(f"{path}: there is no such file") from exc
    except IsADirectoryError as exc:
        raise UnreadableMedia(f"{path}: this is a folder, not a file") from exc
    except PermissionError as exc:
        raise UnreadableMedia(f"{path}: no permission to read it") from exc
    except (av.error.FFmpegError, OSError) as exc:
        raise UnreadableMedia(f"{path}: no video, photo or audio that FFmpeg can read, or a damaged file") from exc
    with container:
        yield container


def _decoded(packet: Any) -> list[Any]:
    try:
        return list(packet.decode())
    except av.error.InvalidDataError:
        return []  # a damaged packet; the rest of the track may be good


def _lead(container: Any, first: Any) -> int:
    """Return how many samples after time 0 an audio track's first frame starts; see `AudioFile`."""
    videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if first.pts is None or not first.time_base:
        return 0
    if videos and videos[0].start_time is not None:
        zero_s = videos[0].start_time * Fraction(videos[0].time_base)
    elif container.format.name.startswith("mov,") and not videos:
        zero_s = Fraction(0)
    else:
        return 0
    lead = round((first.pts * Fraction(first.time_base) - zero_s) * int(first.sample_rate))
    return lead if -LONGEST_DELAY_SAMPLES <= lead <= LONGEST_LEAD_S * first.sample_rate else 0


def _orientation(frame: Any) -> tuple[int, tuple[int, ...] | None]:
    """Return the counter-clockwise quarter turns that make a frame upright, and its display matrix."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, None
    matrix = tuple(int(value) for value in np.frombuffer(data, np.int32))
    return round(frame.rotation / 90) % 4, matrix


def _turned(frame: Any, turns: int) -> Any:
    """Copy a frame, rotated counter-clockwise by quarter turns."""
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    turned = av.VideoFrame(width, height, frame.format.name)
    for target, source in zip(plane_views(turned), plane_views(frame), strict=True):
        target[...] = np.rot90(source, turns)
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    turned.color_primaries, turned.color_trc = frame.color_primaries, frame.color_trc
    turned.pts, turned.time_base = frame.pts, frame.time_base
    return turned
