"""The command line without a server: one clear line and the right exit code."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import pytest

from insync.cli.main import main
from insync.core.errors import ServerError


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run a command that fails; return its exit code and the one line of its error."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("insync: ")
    assert captured.err.count("\n") == 1
    return code, captured.err


def test_files_without_video_or_audio(
    tmp_path: Path, sample_speech: Path, sample_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    with wave.open(str(tmp_path / "zero.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    for video, audio, text in (
        (tmp_path / "empty.mp4", sample_speech, "the file is empty (0 bytes)"),
        (tmp_path / "text.mp4", sample_speech, "no video, photo or audio that FFmpeg can read"),
        (tmp_path / "missing.mp4", sample_speech, "there is no such file"),
        (sample_speech, sample_speech, "no video track and no photo; the file holds audio"),
        (sample_clip, sample_clip, "no audio track; the file holds video"),
        (sample_clip, tmp_path / "zero.wav", "the audio track has length 0"),
    ):
        code, line = fails(capsys, "dub", video, audio, "-o", tmp_path / "out.mp4")
        assert code == 1
        assert text in line
    assert not list(tmp_path.glob("*out*"))


def test_invalid_outputs(
    tmp_path: Path, sample_speech: Path, sample_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = fails(capsys, "dub", sample_clip, sample_speech, "-o", tmp_path / "out.webm")
    assert (code, "it must be one of .mp4" in line) == (1, True)
    code, line = fails(capsys, "dub", sample_clip, sample_speech, "-o", tmp_path / "no" / "out.mp4")
    assert (code, "does not exist" in line) == (1, True)


def test_probing_an_address_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ((), ("--canary",)):
        code, line = fails(capsys, "probe", "127.0.0.1:1", "--timeout", "1", *options)
        assert (code, "127.0.0.1:1" in line) == (1, True)
    code, line = fails(capsys, "probe", "nowhere")
    assert (code, "it must be HOST:PORT" in line) == (1, True)


def test_late_frames_need_a_deadline(
    tmp_path: Path, sample_speech: Path, sample_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("dub", sample_clip, sample_speech, "-o", tmp_path / "out.mp4", "-q", "--server", "127.0.0.1:1")
    code, line = fails(capsys, *job, "--late", "skip")
    assert (code, "without deadline_s" in line) == (1, True)
    code, line = fails(capsys, *job, "--deadline", "-1")
    assert (code, "it must be more than 0" in line) == (1, True)


def test_an_address_without_a_server(
    tmp_path: Path, sample_speech: Path, sample_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = fails(
        capsys, "dub", sample_clip, sample_speech, "-o", tmp_path / "out.mp4", "--server", "127.0.0.1:1", "-q"
    )
    assert code == 1
    assert "no server answers at 127.0.0.1:1" in line
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(
    tmp_path: Path,
    sample_speech: Path,
    sample_clip: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("insync.ensemble.server.embedded", "insync.ensemble.server.serve", "insync.export.cli"):
        monkeypatch.setitem(sys.modules, module, None)
    for command in (("dub", sample_clip, sample_speech, "-o", tmp_path / "o.mp4"), ("serve",)):
        code, line = fails(capsys, *command)
        assert code == 2
        assert "pip install 'insync[serve]'" in line
    code, line = fails(capsys, "export", "onnx")
    assert code == 2
    assert "pip install 'insync[serve,export,train]'" in line


def test_debug_shows_the_traceback(tmp_path: Path, sample_speech: Path) -> None:
    with pytest.raises(Exception, match="no such file"):
        main(["dub", str(tmp_path / "none.mp4"), str(sample_speech), "-o", str(tmp_path / "o.mp4"), "--debug"])


@pytest.mark.parametrize("arguments", [[], ["dub"], ["dub", "a", "b"], ["twin"], ["sing"], ["dub", "--quality", "x"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: insync" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["dub"], ["twin"], ["twin", "create"], ["twin", "show"], ["serve"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: insync" in capsys.readouterr().out


def test_twins_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["twin", "list", "--twins", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    for action in ("show", "rm"):
        code, line = fails(capsys, "twin", action, "0" * 32, "--twins", tmp_path)
        assert code == 1
        assert "0" * 32 in line


def test_the_client_loads_nothing_heavy() -> None:
    heavy = "torch", "onnx", "onnxruntime", "nvidia.dali", "numba", "pytriton", "mediapipe"
    code = f"import sys, insync.cli.main, insync.client.dub; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m() -> None:
    done = subprocess.run([sys.executable, "-m", "insync.cli", "--help"], capture_output=True, text=True, check=True)
    assert "dub" in done.stdout


@pytest.mark.parametrize("command", ["export", "curate", "evaluate", "train"])
def test_a_missing_model_repository_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Path:
        raise ServerError("the model repository is missing")

    (tmp_path / "clip.mp4").touch()
    modules = {"export": "insync.export.cli"}
    monkeypatch.setattr(f"{modules.get(command, f'insync.training.cli.{command}')}.default_repository", missing)
    arguments = {
        "export": ["configs"],
        "curate": [str(tmp_path), "-o", str(tmp_path / "out")],
        "evaluate": [str(tmp_path), "-o", str(tmp_path / "out")],
        "train": ["all", str(tmp_path), str(tmp_path / "run"), "--minutes", "0.01"],
    }[command]
    assert main([command, *arguments]) == 1
    assert capsys.readouterr().err.startswith("insync: the model repository is missing")
