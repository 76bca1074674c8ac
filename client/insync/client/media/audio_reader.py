"""Reading of audio tracks with PyAV: every sample at its time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from insync.client.media.files import LONGEST_DELAY_SAMPLES, LONGEST_LEAD_S, chosen, kinds, opened, pictures, sounds
from insync.client.media.speech import packed, shifted, silence, speech_chunks
from insync.core.errors import BadInput, NoAudioTrack, UnreadableMedia
from insync.core.spec import SAMPLE_RATE_HZ

__all__ = ["AudioFile"]

# Samples of delay that no encoder can do without, where the container does not say it: MDCT's overlap, and with MP3 its filter bank.
_UNSAID_DELAYS = {"aac": 1_024, "mp3": 1_105, "mp3float": 1_105, "opus": 312, "libopus": 312}
_UNSAYING = ("avi", "aac", "mpegts")  # MPEG-TS says it by the pictures' times, if it has any
_TIMELESS = ("avi",)  # FFmpeg computes times of packets from their sizes
SHORTEST_HOLE_S = Fraction(15, 1000)  # between two packets; containers round times to as much as 10 ms


class AudioFile:
    """An audio track of any file. The constructor decodes it once, to find its exact length.

    Time 0 is the file's first picture; without a video track, it is the start of an MP4 file's timeline, and in other files
    the track's first sample. If the track starts later, there is silence first, as in a player. If it starts earlier by no
    more than an encoder's delay, it is cut; a longer beginning is kept, and then time 0 is its first sample. Where packets are
    missing, there is silence. A track whose rate or channels change midway is converted to those it begins with.

    Args:
        path: the file.
        track: number of the audio track, from 1; None takes the file's default one.

    Attributes:
        rate_hz: samples per second.
        layout: FFmpeg's name of the channel layout, such as "stereo".
        channels: number of channels.
        samples: number of samples per channel, with the silence.
        wide: whether samples have more than 16 bits.
        language: of the track, as the file has it ("deu"); empty if unknown.
        notes: messages for the user.

    Raises:
        UnreadableMedia: the file is missing, empty, damaged or of an unknown format.
        NoAudioTrack: it has no audio track, or one of length 0.
        BadInput: a sample is not finite, or there is no track of this number.
    """

    def __init__(self, path: Path, track: int | None = None) -> None:
        self.path, self._track = path, track
        self.samples = 0
        self.rate_hz = 0
        self.layout = "mono"
        self.channels = 1
        self.wide = False
        self.language = ""
        self.notes: list[str] = []
        self._converted = False  # whether the track's form changes midway
        self._filled = 0  # samples of silence in holes
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
        if self._converted:
            self.notes.append(
                f"{path.name}: the audio's sample rate or channels change midway; all is converted to {self.rate_hz} Hz {self.layout}"
            )
        if self._filled:
            self.notes.append(
                f"{path.name}: {self._filled / self.rate_hz:.2f} s of audio are missing in it; there is silence instead"
            )

    @property
    def duration_s(self) -> Fraction:
        """Exact duration in seconds."""
        return Fraction(self.samples, self.rate_hz)

    def frames(self) -> Iterator[Any]:
        """Yield the decoded av.AudioFrames from time 0 on, all in one form. Only the order of samples counts, not the frames' own times."""
        self._filled = 0
        with opened(self.path) as container:
            tracks = sounds(container)
            if not tracks:
                raise NoAudioTrack(f"{self.path}: no audio track; the file holds {kinds(container)}")
            track, notes = chosen(self.path, "audio", tracks, self._track)
            if not self.samples:
                self.notes = notes
                self.language = track.language if track.language not in (None, "und") else ""
            try:
                decoded = (frame for packet in container.demux(track) for frame in _decoded(packet))
                begins = list(itertools.islice(decoded, 2))
                if len(begins) == 2 and _form(begins[0]) != _form(begins[1]) and begins[0].samples < begins[1].samples:
                    begins = begins[1:]  # the rest of an encoder's delay, with the rate that FFmpeg guessed
                if begins:
                    lead = _lead(container, track, begins[0])
                    whole: Iterator[Any] = itertools.chain(begins, decoded)
                    if container.format.name not in _TIMELESS:
                        whole = self._without_holes(whole)
                    yield from shifted(self._in_one_form(whole), lead)
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

    def _without_holes(self, frames: Iterator[Any]) -> Iterator[Any]:
        """Yield frames, with silence where their times leave a gap: a codec's pauses (DTX), or lost packets."""
        ends_s: Fraction | None = None
        for frame in frames:
            rate_hz = int(frame.sample_rate)
            begins_s = None if frame.pts is None or not frame.time_base else frame.pts * Fraction(frame.time_base)
            if begins_s is not None and ends_s is not None and SHORTEST_HOLE_S < begins_s - ends_s <= LONGEST_LEAD_S:
                missing = round((begins_s - ends_s) * rate_hz)
                self._filled += missing
                yield from silence(frame, missing)
            ends_s = None if begins_s is None else begins_s + Fraction(int(frame.samples), rate_hz)
            yield frame

    def _in_one_form(self, frames: Iterator[Any]) -> Iterator[Any]:
        """Yield frames in the sample format, channels and rate of the first."""
        form: tuple[str, str, int] | None = None
        now: tuple[str, str, int] | None = None
        resampler: Any = None
        for frame in frames:
            own = _form(frame)
            form = form or own
            if own != now and resampler is not None:
                yield from resampler.resample(None)
                resampler = None
            now = own
            if own == form:
                yield frame
                continue
            if resampler is None:
                self._converted = True
                resampler = av.AudioResampler(format=form[0], layout=form[1], rate=form[2])
            frame.pts = None
            yield from resampler.resample(frame)
        if resampler is not None:
            yield from resampler.resample(None)


def _form(frame: Any) -> tuple[str, str, int]:
    """Return a frame's sample format, channel layout and rate."""
    return str(frame.format.name), str(frame.layout.name), int(frame.sample_rate)


def _decoded(packet: Any) -> list[Any]:
    try:
        return list(packet.decode())
    except av.error.InvalidDataError:
        return []  # a damaged packet; the rest of the track may be good


def _lead(container: Any, track: Any, first: Any) -> int:
    """Return how many samples after time 0 an audio track's first frame starts; see `AudioFile`."""
    videos = pictures(container)
    if container.format.name in _UNSAYING and not (videos and container.format.name == "mpegts"):
        return -_UNSAID_DELAYS.get(track.codec_context.name, 0)
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
