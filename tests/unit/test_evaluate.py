"""`insync evaluate`: its figures are right on results whose quality is known, and its page is whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from insync.client.cli import main
from insync.training.evaluate import Evaluation, Footage, best_lag, clips_of, correlation, evaluate, lagged, means


@pytest.fixture(scope="module")
def evaluation(repository: Path) -> Evaluation:
    return Evaluation(repository)


@pytest.fixture(scope="module")
def footage(evaluation: Evaluation, sample_clip: Path) -> Footage:
    return evaluation.read(sample_clip, seconds=1.5)


def test_lags() -> None:
    rng = np.random.default_rng(0)
    mouth = rng.normal(size=100).astype(np.float32)
    assert best_lag(np.roll(mouth, 3), mouth) == 3
    assert lagged(np.roll(mouth, -2), mouth, -2) == pytest.approx(1)
    assert abs(lagged(np.roll(mouth, 3), mouth, 0)) < 0.4
    assert np.isnan(correlation(mouth, np.zeros_like(mouth)))
    mouth[:95] = np.nan
    assert best_lag(mouth, mouth) == 0


def test_the_filmed_frames_themselves_are_perfect(evaluation: Evaluation, footage: Footage) -> None:
    real = footage.crops[footage.first :]
    perfect = evaluation.measure("a", "untouched", footage, real, real, None, 0)
    assert perfect.ssim == pytest.approx(1)
    assert perfect.seam == pytest.approx(1)
    assert perfect.psnr_db == pytest.approx(10 * np.log10(255**2 / 1e-2))
    assert (perfect.lmd, perfect.follows) == pytest.approx((0, 1))
    assert (perfect.liveliness, perfect.jitter) == pytest.approx((1, 1))
    blurred = np.stack([np.full_like(crop, crop.mean()) for crop in real])
    grey = evaluation.measure("a", "grey", footage, blurred, real, None, 0)
    assert grey.ssim < 0.7
    assert grey.psnr_db < 25
    assert grey.seam < 0.2
    assert np.isnan(grey.lmd)  # nobody is there


def test_only_the_mouth_is_drawn_anew(evaluation: Evaluation, footage: Footage) -> None:
    results, sources, predicted = evaluation.draw(footage, footage.sound)
    assert len(results) == len(sources) == len(predicted) == len(footage.crops) - footage.first
    assert np.array_equal(results[:, :112], sources[:, :112])
    assert (results[:, 150:230, 90:170] != sources[:, 150:230, 90:170]).any(axis=(1, 2, 3)).all()


def test_a_folder_is_judged_and_what_cannot_be_is_named(repository: Path, sample_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "good.mp4").write_bytes(sample_clip.read_bytes())
    (tmp_path / "clips" / "text.mp4").write_text("not a video")
    out = tmp_path / "out"
    figures = evaluate(clips_of([tmp_path / "clips"]), out, repository, seconds=1.2)
    ways = [one.way for one in figures]
    assert ways == ["self", "shuffled", "silence", "untouched", "darkened", "covered", "moving"]
    assert [one.way for one in means(figures)] == ways
    document = json.loads((out / "evaluation.json").read_text())
    assert len(document["figures"]) == len(ways)
    assert list(document["refused"]) == ["text.mp4"]
    page = (out / "evaluation.html").read_text()
    assert page.count("data:image/jpeg;base64,") == page.count("data:video/mp4;base64,") == 1
    assert "http" not in page
    assert "text.mp4" in page
    assert (out / "evaluation.md").read_text().count("\n") == 2 + 2 * len(ways)


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "none"), "-o", str(tmp_path)]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "-o", str(tmp_path)]) == 1
    assert "holds no clip" in capsys.readouterr().err
    (tmp_path / "a.mp4").write_text("not a video")
    assert main(["evaluate", str(tmp_path), "-o", str(tmp_path)]) == 1
    assert "no clip could be judged" in capsys.readouterr().err
