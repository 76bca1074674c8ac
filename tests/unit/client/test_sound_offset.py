"""The product adds no offset: a click comes out at its time, from files, in a stream's windows and in a dub."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.client.media.audio_reader import AudioFile
from insync.client.media.extension import extended
from insync.client.media.reader import VideoFile
from insync.client.media.writer import VideoWriter
from insync.client.streaming.audio_windows import AudioWindows
from insync.core.spec import SAMPLE_RATE_HZ, WINDOW_PAST_SAMPLES

AT_S = 0.5  # of the click
MOST_S = 0.005
RATES_HZ = [8_000, 16_000, 22_050, 24_000, 44_100, 48_000]
CODECS = {
    ".wav": "pcm_s16le",
    ".flac": "flac",
    ".mp3": "libmp3lame",
    ".m4a": "aac",
    ".mp4": "aac",
    ".mov": "pcm_s16le",
    ".mkv": "aac",
    ".ts": "aac",
}


def click(rate_hz: int, seconds: float = 1.2) -> NDArray[np.float32]:
    """Return silence with a pulse of 1 ms around `AT_S`, low enough for the codecs: float32 [N]."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz - AT_S
    return np.asarray(0.8 * np.exp(-((t / 0.0004) ** 2)), np.float32)


def place_s(samples: NDArray[np.float32], rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """Return the time of the loudest sample in seconds."""
    assert np.abs(samples).max() > 0.2
    return float(np.argmax(np.abs(samples))) / rate_hz


def heard_s(path: Path) -> float:
    return place_s(np.concatenate(list(AudioFile(path).speech())))


def write(
    path: Path, rate_hz: int, *, start_s: float = 0.0, first_picture_s: float | None = None, channels: int = 1
) -> Path:
    """Write a click; its track starts at `start_s`. With `first_picture_s`, there is a video track from that time on."""
    sound = click(rate_hz)
    layout = {1: "mono", 2: "stereo", 8: "7.1"}[channels]
    with av.open(str(path), "w") as container:
        video = None if first_picture_s is None else container.add_stream("libx264", rate=25)
        audio = container.add_stream(CODECS[path.suffix], rate=rate_hz, layout=layout)
        if video is not None:
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            for k in range(30):
                picture = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 8 * k, np.uint8), format="rgb24")
                picture.pts, picture.time_base = k + round((first_picture_s or 0) * 25), Fraction(1, 25)
                container.mux(video.encode(picture))
        for at in range(0, len(sound), 960):
            part = np.repeat(sound[at : at + 960], channels)[None]
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
            frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
            frame.pts = at + round(start_s * rate_hz)
            container.mux(audio.encode(frame))
        for stream in filter(None, (audio, video)):
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("ending", [".wav", ".flac", ".mp3", ".m4a", ".mp4", ".mkv"])
def test_a_click_in_a_file_is_read_at_its_time(tmp_path: Path, ending: str, rate_hz: int) -> None:
    assert heard_s(write(tmp_path / f"click{ending}", rate_hz)) == pytest.approx(AT_S, abs=MOST_S)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".ts"])
def test_a_track_that_starts_later_than_the_pictures_stays_later(tmp_path: Path, ending: str, rate_hz: int) -> None:
    path = write(tmp_path / f"click{ending}", rate_hz, start_s=0.32, first_picture_s=0)
    assert heard_s(path) == pytest.approx(AT_S + 0.32, abs=MOST_S)
    audio = AudioFile(path)
    assert sum(len(chunk) for chunk in audio.speech()) == round(audio.duration_s * SAMPLE_RATE_HZ)


def test_a_track_without_pictures_that_starts_later(tmp_path: Path) -> None:
    """An MP4 file's timeline starts at 0; here the encoder's delay is a part of it."""
    assert heard_s(write(tmp_path / "a.m4a", 44_100, start_s=0.3)) == pytest.approx(AT_S + 0.3, abs=MOST_S)
    assert heard_s(write(tmp_path / "a.mkv", 44_100, start_s=0.3)) == pytest.approx(AT_S, abs=MOST_S)


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts"])
def test_a_track_that_starts_with_the_pictures_or_before_them(tmp_path: Path, ending: str) -> None:
    """In MPEG-TS, nothing but the pictures' times shows the encoder's delay."""
    together = write(tmp_path / f"together{ending}", 44_100, first_picture_s=0)
    assert heard_s(together) == pytest.approx(AT_S, abs=MOST_S)
    slightly = write(tmp_path / f"slightly{ending}", 48_000, first_picture_s=0.04)
    if ending != ".ts":  # its delay and the 40 ms are longer than what is cut
        assert heard_s(slightly) == pytest.approx(AT_S - 0.04, abs=MOST_S)
    if ending == ".mkv":  # a beginning without pictures is spoken too
        early = write(tmp_path / f"early{ending}", 44_100, first_picture_s=0.2)
        assert heard_s(early) == pytest.approx(AT_S, abs=MOST_S)


def test_eight_planar_channels_are_read(tmp_path: Path) -> None:
    audio = AudioFile(write(tmp_path / "a.m4a", 48_000, channels=8))
    assert audio.channels == 8
    assert place_s(np.concatenate(list(audio.speech()))) == pytest.approx(AT_S, abs=MOST_S)


FPS = [Fraction(24_000, 1001), Fraction(25), Fraction(30_000, 1001), Fraction(30), Fraction(50), Fraction(60)]


@pytest.mark.parametrize("fps", FPS, ids=lambda fps: f"{float(fps):.2f}")
@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_click_is_at_the_right_sample_of_every_window(fps: Fraction, rate_hz: int) -> None:
    windows = AudioWindows(rate_hz)
    sound = click(rate_hz)
    for at in range(0, len(sound), 777):
        windows.push(sound[at : at + 777])
    windows.finish()
    with_click = 0
    for k in range(int(fps)):
        window = windows.window(k, fps)
        expected = WINDOW_PAST_SAMPLES + (AT_S - float(k / fps)) * SAMPLE_RATE_HZ
        if 20 < expected < len(window) - 20:
            with_click += 1
            assert place_s(window) * SAMPLE_RATE_HZ == pytest.approx(expected, abs=1.01)
    assert with_click > 0.35 * fps  # a window is 400 ms long


def written_s(path: Path) -> float:
    """Return the time from the first picture to the click of a finished file, by the times that a player uses."""
    with av.open(str(path)) as container:
        pictures = [float(frame.time) for frame in container.decode(video=0)]
    parts: list[Any] = []
    begin_s, rate_hz = None, 0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            begin_s = float(frame.time) if begin_s is None else begin_s
            rate_hz = frame.sample_rate
            samples = frame.to_ndarray().astype(np.float32)
            if not frame.format.is_planar:
                samples = samples.reshape(-1, frame.layout.nb_channels).T
            parts.append(samples[0])
    whole = np.concatenate(parts)
    return (begin_s or 0.0) + place_s(whole / np.abs(whole).max(), rate_hz) - min(pictures)


@pytest.mark.parametrize("quality", ["lossless", "high", "low"])
@pytest.mark.parametrize("out", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    ("ending", "rate_hz", "start_s"),
    [(".wav", 16_000, 0.0), (".mp3", 44_100, 0.0), (".m4a", 48_000, 0.0), (".wav", 37_800, 0.0), (".mp4", 24_000, 0.2)],
)
def test_a_click_is_at_its_time_after_the_first_picture_of_a_dub(
    tmp_path: Path, ending: str, rate_hz: int, start_s: float, out: str, quality: str
) -> None:
    pictures = write(tmp_path / "pictures.mp4", 44_100, first_picture_s=0.2)  # its first picture is not at time 0
    speech = write(tmp_path / f"speech{ending}", rate_hz, start_s=start_s, first_picture_s=0 if start_s else None)
    source, audio = VideoFile(pictures), AudioFile(speech)
    with VideoWriter(tmp_path / f"out{out}", source, audio, quality) as writer:
        for frame in extended(source, audio.duration_s, "freeze", False):
            writer.write(frame.frame, frame.pts)
        writer.write_audio(None)
    assert written_s(tmp_path / f"out{out}") == pytest.approx(AT_S + start_s, abs=MOST_S)


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".ts"])
def test_sound_that_begins_before_the_pictures_keeps_its_distance(tmp_path: Path, ending: str) -> None:
    """A file's own sound, taken out of it, is in sync with the file again: its pictures begin `lead_s` later."""
    path = write(tmp_path / f"late{ending}", 44_100, first_picture_s=0.32)
    assert float(VideoFile(path).lead_s) == pytest.approx(0.32, abs=0.03)
    # The sound as its own file begins with its first sample.
    if ending == ".mkv":
        assert heard_s(path) == pytest.approx(AT_S, abs=MOST_S)
    together = write(tmp_path / f"together{ending}", 44_100, first_picture_s=0)
    assert float(VideoFile(together).lead_s) == pytest.approx(0, abs=0.03)


ENCODERS = {"aac": "aac", "opus": "libopus", "mp3": "libmp3lame", "flac": "flac", "pcm": "pcm_s16le"}
MATRIX = [
    *((".mp4", codec) for codec in ENCODERS), *((".mkv", codec) for codec in ENCODERS),
    *((".mov", codec) for codec in ("aac", "mp3", "pcm")), (".webm", "opus"),
    *((".ts", codec) for codec in ("aac", "opus", "mp3")), *((".avi", codec) for codec in ("aac", "mp3", "flac", "pcm")),
]  # fmt: skip


@pytest.mark.parametrize("with_pictures", [True, False])
@pytest.mark.parametrize(("ending", "codec"), MATRIX)
def test_two_clicks_are_at_their_times_in_every_container_and_codec(
    tmp_path: Path, ending: str, codec: str, with_pictures: bool
) -> None:
    rate_hz, at_s = 48_000, (0.5, 1.0)
    t = np.arange(round(1.6 * rate_hz)) / rate_hz
    sound = sum(0.8 * np.exp(-(((t - at) / 0.0004) ** 2)) for at in at_s)
    path = tmp_path / f"clicks{ending}"
    with av.open(str(path), "w") as container:
        video: Any = None
        if with_pictures:
            video = container.add_stream("libvpx-vp9" if ending == ".webm" else "libx264", rate=25)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream(ENCODERS[codec], rate=rate_hz, layout="mono")
        for number in range(40 if with_pictures else 0):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 6 * number, np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(video.encode(picture.reformat(format="yuv420p")))
        for start in range(0, len(t), 960):
            part = np.asarray(sound, np.float32)[None, start : start + 960]
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
            container.mux(audio.encode(frame))
        for stream in filter(None, (audio, video)):
            container.mux(stream.encode(None))
    read = AudioFile(path)
    speech = np.concatenate(list(read.speech()))
    for at in at_s:
        first = round((at - 0.2) * SAMPLE_RATE_HZ)
        found_s = (first + int(np.abs(speech[first : first + round(0.4 * SAMPLE_RATE_HZ)]).argmax())) / SAMPLE_RATE_HZ
        assert found_s == pytest.approx(at, abs=MOST_S)
    assert read.notes == []
