"""Whole dubbing jobs against the real server, and through the command line."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.cli.main import main
from insync.client import BadInput, NotFound
from insync.client.dub import DubOptions, dub
from insync.client.media.audio_reader import AudioFile
from insync.client.media.reader import VideoFile
from insync.client.media.yuv import plane_views
from insync.ensemble.server.embedded import EmbeddedServer

pytestmark = pytest.mark.triton

Planes = list[NDArray[np.uint8]]


def write_video(
    path: Path,
    images: list[NDArray[np.uint8]],
    fps: int = 25,
    codec: str = "libx264",
    aspect: Fraction = Fraction(1),
    matrix: tuple[int, ...] | None = None,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        stream.codec_context.sample_aspect_ratio = aspect
        stream.set_display_matrix(matrix)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_noise(path: Path, seconds: float, rate_hz: int = 16_000) -> Path:
    samples = (0.1 * np.random.default_rng(1).standard_normal((1, int(seconds * rate_hz)))).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[list[Fraction], list[Planes]]:
    video = VideoFile(path)
    times, planes = [], []
    for frame in video.frames():
        times.append(frame.pts * video.time_base)
        planes.append([plane.copy() for plane in plane_views(frame.frame)])
    return times, planes


def changed_box(one: Planes, other: Planes) -> tuple[int, int, int, int]:
    """Return the box of columns and rows of luma from the first to the last sample that differs in any plane."""
    boxes = []
    for factor, first, second in zip((1, 2, 2), one, other, strict=True):
        rows, columns = np.nonzero(first != second)
        if len(rows):
            boxes.append([columns.min() * factor, rows.min() * factor, -columns.max() * factor, -rows.max() * factor])
    x0, y0, x1, y1 = np.min(boxes, axis=0)
    return int(x0), int(y0), -int(x1), -int(y1)


@pytest.fixture(scope="module")
def short_clip(images: list[NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "short.mp4", images[:20])


def test_lossless_keeps_every_sample_outside_the_mouth_and_every_time(
    server: EmbeddedServer, short_clip: Path, sample_speech: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    url = server.grpc_url
    report = dub(
        short_clip,
        sample_speech,
        out,
        server=url,
        options=DubOptions(quality="lossless", extend="none", progress=False),
    )
    times, before = read(short_clip)
    dubbed_times, after = read(out)
    assert report.frames == report.changed == len(after) == 20
    assert dubbed_times == times
    height, width = before[0][0].shape
    for one, other in zip(before, after, strict=True):
        x0, y0, x1, y1 = changed_box(one, other)
        assert (x1 - x0) * (y1 - y0) < 0.12 * width * height
        assert 0.3 * width < x0 < x1 < 0.7 * width
    speech = [np.concatenate(list(AudioFile(path).speech())) for path in (sample_speech, out)]
    compared = len(speech[1]) - 100
    assert compared > 0.75 * 16_000
    np.testing.assert_allclose(speech[0][:compared], speech[1][:compared], atol=1e-3)
    assert min(report.stages_s.values()) > 0
    assert report.stages.requests < 1.2 * report.frames


def test_audio_four_times_as_long(server: EmbeddedServer, short_clip: Path, tmp_path: Path) -> None:
    audio = write_noise(tmp_path / "long.wav", 3.2)
    for extend, frames in (("bounce", 80), ("none", 20)):
        out = tmp_path / f"{extend}.mp4"
        report = dub(short_clip, audio, out, server=server.grpc_url, options=DubOptions(extend=extend, progress=False))
        times, _ = read(out)
        assert report.frames == len(times) == frames
        assert times == [Fraction(k, 25) for k in range(frames)]
        sound_s = float(AudioFile(out).duration_s)
        assert sound_s == pytest.approx(3.2 if extend != "none" else 0.8, abs=0.1)
        assert any("was cut" in note for note in report.notes) is (extend == "none")


def test_video_longer_than_the_audio(server: EmbeddedServer, short_clip: Path, tmp_path: Path) -> None:
    audio = write_noise(tmp_path / "short.wav", 0.4)
    whole = dub(short_clip, audio, tmp_path / "whole.mp4", server=server.grpc_url, options=DubOptions(progress=False))
    trimmed = dub(
        short_clip,
        audio,
        tmp_path / "trimmed.mp4",
        server=server.grpc_url,
        options=DubOptions(trim=True, progress=False),
    )
    assert (whole.frames, trimmed.frames) == (20, 10)


def test_a_photo_and_a_mpg(server: EmbeddedServer, images: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    audio = write_noise(tmp_path / "a.wav", 0.6, 44_100)
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.cvtColor(images[0], cv2.COLOR_RGB2BGR))
    report = dub(
        tmp_path / "photo.jpg",
        audio,
        tmp_path / "photo.mp4",
        server=server.grpc_url,
        options=DubOptions(progress=False),
    )
    assert (report.frames, report.changed) == (15, 15)
    clip = write_video(tmp_path / "clip.mpg", images[:12], codec="mpeg2video")
    report = dub(clip, audio, tmp_path / "mpg.mkv", server=server.grpc_url, options=DubOptions(progress=False))
    assert (report.frames, report.changed) == (15, 15)
    video = VideoFile(tmp_path / "mpg.mkv")
    assert (video.width, video.height) == (1280, 720)
    assert video.fps == Fraction(25)


def test_a_phone_held_upright_and_wide_pixels(
    server: EmbeddedServer, images: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    audio = write_noise(tmp_path / "a.wav", 0.2)
    turned = [np.ascontiguousarray(np.rot90(image, -1)) for image in images[:5]]
    phone = write_video(tmp_path / "phone.mp4", turned, matrix=(0, -65_536, 0, 65_536, 0, 0, 0, 0, 2**30))
    wide = tmp_path / "wide.mp4"
    squeezed = [np.asarray(cv2.resize(image, (960, 720)), np.uint8) for image in images[:5]]
    write_video(wide, squeezed, aspect=Fraction(4, 3))
    for clip, turns, aspect in ((phone, 1, 1), (wide, 0, Fraction(4, 3))):
        for suffix in (".mp4", ".mkv"):
            out = tmp_path / f"out{suffix}"
            report = dub(
                clip, audio, out, server=server.grpc_url, options=DubOptions(quality="lossless", progress=False)
            )
            assert (report.frames, report.changed) == (5, 5)
            video = VideoFile(out)
            assert video.orientation.turns == (turns if suffix == ".mp4" else 0)
            assert video.pixel_aspect == aspect
            shown = video.picture(next(video.frames()).frame)
            source = VideoFile(clip)
            before = source.picture(next(source.frames()).frame).rgb()
            rows, columns = np.nonzero((np.abs(shown.rgb().astype(int) - before) > 3).any(axis=2))
            # The mouth of the sample's first frame.
            assert 0.42 < columns.mean() / shown.width < 0.6
            assert 0.4 < rows.mean() / shown.height < 0.9


def test_a_video_without_a_face(server: EmbeddedServer, sample_clip: Path, tmp_path: Path) -> None:
    black = write_video(tmp_path / "black.mp4", [np.zeros((240, 320, 3), np.uint8)] * 5)
    audio = write_noise(tmp_path / "a.wav", 0.2)
    out = tmp_path / "out.mp4"
    with pytest.raises(BadInput, match=r"registering:.*face"):
        dub(black, audio, out, server=server.grpc_url, options=DubOptions(progress=False))
    assert not out.exists()
    twin = dub(
        sample_clip, audio, tmp_path / "o.mp4", server=server.grpc_url, options=DubOptions(trim=True, progress=False)
    ).twin
    report = dub(
        black, audio, out, server=server.grpc_url, options=DubOptions(twin=twin, quality="lossless", progress=False)
    )
    assert (report.frames, report.changed) == (5, 0)
    assert report.notes == ("no face was found in any frame: the video is unchanged",)
    for before, after in zip(read(black)[1], read(out)[1], strict=True):
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_face_that_is_not_in_every_frame(
    server: EmbeddedServer, images: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    black = np.zeros_like(images[0])
    clip = write_video(tmp_path / "in.mp4", [*images[:5], *[black] * 5, *images[5:10]])
    audio = write_noise(tmp_path / "a.wav", 0.6)
    report = dub(clip, audio, tmp_path / "out.mp4", server=server.grpc_url, options=DubOptions(progress=False))
    assert (report.frames, report.changed) == (15, 10)
    cuts, faceless = report.notes
    assert cuts.startswith("2 cuts")
    assert faceless == "5 of 15 frames show no face that can be synced and passed through unchanged"


@pytest.mark.parametrize("late", ["wait", "skip", "repeat"])
def test_late_frames_of_a_clip_with_a_deadline(
    server: EmbeddedServer, short_clip: Path, tmp_path: Path, late: Literal["wait", "skip", "repeat"]
) -> None:
    """No frame is received within a millisecond."""
    audio, out = write_noise(tmp_path / "a.wav", 0.8), tmp_path / "out.mp4"
    report = dub(
        short_clip,
        audio,
        out,
        server=server.grpc_url,
        options=DubOptions(deadline_s=0.001, late=late, quality="lossless", progress=False),
    )
    before, (times, planes) = read(short_clip)[0], read(out)
    assert report.stages.late >= 19  # the stream waits for the first one
    assert any("frames were late" in note for note in report.notes)
    assert len(times) == report.frames == 20 - report.stages.skipped
    assert set(times) <= set(before)
    assert times == sorted(set(times))
    if late == "skip":
        assert report.stages.skipped > 0
    if late == "repeat":
        assert report.stages.repeated > 0
        same = [all(map(np.array_equal, one, other)) for one, other in itertools.pairwise(planes)]
        assert sum(same) == report.stages.repeated


def test_an_unknown_twin(server: EmbeddedServer, short_clip: Path, tmp_path: Path) -> None:
    audio = write_noise(tmp_path / "a.wav", 0.2)
    with pytest.raises(NotFound, match="TWIN"):
        dub(
            short_clip,
            audio,
            tmp_path / "out.mp4",
            server=server.grpc_url,
            options=DubOptions(twin="0" * 32, progress=False),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_server_that_dies_leaves_no_partial_file(sample_clip: Path, sample_speech: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with EmbeddedServer(twin_store=tmp_path / "twins") as dying:
        job = subprocess.Popen(
            [*command(sample_clip, sample_speech, folder / "out.mp4", dying.grpc_url), "--retry", "1"],
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_part(folder)
        assert dying.pid is not None
        os.kill(dying.pid, signal.SIGKILL)
        _, captured = job.communicate(timeout=60)
    assert job.returncode == 1
    assert captured.startswith("insync: frame ")
    assert "no server answers at" in captured
    assert captured.count("\n") == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_no_partial_file(
    server: EmbeddedServer, sample_clip: Path, sample_speech: Path, tmp_path: Path, number: signal.Signals
) -> None:
    job = subprocess.Popen(
        command(sample_clip, sample_speech, tmp_path / "out.mp4", server.grpc_url),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
    )
    wait_for_part(tmp_path)
    job.send_signal(number)
    _, captured = job.communicate(timeout=30)
    assert job.returncode == 130
    assert captured == "insync: interrupted\n"
    assert not list(tmp_path.iterdir())


def command(video: Path, audio: Path, out: Path, server: str) -> list[str]:
    arguments = ["dub", str(video), str(audio), "-o", str(out), "--server", server, "-q"]
    return [sys.executable, "-m", "insync.cli", *arguments]


def wait_for_part(folder: Path) -> None:
    deadline = time.monotonic() + 90
    while not any(path.stat().st_size for path in folder.glob(".*.part")):
        assert time.monotonic() < deadline, "the job never began to write"
        time.sleep(0.02)


def test_the_command_line_with_a_server_of_its_own(
    images: list[NDArray[np.uint8]],
    short_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INSYNC_TWINS", str(tmp_path / "twins"))
    audio = write_noise(tmp_path / "a.wav", 0.8)
    out = tmp_path / "out.mp4"
    assert main(["dub", str(short_clip), str(audio), "-o", str(out), "--timings"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "20/20" in captured.err  # the progress bar
    assert "fps; ms per frame: decode" in captured.err
    assert len(read(out)[0]) == 20


def test_marks_on_the_command_line(
    server: EmbeddedServer,
    images: list[NDArray[np.uint8]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, audio = write_video(tmp_path / "clip.mp4", images[:3]), write_noise(tmp_path / "a.wav", 0.1)
    blocked = tmp_path / "file"
    blocked.touch()
    for out, options, signing, dubbed, verified, message in (
        ("signed.mp4", [], "own", 0, 0, ""),
        ("tagged.mkv", [], "own", 0, 3, "mkv file cannot hold a C2PA manifest"),
        ("plain.mov", ["--no-provenance"], "own", 0, 4, ""),
        ("failed.mp4", [], "file", 3, 3, "but it is not signed: signing failed"),
        ("quiet.mp4", ["-q"], "file", 3, 3, "is complete, but not signed: signing failed"),
    ):
        monkeypatch.setenv("INSYNC_SIGNING", str(tmp_path / signing))
        path = tmp_path / out
        assert main(["dub", str(clip), str(audio), "-o", str(path), "--server", server.grpc_url, *options]) == dubbed
        assert message in capsys.readouterr().err
        assert main(["verify", str(path)]) == verified
        assert len(read(path)[0]) == 3


def test_twins_on_the_command_line(
    short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSYNC_TWINS", str(tmp_path / "twins"))
    assert main(["twin", "create", str(short_clip)]) == 0
    twin = capsys.readouterr().out.strip()
    assert len(twin) == 32
    assert main(["twin", "list"]) == 0
    assert capsys.readouterr().out.startswith(twin)
    assert main(["twin", "show", twin, "-o", str(tmp_path / "sheet.png")]) == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    assert sheet.shape[1] == 5 * 256
    assert main(["twin", "rm", twin]) == 0
    capsys.readouterr()
    assert main(["twin", "show", twin]) == 1
    assert twin in capsys.readouterr().err


def test_after_a_cut_no_mouth_hangs_where_the_last_shot_had_a_face(
    server: EmbeddedServer, images: list[NDArray[np.uint8]], sample_speech: Path, tmp_path: Path
) -> None:
    """Left, then right, then nobody: no mouth hangs where the last shot had a face."""
    height, width = images[0].shape[:2]
    room = np.random.default_rng(3).integers(60, 200, (9, 16, 3)).astype(np.uint8)
    empty = np.kron(room, np.ones((-(-height // 9), -(-2 * width // 16), 1), np.uint8))[:height, : 2 * width]

    def shot(image: NDArray[np.uint8] | None, left: int) -> NDArray[np.uint8]:
        frame = empty.copy() if left == 0 else np.ascontiguousarray(empty[::-1, ::-1])
        if image is not None:
            frame[:, left : left + width] = image
        return frame

    frames = [shot(image, 0) for image in images[:6]] + [shot(image, width) for image in images[6:12]]
    frames += [np.invert(empty)] * 6
    source, out = write_video(tmp_path / "cuts.mp4", frames), tmp_path / "out.mp4"
    options = DubOptions(quality="lossless", extend="none", progress=False)
    report = dub(source, sample_speech, out, server=server.grpc_url, options=options)
    assert report.changed == 12
    assert any("2 cuts" in note for note in report.notes)
    before, after = read(source)[1], read(out)[1]
    for number in range(12):
        x0, _, x1, _ = changed_box(before[number], after[number])
        assert (x1 <= width) if number < 6 else (x0 >= width)
    for number in range(12, 18):
        assert all(np.array_equal(a, b) for a, b in zip(before[number], after[number], strict=True))
