"""What people bring: mirrored footage, holes and changes in the sound, several tracks, names, missing times, interlacing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.media import assert_alike, corners, tone, write_wav

from insync.client.media.audio_reader import AudioFile
from insync.client.media.extension import extended, filled
from insync.client.media.orientation import orientation_of
from insync.client.media.reader import VideoFile
from insync.client.media.writer import VideoWriter
from insync.core.compositing import Placed
from insync.core.errors import BadInput

Picture = NDArray[np.uint8]

ONE = 65_536
TURNS = {0: (1, 0, 0, 1), 1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}  # a, b, c, d of the display matrix


def matrix(turns: int, mirrored: bool, scale: float = 1.0) -> tuple[int, ...]:
    a, b, c, d = TURNS[turns]
    if mirrored:  # after the turns: x becomes -x
        a, c = -a, -c
    return (*(int(scale * ONE * v) for v in (a, b)), 0, *(int(scale * ONE * v) for v in (c, d)), 0, 0, 0, 2**30)


def displayed(stored: Picture, of: tuple[int, ...]) -> Picture:
    """Return a stored picture as a player shows it: every pixel goes where the matrix sends it."""
    a, b, _, c, d, *_ = (value / ONE for value in of)
    height, width = stored.shape[:2]
    ys, xs = np.mgrid[0:height, 0:width]
    to_x, to_y = np.rint(a * xs + c * ys).astype(int), np.rint(b * xs + d * ys).astype(int)
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    result = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    result[to_y, to_x] = stored
    return result


def write_video(
    path: Path,
    pictures: list[Picture],
    *,
    display: tuple[int, ...] | None = None,
    pts: list[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    interlaced: bool = False,
    unit: Fraction = Fraction(1, 1000),
) -> Path:
    with av.open(str(path.absolute()), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {"crf": "10"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = unit
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        stream.set_display_matrix(display)
        if interlaced:
            stream.codec_context.flags |= av.codec.context.Flags.interlaced_dct
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = (pts[number] if pts else round(number / 25 / unit)), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# -- mirrored and turned footage


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", TURNS)
def test_turned_and_mirrored_footage_is_seen_as_a_player_shows_it(tmp_path: Path, turns: int, mirrored: bool) -> None:
    display = matrix(turns, mirrored)
    path = write_video(tmp_path / "clip.mp4", [corners()] * 3, display=display)
    video = VideoFile(path)
    (frame, *_) = list(video.frames())
    assert (video.orientation.turns, video.orientation.mirrored, video.orientation.exact) == (turns, mirrored, True)
    shown = video.picture(frame.frame).rgb()
    assert_alike(shown, displayed(corners(), display))
    upright = VideoFile(path, upright=True)
    (frame, *_) = list(upright.frames())
    assert_alike(upright.picture(frame.frame).rgb(), shown)
    assert_alike(frame.frame.to_ndarray(format="rgb24"), shown)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", TURNS)
def test_a_patch_lands_where_it_is_seen(tmp_path: Path, turns: int, mirrored: bool) -> None:
    video = VideoFile(write_video(tmp_path / "clip.mp4", [corners()], display=matrix(turns, mirrored)))
    (decoded,) = list(video.frames())
    picture = video.picture(decoded.frame)
    before = picture.rgb()
    white = np.full((16, 20, 3), 255, np.uint8)
    picture.paste(Placed(8, 4, 28, 20, white, np.ones((16, 20), np.float32)))
    wanted = before.copy()
    wanted[4:20, 8:28] = 255
    assert_alike(picture.rgb(), wanted, most=3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_every_container_shows_mirrored_footage_alike(tmp_path: Path, suffix: str) -> None:
    display = matrix(1, True)
    source = write_video(tmp_path / "clip.mp4", [corners()] * 4, display=display)
    sound = AudioFile(write_wav(tmp_path / "sound.wav", tone(0.16, 16_000)))
    out = tmp_path / f"out{suffix}"
    video = VideoFile(source, upright=suffix == ".mkv")
    with VideoWriter(out, video, sound, "lossless", provenance=False) as writer:
        for frame in video.frames():
            writer.write(frame.frame, frame.pts)
        writer.write_audio(None)
    again = VideoFile(out)
    (frame, *_) = list(again.frames())
    assert_alike(again.picture(frame.frame).rgb(), displayed(corners(), display))


def test_a_matrix_that_shears_is_said_so(tmp_path: Path) -> None:
    sheared = (ONE, 20_000, 0, 0, ONE, 0, 0, 0, 2**30)
    video = VideoFile(write_video(tmp_path / "clip.mp4", [corners()], display=sheared))
    assert not video.orientation.exact
    assert any("display matrix" in note for note in video.notes)


def test_a_matrix_may_scale(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", [corners()], display=matrix(3, True, scale=0.5))
    with av.open(str(path)) as container:
        found = orientation_of(next(container.decode(video=0)))
    assert (found.turns, found.mirrored, found.exact) == (3, True, True)


# -- aspect, tracks, names


def test_the_containers_aspect_wins(tmp_path: Path) -> None:
    # libx264's own option says 1:1 in the stream; the container says 4:3.
    options = {"crf": "10", "x264-params": "sar=1/1"}
    path = write_video(tmp_path / "wide.mp4", [corners()] * 5, aspect=Fraction(4, 3), options=options)
    assert VideoFile(path).pixel_aspect == Fraction(4, 3)


def two_sounds(path: Path, default: int) -> Path:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.metadata["language"] = ("eng", "deu")[number]
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        for number, stream in enumerate(streams):
            samples = (tone(0.5 + 0.5 * number, 16_000) * 32_767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_track_is_taken_and_the_others_are_named(tmp_path: Path, default: int) -> None:
    sound = AudioFile(two_sounds(tmp_path / "two.mkv", default))
    assert sound.samples == (8_000, 16_000)[default]
    (note,) = sound.notes
    assert f"track {default + 1} is used" in note
    assert "eng" in note
    assert "deu" in note


def test_a_track_can_be_asked_for(tmp_path: Path) -> None:
    path = two_sounds(tmp_path / "two.mkv", 0)
    sound = AudioFile(path, track=2)
    assert (sound.samples, sound.notes) == (16_000, [])
    with pytest.raises(BadInput, match="track 3 does not exist; the file has 2"):
        AudioFile(path, track=3)


@pytest.mark.parametrize("name", ["12:15:10", "take:1", "http:", "a%03d", "ö ü 日本", "-dash", "concat:x|y"])
def test_any_name_of_a_file_works(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_video(Path(f"{name}.mp4"), [corners()] * 3)
    sound = write_wav(Path(f"{name}.wav"), tone(0.12, 16_000))
    video, out = VideoFile(source), Path(f"{name} out.mp4")
    with VideoWriter(out, video, AudioFile(sound), "low", provenance=True) as writer:
        for frame in video.frames():
            writer.write(frame.frame, frame.pts)
        writer.write_audio(None)
    assert len(list(VideoFile(out).frames())) == 3
    assert not list(tmp_path.glob(".*.part"))


# -- sound with changes and holes


def joined(path: Path, parts: list[tuple[int, int]]) -> Path:
    """Write MP3s of one second, of a rate and a number of channels each, one after the other, as `cat` does."""
    whole = b""
    for rate_hz, channels in parts:
        layout = "mono" if channels == 1 else "stereo"
        with av.open(str(path), "w") as container:
            # Without the header of its own that names a length, which `cat` would leave in the middle.
            stream = container.add_stream("libmp3lame", rate=rate_hz, layout=layout)
            samples = np.repeat(tone(1, rate_hz)[None], channels, axis=0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        whole += path.read_bytes()
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    "parts", [[(24_000, 1), (44_100, 1)], [(44_100, 2), (22_050, 1), (44_100, 2)], [(16_000, 1), (16_000, 2)]]
)
def test_sound_whose_form_changes_is_converted_as_it_comes(tmp_path: Path, parts: list[tuple[int, int]]) -> None:
    sound = AudioFile(joined(tmp_path / "answers.mp3", parts))
    assert (sound.rate_hz, sound.channels) == parts[0]
    assert float(sound.duration_s) == pytest.approx(len(parts), abs=0.1 * len(parts))
    assert any("change midway" in note for note in sound.notes)
    speech = np.concatenate(list(sound.speech()))
    assert len(speech) == round(sound.duration_s * 16_000)
    middle = [speech[16_000 * n + 4_000 : 16_000 * n + 12_000] for n in range(len(parts))]
    for part in middle:  # the same tone in all parts
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        assert np.argmax(spectrum) * 16_000 / len(part) == pytest.approx(440, abs=5)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4"])
def test_holes_in_the_times_become_silence(tmp_path: Path, suffix: str) -> None:
    """Opus whose packets from 0.5 to 1 s are lost: what comes after them stays at its time."""
    clean = tone(1.5, 48_000)
    clean[: 48_000 + 12_000] = 0
    clean[48_000 + 12_000 + 480 :] = 0  # a beep of 10 ms at 1.25 s
    with av.open(str(tmp_path / f"lossy{suffix}"), "w") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        packets = []
        for start in range(0, len(clean), 960):
            part = (clean[None, start : start + 960] * 32_767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets:
            if packet.pts is None or not 0.5 <= packet.pts * packet.time_base < 1:
                container.mux(packet)
    sound = AudioFile(tmp_path / f"lossy{suffix}")
    speech = np.concatenate(list(sound.speech()))
    at_s = float(np.abs(speech).argmax()) / 16_000
    assert at_s == pytest.approx(1.25, abs=0.02)
    if suffix != ".mp4":  # an MP4 file has lengths of packets, no times: nothing is missing there
        assert any("missing" in note for note in sound.notes)


def test_sound_without_holes_is_left_alone(tmp_path: Path) -> None:
    sound = AudioFile(write_wav(tmp_path / "s.wav", tone(1, 22_050), 22_050))
    assert (sound.samples, sound.notes) == (22_050, [])


# -- frames without, or with wrong, times


def test_a_stream_without_times_plays_at_its_rate(tmp_path: Path) -> None:
    pictures = [np.roll(corners(), 4 * n, axis=1) for n in range(30)]
    path = write_video(tmp_path / "clip.h264", pictures, options={"crf": "16", "bf": "2"})
    video = VideoFile(path)
    pts = [float(frame.pts * video.time_base) for frame in video.frames()]
    assert len(pts) == 30
    assert np.diff(pts) == pytest.approx([0.04] * 29, abs=1e-3)


def test_transport_streams_joined_by_cat_play_one_after_the_other(tmp_path: Path) -> None:
    pictures = [np.roll(corners(), 4 * n, axis=1) for n in range(25)]
    one = write_video(tmp_path / "one.ts", pictures, options={"crf": "16", "bf": "2"}).read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    video = VideoFile(tmp_path / "two.ts")
    pts = [float(frame.pts * video.time_base) for frame in video.frames()]
    assert len(pts) >= 45  # what hangs at the joint is lost in any reader
    assert min(np.diff(pts)) > 0.03
    assert max(np.diff(pts)) < 0.1
    longer = list(extended(video, Fraction(3), "bounce", trim=False))
    assert min(np.diff([f.pts for f in longer])) > 0
    assert float(longer[-1].pts * video.time_base) == pytest.approx(3, abs=0.1)


def test_b_frames_in_avi_start_at_zero(tmp_path: Path) -> None:
    pictures = [np.roll(corners(), 4 * n, axis=1) for n in range(25)]
    path = write_video(tmp_path / "clip.avi", pictures, options={"crf": "16", "bf": "2"}, unit=Fraction(1, 25))
    video = VideoFile(path)
    frames = list(video.frames())
    pts = [float(frame.pts * video.time_base) for frame in frames]
    assert pts[0] == 0
    assert np.diff(pts) == pytest.approx([0.04] * (len(pts) - 1), abs=1e-3)
    for number, frame in enumerate(frames):
        assert_alike(video.picture(frame.frame).rgb(), pictures[number], most=8)


# -- interlacing


def test_interlaced_footage_is_deinterlaced_with_a_note(tmp_path: Path) -> None:
    def field_pair(number: int) -> Picture:
        """Two moments 20 ms apart in the lines of one frame: a bar that moves 6 pixels between them."""
        picture = np.zeros((64, 96, 3), np.uint8)
        for line in range(64):
            left = 8 + 6 * (2 * number + line % 2)
            picture[line, left : left + 12] = 235
        return picture

    path = tmp_path / "clip.mkv"
    write_video(path, [field_pair(n) for n in range(5)], options={"crf": "4", "x264-params": "tff=1"}, interlaced=True)
    video = VideoFile(path)
    assert any("interlaced" in note for note in video.notes)
    frames = list(video.frames())
    assert len(frames) == 5
    assert [float(f.pts * video.time_base) for f in frames] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16], abs=1e-3)
    luma: Any = frames[2].frame.to_ndarray(format="gray").astype(int)
    combs = np.abs(luma[1:-1:2] - luma[:-2:2]).mean()
    assert combs < 4  # stored, every second line is 6 pixels off: about 30


# -- held pictures


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("fps", [1, 5, 10, 15])
def test_a_mouth_gets_frames_where_the_video_has_few(tmp_path: Path, suffix: str, fps: int) -> None:
    pictures = [np.roll(corners(), 8 * n, axis=1) for n in range(3 * fps)]
    ticks = [n * 25 // fps for n in range(len(pictures))] if suffix == ".avi" else None
    unit = Fraction(1, 25) if suffix == ".avi" else Fraction(1, fps)
    pts = ticks or list(range(len(pictures)))
    video = VideoFile(write_video(tmp_path / f"slow{suffix}", pictures, pts=pts, unit=unit))
    assert video.time_base <= Fraction(1, 1000)
    frames = list(filled(video.frames(), video, Fraction(2)))
    at = [float(frame.pts * video.time_base) for frame, _ in frames]
    spoken = [t for t in at if t < 2]
    assert max(np.diff(spoken)) < 0.061
    assert [t for t in at if t >= 2.2] == [
        t for t in (float(f.pts * video.time_base) for f in video.frames()) if t >= 2.2
    ]
    own = [frame.pts for frame, added in frames if not added]
    assert own == [frame.pts for frame in video.frames()]


@pytest.mark.parametrize("rate", [Fraction(24_000, 1001), Fraction(25), Fraction(60)])
def test_ordinary_video_gets_no_frames(tmp_path: Path, rate: Fraction) -> None:
    path = write_video(tmp_path / "c.mp4", [corners()] * 20, pts=list(range(20)), unit=1 / rate)
    video = VideoFile(path)
    assert not any(added for _, added in filled(video.frames(), video, Fraction(5)))


@pytest.mark.parametrize("extend", ["bounce", "loop", "freeze"])
def test_coarse_times_are_refined_in_every_extension(tmp_path: Path, extend: str) -> None:
    pictures = [np.roll(corners(), 8 * n, axis=1) for n in range(20)]
    video = VideoFile(write_video(tmp_path / "c.avi", pictures, unit=Fraction(1, 25)))
    frames = list(extended(video, Fraction(2), extend, trim=False))
    assert np.diff([float(f.pts * video.time_base) for f in frames]) == pytest.approx(
        [0.04] * (len(frames) - 1), abs=2e-3
    )
    assert len(frames) == 50


# -- backwards


def test_a_long_video_with_one_key_frame_plays_backwards_at_the_cost_of_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [np.roll(corners(), n % 96, axis=1) for n in range(400)]
    path = write_video(tmp_path / "c.mp4", pictures, options={"crf": "10", "g": "1000", "bf": "2"})
    video = VideoFile(path)
    decoded = 0
    raw = VideoFile._raw

    def counted(self: VideoFile, keyframes: bool = False) -> Any:
        nonlocal decoded
        for frame in raw(self, keyframes):
            decoded += 1
            yield frame

    monkeypatch.setattr(VideoFile, "_raw", counted)
    frames = list(extended(video, Fraction(16 + 12), "bounce", trim=False))
    assert len(frames) == 700
    assert decoded <= 2 * 400
    for there, back in ((398, 400), (300, 498), (101, 697)):
        assert_alike(video.picture(frames[back].frame).rgb(), video.picture(frames[there].frame).rgb(), most=0.01)
    assert set(np.diff([frame.pts for frame in frames])) == {video.step}


def test_it_plays_backwards_again(tmp_path: Path) -> None:
    pictures = [np.roll(corners(), 3 * n, axis=1) for n in range(8)]
    video = VideoFile(write_video(tmp_path / "c.mp4", pictures))
    order = [*range(8), *range(6, -1, -1), *range(1, 8), *range(6, -1, -1), 1]
    frames = list(extended(video, Fraction(len(order), 25), "bounce", trim=False))
    assert len(frames) == len(order)
    for frame, number in zip(frames, order, strict=True):
        assert_alike(video.picture(frame.frame).rgb(), pictures[number], most=8)
