"""Drawing in benchmarks of training: the PyTorch network draws the same as the served graphs, and filmed codes are those of the mouths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.training.drawing import TorchGraphs, filmed_codes, sheet
from benchmarks.training.personal_twin import copy_beginning, shortened
from insync.core.head import places
from insync.core.mouth import POINTS, MouthBasis
from insync.core.spec import CROP_SIZE, WINDOW_COLUMNS, WINDOW_ROWS
from insync.network.served import read_weights
from insync.training.evaluation.evaluate import Evaluation, Footage


@pytest.fixture(scope="module")
def footage(repository: Path, sample_clip: Path) -> Footage:
    return Evaluation(repository).read(sample_clip, seconds=1, share=0.8)


@pytest.fixture(scope="module")
def basis(repository: Path) -> MouthBasis:
    return MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")


def test_the_network_draws_the_same_as_the_graphs(repository: Path, footage: Footage) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    served = Evaluation(repository).draw(footage, sound)
    drawn = Evaluation(repository, graphs=TorchGraphs(read_weights(repository))).draw(footage, sound)
    assert len(served.results) == len(footage.crops) - footage.first > 3
    assert np.abs(served.results.astype(int) - drawn.results).max() <= 2
    assert drawn.predicted == pytest.approx(served.predicted, abs=1e-3)


def test_filmed_codes_are_those_of_the_mouths(footage: Footage, basis: MouthBasis) -> None:
    rng = np.random.default_rng(1)
    neutral, spoken = basis.rest, rng.normal(size=(len(footage.heads), len(basis.deviation))).astype(np.float32)
    start = np.array([WINDOW_COLUMNS[0], WINDOW_ROWS[0]])
    half = np.array([np.ptp(WINDOW_COLUMNS), np.ptp(WINDOW_ROWS)]) / 2
    landmarks = footage.landmarks.copy()
    for frame, head, code in zip(landmarks, footage.heads, spoken, strict=True):
        lips = places(head, basis.decode(code, neutral))[: len(POINTS)]
        frame[list(POINTS)] = (lips + 1) * half + start - 0.5
    landmarks[-1] = np.nan
    found = filmed_codes(replace(footage, landmarks=landmarks), neutral, basis)
    assert found[:-1] == pytest.approx(spoken[footage.first : -1], abs=0.02)
    assert np.array_equal(found[-1], found[-2])  # no face: as before


def test_footage_is_shortened_after_the_frames_that_register_the_twin(footage: Footage) -> None:
    short = shortened(footage, 3)
    assert len(short.crops) == len(short.landmarks) == footage.first + 3
    assert np.array_equal(short.times_s[: footage.first], footage.times_s[: footage.first])
    assert np.diff(short.times_s[footage.first :]) == pytest.approx(0.04, abs=1e-3)
    assert shortened(footage, 10_000) is footage


def test_copying_the_beginning_of_a_clip(sample_clip: Path, tmp_path: Path) -> None:
    copy_beginning(sample_clip, 2.0, tmp_path / "short.mp4")
    with av.open(str(tmp_path / "short.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == pytest.approx(50, abs=3)


def test_a_sheet_has_a_column_for_each_variant(footage: Footage, tmp_path: Path) -> None:
    import cv2

    real = footage.crops[footage.first :]
    sheet([real, real], {"one": [real, real], "two, with a long name of its own": [real, real]}, tmp_path / "sheet.jpg")
    picture = cv2.imread(str(tmp_path / "sheet.jpg"))
    assert picture.shape[1] % 3 == 0
    assert picture.shape[1] // 3 < CROP_SIZE
