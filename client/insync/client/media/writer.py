"""Writing of the output: H.264 with the new audio, in a temporary file that is renamed when it is complete."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from insync.client.media.audio_reader import AudioFile
from insync.client.media.companions import companions_of, language_for
from insync.client.media.files import ffmpeg_name
from insync.client.media.reader import VideoFile
from insync.client.provenance.manifest import Mark, mark_as_synthetic, metadata_tag
from insync.core.errors import BadInput, UnwritableMedia

__all__ = ["CONTAINERS", "QUALITIES", "Quality", "VideoWriter", "check_output"]


@dataclass(frozen=True)
class Quality:
    """Encoder settings of a quality level.

    Attributes:
        video: options of libx264.
        audio_bits: AAC bit rate in bit/s per channel; 0 is lossless.
    """

    video: dict[str, str]
    audio_bits: int


# At crf 16, `superfast` takes half of `veryfast`'s CPU time (7 against 14 ms per 720p frame) and is a little closer to the
# source, but the file is twice as large. If size matters, "medium" and "low" are slower and smaller.
QUALITIES = {
    "lossless": Quality({"preset": "superfast", "qp": "0"}, 0),
    "high": Quality({"preset": "superfast", "crf": "16"}, 96_000),
    "medium": Quality({"preset": "veryfast", "crf": "21"}, 64_000),
    "low": Quality({"preset": "veryfast", "crf": "27"}, 48_000),
}


@dataclass(frozen=True)
class _Container:
    format: str
    lossless_audio: str
    display_matrix: bool  # whether the muxer can write one


CONTAINERS = {
    ".mp4": _Container("mp4", "alac", True),
    ".m4v": _Container("mp4", "alac", True),
    ".mov": _Container("mov", "alac", True),
    ".mkv": _Container("matroska", "flac", False),
}
_AAC_LAYOUTS = {"mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1"}


def check_output(out: Path, *sources: Path) -> None:
    """Check that `out` can be written, before any work is done.

    Raises:
        UnwritableMedia: its extension or folder does not work.
        BadInput: it is one of the sources.
    """
    if out.suffix.lower() not in CONTAINERS:
        raise UnwritableMedia(
            f"{out}: the output's extension is {out.suffix!r}; it must be one of {', '.join(CONTAINERS)}"
        )
    if out.is_dir():
        raise UnwritableMedia(f"{out}: this is a folder; name a file")
    if not out.absolute().parent.is_dir():
        raise UnwritableMedia(f"{out}: the folder {out.parent} does not exist")
    if not os.access(out.absolute().parent, os.W_OK):
        raise UnwritableMedia(f"{out}: no permission to write in {out.parent}")
    for source in sources:
        if out.exists() and source.exists() and out.samefile(source):
            raise BadInput(f"{out}: the output would overwrite the input {source}")


def carries_display_matrix(out: Path) -> bool:
    """Return whether an output with this extension can keep the source's rotation tag."""
    return CONTAINERS[out.suffix.lower()].display_matrix


class VideoWriter:
    """Encodes and muxes one video with one audio track. Call it from one thread at a time.

    As a context manager, it renames the complete file to `out`, or removes it if the block fails.

    Args:
        out: the output; an existing file is replaced.
        video: the source; the output has its size, frame rate, time base, colours and rotation.
        audio: the new audio.
        quality: one of `QUALITIES`.
        provenance: mark the file as synthetic, with a signed manifest if the container supports it, and a metadata tag.
        end_s: end of the output, in seconds, where the video is cut; None if it is not.

    Attributes:
        notes: messages for the user about what the source had and the output cannot hold.
        mark: the file's mark, once it is complete.
        unsigned: the reason why it has no signed manifest; empty if it has one, or should not have one.

    Raises:
        UnwritableMedia: the output cannot be written.
    """

    def __init__(
        self,
        out: Path,
        video: VideoFile,
        audio: AudioFile,
        quality: str,
        provenance: bool = True,
        end_s: Fraction | None = None,
    ) -> None:
        if quality not in QUALITIES:
            raise BadInput(f"quality is {quality!r}; it must be one of {', '.join(QUALITIES)}")
        check_output(out, video.path, audio.path)
        self._out, self._video, self._audio = out, video, audio
        self._temporary = out.absolute().with_name(f".{out.stem}.{secrets.token_hex(4)}.part")
        kind = CONTAINERS[out.suffix.lower()]
        self.mark, self.unsigned = Mark.TAGGED if provenance else Mark.NONE, ""
        with self._writing():
            options = {"movflags": "+faststart"} if kind.format in ("mp4", "mov") else {}
            self._container = av.open(ffmpeg_name(self._temporary), "w", format=kind.format, options=options)
            companions = companions_of(video.path, video.photo)
            companions.add_to(self._container, metadata_tag() if provenance else "", end_s)
            try:
                self._picture = self._add_video(QUALITIES[quality])
                self._picture.metadata.update(companions.picture_tags)
                self._sound = self._add_audio(QUALITIES[quality], kind.lossless_audio)
                if audio.language:
                    self._sound.metadata["language"] = language_for(self._container, audio.language)
                self._audio_frames: Iterator[Any] = audio.frames()
                for packet, track in list(companions.subtitles(self._container)):
                    packet.stream = track
                    self._container.mux(packet)
            except BaseException:
                self._remove()
                raise
        self.notes = companions.notes
        self._muxed_samples = 0  # samples muxed
        self._frames = 0
        # An interrupted job discards the file while another thread may still be writing a frame to it.
        self._lock = threading.Lock()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: Any) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except BaseException:
            self._discard()
            raise

    def write(self, frame: Any, pts: int) -> None:
        """Encode the next frame, and the audio up to its end.

        Args:
            frame: an av.VideoFrame in the video's format. The writer keeps it: do not change it afterwards.
            pts: its time in the video's time base, greater than the previous frame's.
        """
        with self._lock, self._writing():
            frame.pts, frame.time_base = pts, self._video.time_base
            frame.pict_type = 0  # the encoder chooses the picture type, not the source
            self._container.mux(self._picture.encode(frame))
        self._frames += 1
        self.write_audio((pts + self._video.step) * self._video.time_base)

    def write_audio(self, until_s: Fraction | None) -> None:
        """Mux the audio up to a time in seconds; None: to its end."""
        until = None if until_s is None else until_s * self._audio.rate_hz
        while until is None or self._muxed_samples < until:
            frame = next(self._audio_frames, None)
            if frame is None:
                return
            with self._lock, self._writing():
                frame.pts, frame.time_base = self._muxed_samples, Fraction(1, self._audio.rate_hz)
                self._muxed_samples += frame.samples
                self._container.mux(self._sound.encode(frame))

    def _add_video(self, quality: Quality) -> Any:
        video = self._video
        stream = self._container.add_stream("libx264", rate=video.fps, options=dict(quality.video))
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, video.format
        context = stream.codec_context
        context.time_base = video.time_base
        context.sample_aspect_ratio = video.pixel_aspect
        if carries_display_matrix(self._out):
            stream.set_display_matrix(video.orientation.matrix)
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = video.colours
        return stream

    def _add_audio(self, quality: Quality, lossless: str) -> Any:
        audio = self._audio
        layout = audio.layout if audio.layout in _AAC_LAYOUTS else ("mono" if audio.channels == 1 else "stereo")
        if quality.audio_bits:
            rates = av.codec.Codec("aac", "w").audio_rates or []
            rate = audio.rate_hz if audio.rate_hz in rates else 48_000
            stream = self._container.add_stream("aac", rate=rate, layout=layout)
            # AAC allows at most 6,144 bits per channel in a frame of 1,024 samples.
            channels = av.AudioLayout(layout).nb_channels
            stream.codec_context.bit_rate = min(quality.audio_bits, 5 * rate) * channels
            return stream
        kinds = {"alac": ("s16p", "s32p"), "flac": ("s16", "s32")}[lossless]
        return self._container.add_stream(lossless, rate=audio.rate_hz, layout=layout, format=kinds[audio.wide])

    def _finish(self) -> None:
        if not self._frames:
            raise BadInput(f"{self._video.path}: no frame was written")
        with self._writing():
            self._container.mux(self._picture.encode(None))
            self._container.mux(self._sound.encode(None))
            self._container.close()
            if self.mark is Mark.TAGGED:
                # The last step: any later change would break the signature.
                self.unsigned = mark_as_synthetic(self._temporary, self._out.suffix, self._video.path) or ""
                self.mark = Mark.TAGGED if self.unsigned else Mark.SIGNED
            os.replace(self._temporary, self._out)

    def _discard(self) -> None:
        with self._lock:
            self._remove()

    def _remove(self) -> None:
        try:
            self._container.close()
        except (av.error.FFmpegError, OSError, ValueError):
            pass  # the file is discarded, so a muxer's error about an incomplete file does not matter
        finally:
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as exc:
            raise UnwritableMedia(f"{self._out}: writing failed: {exc}") from exc
