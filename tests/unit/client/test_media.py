"""Reading and writing media: exact times, exact samples, tags, and clear errors. All footage is made here."""

from __future__ import annotations

import os
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from insync.client.media.audio_reader import AudioFile
from insync.client.media.extension import extended
from insync.client.media.reader import VideoFile
from insync.client.media.writer import VideoWriter, check_output
from insync.client.media.yuv import plane_views
from insync.core.compositing import Placed
from insync.core.errors import BadInput, NoAudioTrack, NoVideoTrack, UnreadableMedia, UnwritableMedia

QUARTER_TURN = (0, -65_536, 0, 65_536, 0, 0, 0, 0, 2**30)  # as FFmpeg gives it for a phone held upright


def picture(index: int, width: int = 96, height: int = 64) -> np.ndarray[Any, Any]:
    """Return a moving pattern whose grey level identifies the frame."""
    ys, xs = np.mgrid[0:height, 0:width]
    image = np.stack([xs * 2, ys * 3, np.full_like(xs, 5 * index)], axis=-1)
    return np.asarray((image + 3 * index) % 256, np.uint8)


def write_clip(
    path: Path,
    pts: list[int],
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (96, 64),
    time_base: Fraction = Fraction(1, 12_800),
    rate: Fraction = Fraction(25),
    tags: tuple[int, int, int, int] | None = None,
    aspect: Fraction = Fraction(1),
    options: dict[str, str] | None = None,
    gop: int = 12,
    matrix: tuple[int, ...] | None = None,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        context = stream.codec_context
        context.time_base = time_base
        context.gop_size = gop
        context.sample_aspect_ratio = aspect
        stream.set_display_matrix(matrix)
        if tags:
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        for index, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = at, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, seconds: float, rate_hz: int = 22_050, channels: int = 1, level: float = 0.5) -> Path:
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = (level * np.sin(2 * np.pi * 330 * t)).astype(np.float32)
    with av.open(str(path), "w") as container:
        layout = "mono" if channels == 1 else "stereo"
        codec = {".wav": "pcm_f32le", ".flac": "flac", ".m4a": "aac", ".mp3": "libmp3lame"}[path.suffix]
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        for start in range(0, len(tone), 1000):
            part = np.repeat(tone[None, start : start + 1000], channels, axis=0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def copy_through(
    source: VideoFile, audio: AudioFile, out: Path, **options: Any
) -> list[tuple[int, list[np.ndarray[Any, Any]]]]:
    """Write every frame back unchanged; return the planes and times written."""
    quality, extend = options.get("quality", "lossless"), options.get("extend", "none")
    written = []
    with VideoWriter(out, source, audio, quality) as writer:
        for frame in extended(source, audio.duration_s, extend, options.get("trim", False)):
            written.append((frame.pts, [plane.copy() for plane in plane_views(frame.frame)]))
            writer.write(frame.frame, frame.pts)
        writer.write_audio(None)
    return written


def read(path: Path) -> list[tuple[int, list[np.ndarray[Any, Any]]]]:
    return [(f.pts, [plane.copy() for plane in plane_views(f.frame)]) for f in VideoFile(path).frames()]


VARIABLE = [0, 512, 1024, 1600, 1700, 2900, 3412, 3924, 5000, 6000, 6512, 7024]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p"])
def test_lossless_keeps_every_sample_and_every_time(tmp_path: Path, pixel_format: str) -> None:
    clip = write_clip(
        tmp_path / "in.mp4", VARIABLE, pixel_format=pixel_format, tags=(1, 2 if "j" in pixel_format else 1, 1, 1)
    )
    source, audio = VideoFile(clip), AudioFile(write_sound(tmp_path / "a.wav", 0.4))
    written = copy_through(source, audio, tmp_path / "out.mp4")
    result = VideoFile(tmp_path / "out.mp4")
    assert (result.width, result.height, result.format) == (96, 64, pixel_format)
    assert result.time_base == source.time_base
    assert result.colours == source.colours == (1, 2 if "j" in pixel_format else 1, 1, 1)
    assert [at for at, _ in written] == VARIABLE
    decoded = read(tmp_path / "out.mp4")
    assert [at for at, _ in decoded] == VARIABLE
    for (_, before), (_, after) in zip(written, decoded, strict=True):
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("extension", [".mp4", ".mov", ".mkv"])
def test_lossless_keeps_the_sound(tmp_path: Path, extension: str) -> None:
    clip = VideoFile(write_clip(tmp_path / "in.mp4", [512 * k for k in range(30)]))
    speech = AudioFile(write_sound(tmp_path / "a.flac", 1.1, 48_000, 2))
    copy_through(clip, speech, tmp_path / f"out{extension}")
    back = AudioFile(tmp_path / f"out{extension}")
    assert (back.rate_hz, back.layout, back.samples) == (48_000, "stereo", speech.samples)
    first, second = (np.concatenate(list(file.speech())) for file in (speech, back))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_lossy_sound_stays_in_sync(tmp_path: Path) -> None:
    clip = VideoFile(write_clip(tmp_path / "in.mp4", [512 * k for k in range(30)]))
    speech = AudioFile(write_sound(tmp_path / "a.wav", 1.2))
    copy_through(clip, speech, tmp_path / "out.mp4", quality="high")
    back = np.concatenate(list(AudioFile(tmp_path / "out.mp4").speech()))
    expected = np.concatenate(list(speech.speech()))
    middle = expected[4_000:12_000]
    lags = range(-1_200, 1_200)
    best = max(lags, key=lambda lag: float(middle @ back[4_000 + lag : 12_000 + lag]))
    # The tone's period is 48 samples: only if neither phase nor start is shifted is this 0.
    assert abs((best + 24) % 48 - 24) <= 2
    assert np.abs(back[:200]).max() > 0.1


def test_wide_pixels_rate_and_mpeg(tmp_path: Path) -> None:
    clip = write_clip(
        tmp_path / "in.mpg",
        list(range(40)),
        codec="mpeg2video",
        time_base=Fraction(1, 25),
        aspect=Fraction(32, 27),
        options={"b:v": "2M"},
    )
    source = VideoFile(clip)
    assert source.pixel_aspect == Fraction(32, 27)
    assert source.fps == 25
    written = copy_through(source, AudioFile(write_sound(tmp_path / "a.m4a", 2.0)), tmp_path / "out.mp4")
    result = VideoFile(tmp_path / "out.mp4")
    assert result.pixel_aspect == Fraction(32, 27)
    assert result.fps == 25
    decoded = read(tmp_path / "out.mp4")
    assert [at for at, _ in decoded] == [3_600 * k for k in range(40)]
    for (_, before), (_, after) in zip(written, decoded, strict=True):
        np.testing.assert_array_equal(before[0], after[0])


def test_rotation_is_kept_as_a_tag_or_applied(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", [512 * k for k in range(6)], matrix=QUARTER_TURN)
    source, audio = VideoFile(clip), AudioFile(write_sound(tmp_path / "a.wav", 0.3))
    assert source.orientation.turns == 1
    upright = source.picture(next(source.frames()).frame)
    assert (upright.width, upright.height) == (64, 96)

    copy_through(source, audio, tmp_path / "out.mp4")
    result = VideoFile(tmp_path / "out.mp4")
    assert (result.orientation.turns, result.orientation.matrix, result.width, result.height) == (
        1,
        QUARTER_TURN,
        96,
        64,
    )

    turned = VideoFile(clip, upright=True)
    assert (turned.orientation.turns, turned.width, turned.height) == (0, 64, 96)
    copy_through(turned, audio, tmp_path / "out.mkv")
    lying, standing = read(clip), read(tmp_path / "out.mkv")
    for (_, before), (_, after) in zip(lying, standing, strict=True):
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(np.rot90(one), other)


def test_pasting_while_decoding_does_not_change_later_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", [512 * k for k in range(24)], gop=24)
    clean = read(clip)
    source = VideoFile(clip)
    black = Placed(10, 10, 50, 50, np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), np.float32))
    for (_, before), frame in zip(clean, source.frames(), strict=True):
        view = source.picture(frame.frame)
        view.paste(black)
        luma = plane_views(frame.frame)[0].copy()
        assert (luma[10:50, 10:50] == 16).all()
        luma[10:50, 10:50] = before[0][10:50, 10:50]
        np.testing.assert_array_equal(luma, before[0])


def order(
    frames: list[tuple[int, list[np.ndarray[Any, Any]]]], source: list[tuple[int, list[np.ndarray[Any, Any]]]]
) -> list[int]:
    """Return which source frame each frame shows."""
    return [
        int(np.argmin([np.abs(planes[0].astype(int) - candidate[0]).sum() for _, candidate in source]))
        for _, planes in frames
    ]


def test_bounce_runs_back_and_forth_with_mirrored_times(tmp_path: Path) -> None:
    clip = VideoFile(write_clip(tmp_path / "in.mp4", VARIABLE, gop=5))
    given = list(extended(clip, Fraction(20_000, 12_800), "bounce", False))
    there, back = list(range(12)), list(range(10, -1, -1))
    expected = [*there, *back, *range(1, 12)]
    assert order([(f.pts, list(plane_views(f.frame))) for f in given], read(clip.path)) == expected[: len(given)]
    steps = np.abs(np.diff([VARIABLE[k] for k in expected[: len(given)]]))
    np.testing.assert_array_equal(np.diff([f.pts for f in given]), steps)
    assert given[-1].pts < 20_000
    assert len(given) > 24


def test_bounce_over_several_key_frames(tmp_path: Path) -> None:
    clip = VideoFile(write_clip(tmp_path / "in.mp4", [512 * k for k in range(45)], gop=10))
    given = list(extended(clip, Fraction(3), "bounce", False))
    expected = [*range(45), *range(43, -1, -1)][: len(given)]
    assert order([(f.pts, list(plane_views(f.frame))) for f in given], read(clip.path)) == expected
    assert len(given) == 75


@pytest.mark.parametrize(("extend", "count"), [("loop", 38), ("freeze", 38), ("none", 12)])
def test_other_extensions(tmp_path: Path, extend: str, count: int) -> None:
    clip = VideoFile(write_clip(tmp_path / "in.mp4", [512 * k for k in range(12)]))
    given = list(extended(clip, Fraction(3, 2), extend, False))
    expected = {"loop": [k % 12 for k in range(38)], "freeze": [*range(12), *[11] * 26], "none": list(range(12))}
    assert [f.pts for f in given] == [512 * k for k in range(count)]
    assert order([(f.pts, list(plane_views(f.frame))) for f in given], read(clip.path)) == expected[extend]


def test_with_trim_the_video_ends_with_the_audio_and_otherwise_it_continues(tmp_path: Path) -> None:
    clip = VideoFile(write_clip(tmp_path / "in.mp4", [512 * k for k in range(25)]))
    assert len(list(extended(clip, Fraction(1, 2), "bounce", True))) == 13
    assert len(list(extended(clip, Fraction(1, 2), "bounce", False))) == 25


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
def test_a_photo_is_shown_for_the_duration_of_the_audio(tmp_path: Path, name: str) -> None:
    image = cv2.GaussianBlur(picture(3, 321, 241), (9, 9), 3)
    cv2.imwrite(str(tmp_path / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    photo = VideoFile(tmp_path / name)
    assert photo.photo
    assert photo.fps == Fraction(25)
    assert (photo.width, photo.height, photo.format) == (320, 240, "yuv420p")
    frames = list(extended(photo, Fraction(2), "none", False))
    assert len(frames) == 50
    assert frames[49].pts * photo.time_base == Fraction(49, 25)
    rgb = photo.picture(frames[7].frame).rgb().astype(int)
    assert np.abs(rgb - image[:240, :320])[20:-20, 20:-20].mean() < 6
    assert frames[7].frame is not frames[8].frame


def test_ten_bits_are_converted_with_a_note(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", [0, 40, 80], pixel_format="yuv420p10le", time_base=Fraction(1, 1000))
    source = VideoFile(clip)
    assert source.format == "yuv420p"
    assert source.notes == ["pixel format yuv420p10le is converted to yuv420p"]
    assert next(source.frames()).frame.format.name == "yuv420p"


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", [0, 40, 80], codec="ffv1", size=(95, 63), time_base=Fraction(1, 1000))
    source = VideoFile(clip)
    copy_through(source, AudioFile(write_sound(tmp_path / "a.wav", 0.1)), tmp_path / "out.mp4")
    assert (VideoFile(tmp_path / "out.mp4").width, VideoFile(tmp_path / "out.mp4").height) == (95, 63)


def test_files_without_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 50)
    whole = write_clip(tmp_path / "whole.mp4", [0, 512]).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    sound = write_sound(tmp_path / "sound.wav", 0.2)
    for name, kind, text in (
        ("empty.mp4", UnreadableMedia, r"empty \(0 bytes\)"),
        ("text.mp4", UnreadableMedia, "damaged file"),
        ("cut.mp4", UnreadableMedia, "damaged file"),
        ("none.mp4", UnreadableMedia, "no such file"),
        (".", UnreadableMedia, "a folder"),
        (sound.name, NoVideoTrack, "holds audio"),
    ):
        with pytest.raises(kind, match=text):
            VideoFile(tmp_path / name)


def test_files_without_audio(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "silent.mp4", [0, 512])
    with pytest.raises(NoAudioTrack, match="holds video"):
        AudioFile(clip)
    with wave.open(str(tmp_path / "zero.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    with pytest.raises(NoAudioTrack, match="length 0"):
        AudioFile(tmp_path / "zero.wav")
    with pytest.raises(BadInput, match=r"sample 0 \(0\.000 s\) is not a finite number"):
        AudioFile(write_sound(tmp_path / "nan.wav", 0.1, level=float("nan")))


def test_damaged_packets_are_skipped(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", [512 * k for k in range(40)], size=(192, 128))
    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat") + 3_000
    data[start : start + 600] = os.urandom(600)
    clip.write_bytes(bytes(data))
    source = VideoFile(clip)
    pts = [frame.pts for frame in source.frames()]
    assert 5 < len(pts) <= 40
    assert pts == sorted(set(pts))


def interrupted(writer: VideoWriter, frame: av.VideoFrame) -> None:
    with writer:
        writer.write(frame, 0)
        raise KeyboardInterrupt


def test_a_failed_job_leaves_no_file_and_keeps_an_existing_one(tmp_path: Path) -> None:
    clip = VideoFile(write_clip(tmp_path / "in.mp4", [0, 512, 1024]))
    audio = AudioFile(write_sound(tmp_path / "a.wav", 0.2))
    out = tmp_path / "out.mp4"
    out.write_text("an earlier result")
    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        interrupted(VideoWriter(out, clip, audio, "high"), next(clip.frames()).frame)
    with pytest.raises(BadInput, match="no frame was written"), VideoWriter(out, clip, audio, "high"):
        pass
    assert set(tmp_path.iterdir()) == before
    assert out.read_text() == "an earlier result"


def test_invalid_outputs(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", [0, 512])
    for out, kind, text in (
        (tmp_path / "out.gif", UnwritableMedia, r"extension is '\.gif'; it must be one of \.mp4"),
        (tmp_path / "missing" / "out.mp4", UnwritableMedia, "does not exist"),
        (clip, BadInput, "overwrite the input"),
    ):
        with pytest.raises(kind, match=text):
            check_output(out, clip)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UnwritableMedia, match="a folder"):
        check_output(tmp_path / "folder.mp4", clip)
    with pytest.raises(BadInput, match="must be one of lossless, high"):
        VideoWriter(tmp_path / "o.mp4", VideoFile(clip), AudioFile(write_sound(tmp_path / "a.wav", 0.1)), "best")
