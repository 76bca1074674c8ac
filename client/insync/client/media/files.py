"""Opening of media files with FFmpeg, and the choice of a track."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error
from av.sidedata import sidedata

from insync.core.errors import BadInput, UnreadableMedia

__all__ = ["LONGEST_DELAY_SAMPLES", "LONGEST_LEAD_S", "chosen", "ffmpeg_name", "kinds", "opened", "pictures", "sounds"]

LONGEST_DELAY_SAMPLES = 2_112  # that an encoder puts before the sound: the AAC encoder of Apple
LONGEST_LEAD_S = (
    60  # between the starts of two tracks, or between two packets; more is a damaged or a live stream's timestamp
)
# Formats that FFmpeg recognises in plain text; never meant as a video.
_NOT_MEDIA = {"tty", "lrc", "srt", "webvtt", "ass"}


def _unknown_side_data(cls: type[sidedata.Type], value: object) -> sidedata.Type:
    """Give a kind of side data that PyAV has no name for a number instead: one of them hid all others of a frame (PyAV 18.1)."""
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value  # type: ignore[assignment]
    return member


sidedata.Type._missing_ = classmethod(_unknown_side_data)  # type: ignore[assignment,method-assign]


def ffmpeg_name(path: Path) -> str:
    """Return a file's name for FFmpeg: one that starts with a slash is never taken for an address, as in `take:1.wav`."""
    return str(path.absolute())


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file with FFmpeg.

    Raises:
        UnreadableMedia: the file is missing, empty, damaged or of an unknown format.
    """
    try:
        if os.path.getsize(path) == 0:
            raise UnreadableMedia(f"{path}: the file is empty (0 bytes)")
        container = av.open(ffmpeg_name(path))
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


def kinds(container: Any) -> str:
    """Return the kinds of tracks in a file, in words."""
    return ", ".join(sorted({s.type for s in container.streams}) or ["nothing"])


def pictures(container: Any) -> list[Any]:
    """Return the video tracks, without cover art."""
    if container.format.name in _NOT_MEDIA:
        return []
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def sounds(container: Any) -> list[Any]:
    """Return the audio tracks."""
    return [] if container.format.name in _NOT_MEDIA else list(container.streams.audio)


def chosen(path: Path, kind: str, tracks: list[Any], number: int | None) -> tuple[Any, list[str]]:
    """Choose a track: the one asked for, else the file's default one, else the first.

    Args:
        path: the file, for messages.
        kind: "video" or "audio", for messages.
        tracks: the tracks of that kind; at least one.
        number: the track's number, from 1; None takes the default one.

    Returns:
        The track, and notes for the user: if there are others, which was taken.

    Raises:
        BadInput: there is no track of this number.
    """
    if number is not None:
        if not 1 <= number <= len(tracks):
            raise BadInput(f"{path}: {kind} track {number} does not exist; the file has {len(tracks)}")
        return tracks[number - 1], []
    default = next((t for t in tracks if t.disposition & av.stream.Disposition.default), tracks[0])
    if len(tracks) == 1:
        return default, []
    names = ", ".join(f"{n} ({_described(track)})" for n, track in enumerate(tracks, 1))
    taken = tracks.index(default) + 1
    return default, [f"{path.name} has {len(tracks)} {kind} tracks: {names}; track {taken} is used (--{kind}-track)"]


def _described(track: Any) -> str:
    """Return a track's language and title, as far as they are known, or its codec."""
    known = [track.language if track.language not in (None, "und") else "", track.metadata.get("title", "")]
    return " ".join(filter(None, known)) or str(track.codec_context.name)
