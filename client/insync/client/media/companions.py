"""What a video file has beside picture and sound: tags, chapters, subtitles, a timecode. They go with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from insync.client.media.files import opened, pictures, sounds

__all__ = ["Companions", "companions_of", "language_for"]

# Tags that describe the old file, not the film.
_TECHNICAL = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration", "handler_name", "vendor_id")
# ISO 639-2 has two codes for some languages; QuickTime knows the bibliographic ones only.
_BIBLIOGRAPHIC = {
    "bod": "tib", "ces": "cze", "cym": "wel", "deu": "ger", "ell": "gre", "eus": "baq", "fas": "per", "fra": "fre", "hye": "arm", "isl": "ice",
    "kat": "geo", "mkd": "mac", "mri": "mao", "msa": "may", "mya": "bur", "nld": "dut", "ron": "rum", "slk": "slo", "sqi": "alb", "zho": "chi",
}  # fmt: skip
# By FFmpeg's names of their decoders.
_SUBTITLES = {
    "mp4": ("mov_text",),
    "mov": ("mov_text",),
    "matroska": ("srt", "subrip", "ass", "ssa", "webvtt", "pgssub", "dvdsub"),
}


@dataclass
class Companions:
    """What goes with a video.

    Attributes:
        tags: of the whole file, such as title and date.
        picture_tags: of the video track: language, and timecode.
        chapters: as PyAV has them.
        notes: messages for the user about what cannot be kept.
    """

    path: Path
    tags: dict[str, str] = field(default_factory=dict)
    picture_tags: dict[str, str] = field(default_factory=dict)
    chapters: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_to(self, container: Any, comment: str, end_s: Fraction | None) -> None:
        """Write tags and chapters into an output that has no header yet.

        Args:
            container: the output.
            comment: goes before the file's own comment.
            end_s: end of the output where the video is cut; later chapters are left out.
        """
        for name, value in self.tags.items():
            container.metadata[name] = value
        if comment:
            own = self.tags.get("comment")
            container.metadata["comment"] = comment if own is None else f"{comment}\n{own}"
        kept = [one for one in self.chapters if end_s is None or one["start"] * one["time_base"] < end_s]
        if kept:
            container.set_chapters(kept)

    def subtitles(self, container: Any) -> Iterator[tuple[Any, Any]]:
        """Add the subtitle tracks that an output can hold; yield each packet with its new track."""
        if not self.path.is_file():
            return
        with opened(self.path) as source:
            zero_s = _start_s(source)
            tracks = {}
            for track in source.streams.subtitles:
                name = track.codec_context.name if track.codec_context else ""
                if name in _SUBTITLES.get(container.format.name, ()):
                    tracks[track.index] = container.add_stream_from_template(track)
                    tracks[track.index].metadata.update(
                        {k: v for k, v in track.metadata.items() if k not in _TECHNICAL}
                    )
                else:
                    self.notes.append(
                        f"subtitles ({name or 'unknown'}) are left out: this container does not hold them"
                    )
            if not tracks:
                return
            for packet in source.demux([source.streams[index] for index in tracks]):
                if packet.pts is not None and packet.size:
                    shift = round(zero_s / packet.time_base)
                    packet.pts -= shift
                    packet.dts = packet.pts
                    yield packet, tracks[packet.stream.index]


def language_for(container: Any, language: str) -> str:
    """Return a language's code as a container has it."""
    return _BIBLIOGRAPHIC.get(language, language) if container.format.name == "mov" else language


def _start_s(container: Any) -> Fraction:
    """Return the time of the first picture, which is time 0 of the output."""
    videos = pictures(container)
    if not videos or videos[0].start_time is None:
        return Fraction(0)
    return Fraction(videos[0].start_time * Fraction(videos[0].time_base))


def companions_of(path: Path, photo: bool) -> Companions:
    """Read what a video file has beside picture and sound. A photo's tags are its camera's: they are left."""
    found = Companions(path)
    if photo:
        return found
    try:
        with opened(path) as container:
            found.tags = {k.lower(): v for k, v in container.metadata.items() if k.lower() not in _TECHNICAL}
            found.chapters = list(container.chapters())
            video = pictures(container)[0]
            found.picture_tags = {k: v for k, v in video.metadata.items() if k in ("language", "timecode")}
            timecodes = [s.metadata["timecode"] for s in container.streams if "timecode" in s.metadata]
            if timecodes:
                found.picture_tags["timecode"] = timecodes[0]
            replaced = sounds(container)
            if len(replaced) > 1:
                found.notes.append(f"all {len(replaced)} audio tracks of {path.name} are replaced by the new one")
            others = [s for s in container.streams if s.type in ("data", "attachment") and "timecode" not in s.metadata]
            if others:
                found.notes.append(f"{len(others)} data tracks or attachments of {path.name} are left out")
    except (av.error.FFmpegError, IndexError):
        found.notes.append(f"tags and chapters of {path.name} cannot be read")
    return found
