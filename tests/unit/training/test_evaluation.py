"""Tests of `insync evaluate`: its metrics on results of known quality, and its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from insync.cli.main import main
from insync.core.spec import SAMPLE_RATE_HZ
from insync.training.data.audio import read_speech
from insync.training.evaluation.evaluate import Drawing, Evaluation, Footage, clips_of, evaluate
from insync.training.metrics import published
from insync.training.metrics.frechet import Networks, distances, frechet_distance
from insync.training.metrics.identity import Likeness
from insync.training.metrics.summary import COMPARED, Metrics, best_lag, correlation, lagged, means, table


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
    perfect = evaluation.measure("a", "untouched", footage, Drawing.untouched(real))
    assert perfect.ssim == pytest.approx(1)
    assert perfect.seam == pytest.approx(1)
    assert perfect.psnr_db == pytest.approx(10 * np.log10(255**2 / 1e-2))
    assert (perfect.lmd, perfect.aperture_corr) == pytest.approx((0, 1))
    assert (perfect.aperture_std_ratio, perfect.jitter) == pytest.approx((1, 1))
    assert (perfect.source_bleed, perfect.identity) == pytest.approx((1, 1))
    blurred = np.stack([np.full_like(crop, crop.mean()) for crop in real])
    whole = np.full(real.shape[:3], 255, np.uint8)
    grey = evaluation.measure("a", "grey", footage, Drawing(blurred, real, whole, np.zeros(len(real), np.float32)))
    assert grey.ssim < 0.7
    assert grey.psnr_db < 25
    assert grey.seam < 0.2
    assert np.isnan(grey.lmd)  # there is no face
    assert grey.source_bleed == 0
    assert grey.identity < 0.5


def test_only_the_mouth_is_changed(evaluation: Evaluation, footage: Footage) -> None:
    results, sources, alphas, predicted = evaluation.draw(footage, footage.sound)
    assert len(results) == len(sources) == len(alphas) == len(predicted) == len(footage.crops) - footage.first
    assert (alphas[:, :112] == 0).all()
    assert np.array_equal(results[:, :112], sources[:, :112])
    assert (results[:, 150:230, 90:170] != sources[:, 150:230, 90:170]).any(axis=(1, 2, 3)).all()


SILENT_CONDITIONS = ["cross", "silence", "untouched", "darkened", "covered", "moving"]


def test_a_folder_is_evaluated_and_unusable_clips_are_listed(
    repository: Path, sample_clip: Path, sample_speech: Path, tmp_path: Path
) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "good.mp4").write_bytes(sample_clip.read_bytes())
    (tmp_path / "clips" / "text.mp4").write_text("not a video")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"good\.mp4: it has no audio: give speech"):
        evaluate(clips_of([tmp_path / "clips"]), out, repository, seconds=1.2)
    metrics = evaluate(clips_of([tmp_path / "clips"]), out, repository, seconds=1.2, speech=sample_speech)
    assert [one.condition for one in metrics] == SILENT_CONDITIONS
    assert [one.condition for one in means(metrics)] == ["silence", "cross", *SILENT_CONDITIONS[2:]]
    # There is no filmed speech to compare with, but the person and the audio are known.
    assert all(np.isnan(getattr(one, name)) for one in metrics for name in COMPARED)
    assert all(0 <= one.source_bleed <= 1 and -1 <= one.identity <= 1 for one in metrics)
    assert metrics[0].identity > 0.8
    document = json.loads((out / "evaluation.json").read_text())
    assert len(document["figures"]) == len(SILENT_CONDITIONS)
    assert list(document["refused"]) == ["text.mp4"]
    assert document["frechet"] == {}
    web = (out / "evaluation.html").read_text()
    assert web.count("data:image/jpeg;base64,") == web.count("data:video/mp4;base64,") == 1
    assert "http" not in web
    assert "text.mp4" in web
    report = (out / "evaluation.md").read_text()
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * len(SILENT_CONDITIONS) + 2 + len(published.ROWS) + 1
    for text in (web, report):
        assert "published feature networks are not included in InSync" in text
        assert "Measured by others, on other data" in text


def test_a_clip_with_speech_is_compared_with_itself(
    evaluation: Evaluation, repository: Path, sample_clip: Path, sample_speech: Path, tmp_path: Path
) -> None:
    talk = tmp_path / "talk.mkv"
    _spoken(repository, sample_clip, sample_speech, talk)
    assert evaluation.read(talk, 2).speaks
    conditions = ["self", "shuffled", "silence", "untouched", "darkened", "covered", "moving"]
    metrics = evaluate([talk], tmp_path / "own", repository, seconds=2)
    assert [one.condition for one in metrics] == conditions
    assert all(np.isfinite(getattr(one, name)) for one in metrics for name in COMPARED)
    crossed = evaluate([talk], tmp_path / "crossed", repository, seconds=2, speech=sample_speech)
    assert [one.condition for one in crossed] == [*conditions[:3], "cross", *conditions[3:]]
    assert all(np.isnan(getattr(crossed[3], name)) for name in COMPARED)
    assert (crossed[0].ssim, crossed[0].identity) == pytest.approx((metrics[0].ssim, metrics[0].identity))


def _spoken(repository: Path, clip: Path, speech: Path, out: Path) -> None:
    """Write the sample dubbed with the speech by the served graphs, with the speech as its audio."""
    drawer = Evaluation(repository)
    footage = drawer.read(clip, 2)
    sound = read_speech(speech)
    assert sound is not None
    with av.open(str(out), "w") as sink:
        stream = sink.add_stream("libx264", rate=25, options={"crf": "15"})
        stream.width = stream.height = 384
        stream.pix_fmt = "yuv420p"
        track = sink.add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ)
        for crop in drawer.draw(replace(footage, first=0), sound).results:
            framed = cv2.copyMakeBorder(crop, 64, 64, 64, 64, cv2.BORDER_REPLICATE)
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(framed, "rgb24")))
        sink.mux(stream.encode())
        frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        sink.mux(track.encode(frame))
        sink.mux(track.encode())


def test_the_table_leaves_out_undefined_values() -> None:
    unknown = {
        name: float("nan")
        for name in Metrics.__dataclass_fields__
        if name not in ("clip", "condition", "frames", "lag")
    }
    one = Metrics(clip="a", condition="cross", frames=3, lag=0, **unknown)
    head, _, row, mean = table([one])
    cells = dict(zip(head, row, strict=True))
    assert {cells.pop(name) for name in ("clip", "condition", "frames")} == {"a", "cross", "3"}
    assert set(cells.values()) == {"–"}
    assert mean[:2] == ["mean", "cross"]


def test_published_results_have_their_own_table() -> None:
    head, _, *rows = published.table(published.Published("ours", None, 0.9, 0.3))
    assert rows[0] == [published.TALK, "–", "–", "–"]  # unknown values stay empty
    assert rows[-1] == ["ours", "–", "0.90", "0.30"]
    assert all(len(row) == len(head) for row in rows)


def test_likeness_is_high_for_the_same_person(footage: Footage) -> None:
    likeness = Likeness()
    first, last = footage.crops[:8], footage.crops[-8:]
    assert likeness.alike(first, first) == pytest.approx(1)
    assert likeness.alike(first, last) > 0.9
    redder = np.round(first * np.array([1.0, 0.6, 0.5])).astype(np.uint8)
    assert likeness.alike(first, redder) < likeness.alike(first, last)


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "none"), "-o", str(tmp_path)]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "-o", str(tmp_path)]) == 1
    assert "no clip in " in capsys.readouterr().err
    (tmp_path / "a.mp4").write_text("not a video")
    assert main(["evaluate", str(tmp_path), "-o", str(tmp_path)]) == 1
    assert "no clip could be evaluated" in capsys.readouterr().err


def test_sync_is_measured_if_there_is_audio(evaluation: Evaluation, footage: Footage) -> None:
    real = footage.crops[footage.first :]
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    filmed = Drawing.untouched(real)
    known = evaluation.measure("a", "untouched", footage, filmed, sound=noise)
    assert 0 <= known.lse_c < 0.5  # a resting mouth does not match noise
    assert 0.5 < known.lse_d < 2
    assert abs(known.offset) <= 15
    for nothing in (None, np.zeros_like(noise)):
        unknown = evaluation.measure("a", "untouched", footage, filmed, sound=nothing)
        assert np.isnan([unknown.lse_c, unknown.lse_d, unknown.offset]).all()


def test_frechet_distance_against_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (20_000, 3)), rng.normal([2, 0, 0], [1, 2, 1], (20_000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-3)
    # Independent axes: the sum of (difference of means)² + (difference of standard deviations)².
    assert frechet_distance(a, b) == pytest.approx(4 + 1, rel=0.03)
    assert np.isnan(frechet_distance(a[:1], b))


class Means(torch.nn.Module):
    """A replacement of both published networks: mean colours of each picture, or clip."""

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
    assert networks["fvd"].features(takes).shape == (4, 3)  # two complete groups of 16 frames of each
    assert networks["fvd"].features([takes[0][:5]]).shape[0] == 0
    for network in networks.values():
        found = distances({"self": takes, "darker": darker}, takes, network)
        assert found["self"] < 1 < found["darker"]
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.pt is not a TorchScript file"):
        Networks(fid=tmp_path / "text.pt").load()
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such feature network"):
        Networks(fvd=tmp_path / "none.pt").load()
