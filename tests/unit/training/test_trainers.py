"""Tests of training on the sample: every stage runs, resumes and writes what the next one needs; its functions against slow oracles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from insync.core.mouth import MouthBasis
from insync.core.spec import MOUTH, SAMPLE_RATE_HZ, WINDOW_PAST_SAMPLES, WINDOW_SAMPLES
from insync.network import mask
from insync.network.model import LipSync
from insync.network.served import read_weights
from insync.training.cli import train as train_cli
from insync.training.curation.pipeline import curate
from insync.training.data.audio import read_speech, windows
from insync.training.data.batches import Batches, farthest_points
from insync.training.data.dataset import Dataset, fit_basis, mirrored
from insync.training.trainers import config
from insync.training.trainers.checkpoint import SPEECH_PARTS, load_network
from insync.training.trainers.mouth_reader import train_reader
from insync.training.trainers.occlusion import train_occlusion
from insync.training.trainers.renderer import RendererOptions, RendererTraining, train_renderer
from insync.training.trainers.run import Budget, Log, cosine, load_checkpoint, save_checkpoint, update_average
from insync.training.trainers.speech import train_speech


@pytest.fixture(scope="module")
def basis() -> MouthBasis:
    root = Path(__file__).resolve().parents[3]
    return MouthBasis.load(root / "model_repository" / "lipsync_twin" / "1" / "mouth_basis.npz")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, basis: MouthBasis) -> Path:
    """Return a curated data set of the sample with speech as its audio."""
    import av

    root = Path(__file__).resolve().parents[3]
    clips, out = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("data")
    (clips / "broken.mp4").write_bytes(b"not a video")
    speech = read_speech(root / "samples" / "speech.wav")
    assert speech is not None
    with av.open(str(root / "samples" / "sample.mp4")) as source, av.open(str(clips / "talk.mkv"), "w") as sink:
        video = sink.add_stream_from_template(source.streams.video[0])
        sound = sink.add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ)
        frame = av.AudioFrame.from_ndarray((speech * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                sink.mux(packet)
        sink.mux(sound.encode(frame))
        sink.mux(sound.encode())
    curate(clips, out, root / "model_repository" / "lipsync_face" / "1", basis.rigid)
    return out


def test_curation_keeps_the_face_and_skips_a_broken_clip(data: Path) -> None:
    dataset = Dataset(data)
    assert {segment.clip for segment in dataset.segments} == {"talk.mkv"}
    assert sum(segment.frames for segment in dataset.segments) > 120
    assert all(segment.has_sound for segment in dataset.segments)
    assert float(dataset.mel.astype(np.float32).std()) > 0.1
    nose = dataset.landmarks[:, 2]
    assert (
        np.abs(nose - [127.5, 121.5]).max() < 12
    )  # aligned: the base of the nose stays at its position in the template


def test_windows_are_slices_of_the_padded_sound() -> None:
    audio = np.arange(1, 20_001, dtype=np.float32)
    times = np.array([0.0, 0.28, 1.0, 3.0], np.float32)
    for row, time_s in zip(windows(audio, times), times, strict=True):
        for k in (0, 17, WINDOW_SAMPLES - 1):
            at = round(float(time_s) * SAMPLE_RATE_HZ) - WINDOW_PAST_SAMPLES + k
            assert row[k] == (audio[at] if 0 <= at < len(audio) else 0)


def test_basis_is_fitted_and_mirror_images_stay_mirror_images(data: Path, basis: MouthBasis) -> None:
    dataset = Dataset(data)
    fitted = fit_basis(dataset, basis.rigid)
    np.testing.assert_allclose(fitted.components @ fitted.components.T, np.eye(MOUTH), atol=1e-4)
    differences = dataset.shapes - basis.rest
    np.testing.assert_allclose(mirrored(mirrored(differences, basis.rest), basis.rest), differences, atol=1e-6)


def test_every_stage_runs_and_the_result_loads(data: Path, basis: MouthBasis, tmp_path: Path) -> None:
    dataset = Dataset(data)
    torch.manual_seed(0)
    for stage, train in (("occlusion", train_occlusion), ("reader", train_reader)):
        with pytest.raises(FileNotFoundError, match=rf"{stage}\.pt"):
            train_renderer(dataset, basis, tmp_path, 0.01, dataset)
        train(dataset, basis, tmp_path, 0.03)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train_renderer(dataset, basis, tmp_path, 0.01, dataset, start=tmp_path / "nowhere.pt")
    options = replace(RendererOptions(), people=1, targets=2, adversarial_from=0.0, sheet_every=1, checkpoint_every=1)
    train_renderer(dataset, basis, tmp_path, 0.05, dataset, options)
    first = load_checkpoint(tmp_path / "renderer_last.pt")
    assert first is not None
    train_renderer(dataset, basis, tmp_path, float(first["spent_s"]) / 60 + 0.05, dataset, options)
    second = load_checkpoint(tmp_path / "renderer_last.pt")
    assert second is not None
    RendererTraining(dataset, basis, tmp_path, options, dataset, tmp_path / "renderer_last.pt")
    assert second["step"] > first["step"] > 0  # resumed, not begun again
    assert (tmp_path / "sheets" / "last.jpg").stat().st_size > 10_000
    # The speech stage is not run here, because one segment alone has no reliable offset.
    with pytest.raises(FileNotFoundError, match=r"speech\.pt"):
        load_network(tmp_path)
    torch.save({"model": {**_speech_state()}}, tmp_path / "speech.pt")
    assert isinstance(load_network(tmp_path), LipSync)
    _a_new_speech_network_is_joined_with_what_is_served(tmp_path)


def _a_new_speech_network_is_joined_with_what_is_served(run: Path) -> None:
    served = Path(__file__).resolve().parents[3] / "model_repository"
    for name in ("renderer", "occlusion"):
        (run / f"{name}.pt").unlink()
    state = torch.load(run / "speech.pt", weights_only=True)["model"]
    network, before = load_network(run, served), read_weights(served)
    torch.testing.assert_close(network.state_dict()["mapping.body.0.weight"], state["mapping.body.0.weight"])
    for name, weight in before.state_dict().items():
        if not name.startswith(SPEECH_PARTS):
            torch.testing.assert_close(network.state_dict()[name], weight)
    (run / "speech.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"speech\.pt, renderer\.pt, occlusion\.pt"):
        load_network(run, served)


def _speech_state() -> dict[str, torch.Tensor]:
    network = LipSync()
    return {
        f"{part}.{key}": value
        for part in ("projection", "mapping")
        for key, value in getattr(network, part).state_dict().items()
    }


def test_references_avoid_the_targets_and_spread_over_mouth_shapes(data: Path, basis: MouthBasis) -> None:
    dataset = Dataset(data)
    batches = Batches(dataset, basis, 1, 2, seed=0)
    rows, codes = batches.references(0, dataset.time_s[:1])
    assert np.abs(dataset.time_s[rows] - dataset.time_s[0]).min() > 0.4
    assert codes.shape == (5, MOUTH)
    batch = batches.draw(answer_leak_prob=1.0)
    assert any(torch.equal(batch.codes[0], code) for code in batch.reference_codes[0])


def test_selected_references_spread_more_than_random_ones(data: Path, basis: MouthBasis) -> None:
    dataset = Dataset(data)
    spreads = []
    for selective in (True, False):
        batches = Batches(dataset, basis, 1, 2, seed=0, selective=selective)
        codes = np.stack([batches.references(0, dataset.time_s[:1])[1] for _ in range(8)])
        spreads.append(float(codes.std(1).mean()))
    assert spreads[0] > 1.1 * spreads[1]


def test_spoken_batches_are_frames_in_a_row_with_their_sound(data: Path, basis: MouthBasis, tmp_path: Path) -> None:
    dataset = Dataset(data)
    dataset.speaks = [False] * len(dataset.segments)
    with pytest.raises(ValueError, match="no segment of this data set has usable speech"):
        Batches(dataset, basis, 1, 2, seed=0).draw(spoken=True)
    dataset.speaks = [True] * len(dataset.segments)
    for _ in range(3):
        batch = Batches(dataset, basis, 1, 2, seed=0).draw(augmented=False, spoken=True)
        assert batch.codes.shape == (5, MOUTH)
        assert batch.mel.shape == (5, 80, 40)
        mels = torch.from_numpy(dataset.mel.astype(np.float32))
        rows = [int((mels - mel).abs().sum((1, 2)).argmin()) for mel in batch.mel]
        assert np.diff(dataset.time_s[rows]) == pytest.approx(0.04, abs=0.005)
        assert torch.equal(batch.real[2].mul(255).round().byte(), _planes(dataset.crops[rows[2]]))
    train_reader(dataset, basis, tmp_path, 0.02)
    train_occlusion(dataset, basis, tmp_path, 0.02, start=None)
    options = replace(RendererOptions(), people=1, targets=2, adversarial_from=1.0, sync=1.0, sync_every=1)
    train_renderer(dataset, basis, tmp_path, 0.03, dataset, options)
    names, *lines = (tmp_path / "renderer.csv").read_text().splitlines()
    assert lines
    assert all(0 < float(dict(zip(names.split(","), line.split(","), strict=True))["unsynced"]) < 2 for line in lines)


def _planes(crop: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(crop).permute(2, 0, 1)


def test_occluders_match_their_masks(data: Path, basis: MouthBasis) -> None:
    batches = Batches(Dataset(data), basis, 1, 4, seed=1)
    changed_somewhere = 0
    for _ in range(12):
        batch = batches.draw()
        changed_somewhere += int(((batch.crops - batch.real).abs() > 0.05).flatten(1).any(1).sum())
    assert 2 < changed_somewhere < 40
    crops, bare, lips = batches.draw_covered(40)
    assert crops.shape == (40, 3, 256, 256)
    assert bare.shape == lips.shape == (40, 1, *mask.window(crops).shape[2:])
    centre = bare[:, 0, 60:80, 70:90].amin((1, 2))  # the mouth is bare, unless something covers it
    assert 2 < int((centre < 0.1).sum()) < 30
    assert int((centre > 0.9).sum()) > 10


def test_farthest_points_against_the_definition() -> None:
    points = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    chosen = farthest_points(points, 5, 7)
    for k in range(1, 5):
        gaps = [min(np.linalg.norm(points[i] - points[j]) for j in chosen[:k]) for i in range(30)]
        assert gaps[chosen[k]] == pytest.approx(max(gaps))


def test_speech_stage_fails_if_no_segment_matches_its_audio(data: Path, basis: MouthBasis, tmp_path: Path) -> None:
    # The man in the sample says something else than its speech: curation keeps his picture only.
    with pytest.raises(ValueError, match="no segment has a mouth that matches its audio"):
        train_speech(Dataset(data), basis, tmp_path, 0.02)


def test_budget_counts_earlier_runs_and_checkpoints_replace_each_other(tmp_path: Path) -> None:
    assert Budget(1, spent_s=60).share == 1
    assert not list(Budget(0.001, spent_s=60).steps(5, "none"))
    assert cosine(0.02) > cosine(0.5) > cosine(1.0) > 0
    path = tmp_path / "a.pt"
    assert load_checkpoint(path) is None
    for step in (1, 2):
        save_checkpoint(path, {"step": step})
    state = load_checkpoint(path)
    assert state is not None
    assert state["step"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_command_line_names_a_missing_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_cli.main(["reader", str(tmp_path / "none"), str(tmp_path / "run"), "--minutes", "0.01"]) == 1
    assert "frames.npz" in capsys.readouterr().err


def test_settings_are_read_kept_with_the_run_and_named_when_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_cli.main(["settings"]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert config.read(printed) == config.Config()
    own = tmp_path / "own.toml"
    own.write_text("seed = 3\n[renderer]\npeople = 2\nphotos = 0\ntrained = ['inpainter']\n")
    run = tmp_path / "run"
    for given in (["--config", str(own)], ["--seed", "4"]):  # the second call keeps the settings of the run
        assert train_cli.main(["renderer", str(tmp_path / "none"), str(run), "--minutes", "1", *given]) == 1
    kept = config.read(run / config.FILE)
    assert (kept.seed, kept.renderer.people, kept.renderer.photos, kept.renderer.trained) == (4, 2, 0.0, ("inpainter",))
    assert config.differences(config.read(own), kept) == ["seed = 3 → 4"]
    capsys.readouterr()
    for wrong, message in (
        ("[renderer]\nlearning_rat = 1", "[renderer] learning_rat: no such setting; must be one of selective, "),
        ("[reader]\nbatch = 0", "[reader] batch is 0; it must be a whole number of at least 1"),
        ("[speech]\nsilent = -0.1", "[speech] silent is -0.1; it must be a number of at least 0"),
        ("[shares]\nspeech = 0.5", "[shares]: the shares add up to 1.43; must add up to 1"),
        ("renderer = 5", "renderer is 5; it must be a table: [renderer]"),
        ("[renderer", "own.toml: "),
    ):
        own.write_text(wrong)
        assert train_cli.main(["reader", str(tmp_path), str(run), "--minutes", "1", "--config", str(own)]) == 1
        assert message in capsys.readouterr().err


def test_metrics_are_plotted_and_a_log_with_other_columns_is_renamed(tmp_path: Path) -> None:
    path = tmp_path / "stage.csv"
    Log(path).draw()  # nothing yet
    for first in (0, 3):  # the second log appends to the file
        log = Log(path)
        for step in range(first, first + 3):
            log.write({"step": step, "seconds": 2.0 * step, "loss": 1 / (1 + step)})
        log.draw()
    rows = np.genfromtxt(path, delimiter=",", names=True)
    assert rows["step"].tolist() == list(range(6))
    picture = cv2.imread(str(path.with_suffix(".png")))
    assert picture is not None
    assert len(np.unique(picture)) > 20  # curves, not an empty sheet
    Log(path).write({"step": 6, "seconds": 12.0, "colour": 1.0})
    assert {file.name for file in tmp_path.iterdir()} == {"stage.csv", "stage.1.csv", "stage.png"}
    assert "loss" in (tmp_path / "stage.1.csv").read_text()


def test_weights_are_averaged_and_counts_are_copied() -> None:
    model, average = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(model.weight, 3.0)
    model(torch.zeros(2, 2))
    update_average(average, model, step=0, decay=0.9)  # the first step has a weight of nine tenths
    assert average.weight.tolist() == pytest.approx([2.8, 2.8])
    assert average.state_dict()["num_batches_tracked"].tolist() == 1
    for _ in range(2):
        update_average(average, model, step=1000, decay=0.9)
    assert average.weight.tolist() == pytest.approx([3 - 0.2 * 0.81] * 2)
