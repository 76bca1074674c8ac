"""Tests of the load test's command line and report with synthetic data, and that no process imports both Locust and the client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from insync.loadtest import cli
from insync.loadtest.errors import LoadTestError
from insync.loadtest.events import ERROR, FRAME, Event
from insync.loadtest.measure.resources import Group, Sample, Sampler, Watched
from insync.loadtest.measure.statistics import Tally
from insync.loadtest.measure.triton_metrics import Counters, ModelLoad
from insync.loadtest.options import UserOptions
from insync.loadtest.report import page, plots
from insync.loadtest.runs.capacity import CapacityShape, Limits, Step, Usage
from insync.loadtest.runs.runner import Record, progress
from insync.loadtest.runs.soak import Growth
from insync.loadtest.target import Target
from insync.loadtest.users import footage

OPTIONS = UserOptions("host:8001", "clip.mp4", "speech.wav")


def record() -> Record:
    """Return ten seconds of one live user, the last three without a frame."""
    tally = Tally(0.0)
    for second in range(7):
        for k in range(25):
            tally.add(Event(FRAME, 1, "live", second + k / 25, 40.0 + k, late=k > 20))
    tally.add(Event(ERROR, 1, "live", 9.5, text="ServerError: <b> & 12"))
    samples = [
        Sample(
            float(k), Group(1, 2**28), Group(9, 2**30), Group(1, 2**27), 3, 2**20, 0.5, {"lipsync": Counters(25.0 * k)}
        )
        for k in range(11)
    ]
    return Record(tally, samples, [(0.0, 1), (10.0, 0)])


def data(kind: str) -> page.Data:
    """Return the report's data of a run of this kind."""
    made = page.gather(kind, record(), OPTIONS, Target("host:8001", "host:8002"), "insync loadtest")
    if kind == "capacity":
        run = record()
        shape = CapacityShape(Limits(), run.tally, Sampler(Watched()))
        summary = run.tally.window(0, 7)
        models = {"lipsync_decoder": ModelLoad(25.0, 0, 1.5, 3.0, 20.0, 25.0)}
        for streams, held in ((1, True), (2, False), (3, False)):
            shape.search.tried(streams, held)
            # Three streams have no response at all.
            measured = summary if streams < 3 else run.tally.window(7, 9)
            shape.steps.append(Step(streams, streams, held, 0, 7, measured, models, Usage(0.1, 1.2, 0.3)))
        page.add_search(made, shape, Limits(), 25)
    if kind == "soak":
        growth = [
            Growth("server, memory of its own", "MiB", 256.0, 257.0, True),
            Growth("models' processes, memory of their own", "MiB", 1000.0, 1200.0, False),
        ]
        page.add_growth(made, growth, 2.5)
    return made


@pytest.mark.parametrize(("kind", "pictures"), [("capacity", 5), ("soak", 3)])  # a plain load has a subset of these
def test_report_is_one_page(kind: str, pictures: int, tmp_path: Path) -> None:
    page.write(tmp_path / "new" / "folder", data(kind))
    text = (tmp_path / "new" / "folder" / "report.html").read_text()
    assert text.count("<svg") == text.count("</svg>") == pictures
    assert "&lt;b&gt; &amp; ##" in text
    assert "<b>" not in text
    assert not re.search(r"""(src|href)=["']?http""", text)  # self-contained
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL).lower()
    read = json.loads((tmp_path / "new" / "folder" / "report.json").read_text(), parse_constant=pytest.fail)
    assert read["summary"]["frames"] == 175
    assert read["summary"]["missed"] == 28
    assert read["timeline"][8]["p99_ms"] is None
    assert read["models"]["lipsync"]["requests_per_s"] == 25.0
    plots.png(read, str(tmp_path / "plot.png"))  # also from the data as read back
    assert 10_000 < (tmp_path / "plot.png").stat().st_size < 150_000


def test_report_has_capacity_and_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "figures", lambda data: [])  # drawing is slow
    found = data("capacity")
    assert "Live streams sustained: 1 of 25 frames/s each" in page.page(found)
    assert page.held({**found["searches"][0], "cut": True}) == "at least 1 of 25 frames/s"
    grew = data("soak")
    grew["ended"] = "grew after warm-up: models' processes, memory of their own"
    assert "+20.0 %" in page.page(grew)
    assert "grew after warm-up" in page.page(grew)


def test_progress_is_one_line() -> None:
    run = record()
    line = progress(65.0, 3, run.tally.window(2, 7))
    assert line == "1:05, 3 users, live 25.0 frames/s, p50 52 ms, p99 64 ms, late or missing 16.0 %"


@pytest.mark.parametrize(
    ("text", "users"), [("4", {"live": 4}), ("live=2,dub=1", {"live": 2, "dub": 1}), ("mix=3, mix=4", {"mix": 7})]
)
def test_users_are_read(text: str, users: dict[str, int]) -> None:
    assert cli._users(text) == users


@pytest.mark.parametrize(
    "arguments",
    [
        ["--users", "0"],
        ["--users", "live"],
        ["--users", "cats=3"],
        ["--run-time", "0s"],
        ["--run-time", "soon"],
        ["--fps", "nan"],
        ["--soak", "-1"],
        ["--soak", "1", "--find-capacity"],
        ["--shape", "round"],
        ["--late", "never"],
    ],
)
def test_wrong_arguments_are_rejected(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as rejected:
        cli.main(arguments)
    assert rejected.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metrics", "127.0.0.1:9"], "no metrics page at http://127.0.0.1:9"),
        (["--height", "-5"], "height is -5; must be 0 to 4320"),
        (["--find-capacity", "--users", "dub=1"], "--users is dub; with --find-capacity all users must be live"),
        (["--find-capacity", "--step", "1"], "--step is 1 s; must be at least 1 and at least 2 s"),
        (["--processes", "0"], "processes is 0; must be 1 to 64"),
        (["--video", "no-such-clip.mp4"], "no-such-clip.mp4"),
    ],
)
def test_failures_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--host", "127.0.0.1:9", *arguments, "-q", "-o", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("insync loadtest: ")
    assert message.count("\n") == 1
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("1h", 3600)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert cli._duration_s(text) == seconds


def test_footage_is_scaled(sample_clip: Path, sample_speech: Path) -> None:
    loaded = footage.load(sample_clip, sample_speech, height=90)
    assert len(loaded.frames) == footage.MAX_FRAMES
    assert {frame.shape for frame in loaded.frames} == {(90, 160, 3)}
    assert len(loaded.registration) == footage.MAX_FRAMES / footage.REGISTRATION_STRIDE
    assert 7.5 * 16_000 < len(loaded.speech) < 8 * 16_000


def test_a_missing_sample_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(footage, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    with pytest.raises(LoadTestError, match="--video and --audio"):
        footage.sample()


def _python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_load_process_never_imports_locust() -> None:
    loaded: Any = json.loads(
        _python("import json, sys, insync.loadtest.workers.worker; json.dump(sorted(sys.modules), sys.stdout)")
    )
    assert not {"locust", "gevent", "matplotlib"} & set(loaded)


def test_locust_does_not_patch_the_conductor() -> None:
    assert _python(
        "import insync.loadtest.cli, gevent.monkey, socket, threading\n"
        "print(any(map(gevent.monkey.is_module_patched, ('socket', 'threading', 'ssl', 'subprocess'))))"
    ).strip() == "False"  # fmt: skip
