"""`insync evaluate`: its figures are right on results whose quality is known, and its page is whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from insync.client.cli import main
from insync.training.evaluate import Evaluation, Footage, best_lag, clips_of, correlation, evaluate, lagged, means
from insync.training.frechet import Networks, distances, frechet_distance


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
    assert document["frechet"] == {}
    page = (out / "evaluation.html").read_text()
    assert page.count("data:image/jpeg;base64,") == page.count("data:video/mp4;base64,") == 1
    assert "http" not in page
    assert "text.mp4" in page
    report = (out / "evaluation.md").read_text()
    assert sum(line.startswith("|") for line in report.splitlines()) == 2 + 2 * len(ways)
    assert all("published feature networks do not come with InSync" in text for text in (page, report))


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "none"), "-o", str(tmp_path)]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "-o", str(tmp_path)]) == 1
    assert "holds no clip" in capsys.readouterr().err
    (tmp_path / "a.mp4").write_text("not a video")
    assert main(["evaluate", str(tmp_path), "-o", str(tmp_path)]) == 1
    assert "no clip could be judged" in capsys.readouterr().err


def test_sync_is_measured_where_there_is_sound(evaluation: Evaluation, footage: Footage) -> None:
    real = footage.crops[footage.first :]
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    known = evaluation.measure("a", "untouched", footage, real, real, None, 0, noise)
    assert 0 <= known.lse_c < 0.5  # a resting mouth fits no noise
    assert 0.5 < known.lse_d < 2
    assert abs(known.offset) <= 15
    for nothing in (None, np.zeros_like(noise)):
        unknown = evaluation.measure("a", "untouched", footage, real, real, None, 0, nothing)
        assert np.isnan([unknown.lse_c, unknown.lse_d, unknown.offset]).all()


def test_frechet_distance_against_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (20_000, 3)), rng.normal([2, 0, 0], [1, 2, 1], (20_000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-3)
    # Independent axes: the sum of (difference of means)² + (difference of standard deviations)².
    assert frechet_distance(a, b) == pytest.approx(4 + 1, rel=0.03)
    assert np.isnan(frechet_distance(a[:1], b))


class Means(torch.nn.Module):
    """Stands for both published networks: mean colours of each picture, or clip."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        return x.float().flatten(2).mean(2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_fid_and_fvd_are_measured_where_their_networks_are_given(tmp_path: Path) -> None:
    torch.jit.script(Means()).save(str(tmp_path / "net.pt"))
    networks = Networks(tmp_path / "net.pt", tmp_path / "net.pt").load()
    rng = np.random.default_rng(0)
    takes = [rng.integers(0, 255, (40, 16, 16, 3)).astype(np.uint8) for _ in range(2)]
    darker = [np.asarray(take // 2, np.uint8) for take in takes]
    assert networks["fid"].features(takes).shape == (80, 3)
    assert networks["fvd"].features(takes).shape == (4, 3)  # two whole 16 frames of each
    assert networks["fvd"].features([takes[0][:5]]).shape[0] == 0
    for network in networks.values():
        found = distances({"self": takes, "darker": darker}, takes, network)
        assert found["self"] < 1 < found["darker"]
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.pt is not a TorchScript file"):
        Networks(fid=tmp_path / "text.pt").load()
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such feature network"):
        Networks(fvd=tmp_path / "none.pt").load()
