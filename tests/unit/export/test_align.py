"""The align and preprocess pipelines, as committed, against OpenCV."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from nvidia.dali import Pipeline

from insync.core.spec import CROP_SIZE, WINDOW_SAMPLES
from insync.ensemble.models.face import take_crop
from insync.ensemble.models.log_mel import LogMel

REPOSITORY = Path(__file__).parents[3] / "model_repository"


def load(model: str, repository: Path = REPOSITORY) -> Any:
    pipeline = Pipeline.deserialize(
        filename=str(repository / model / "1" / "model.dali"),
        batch_size=4,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    pipeline.build()
    return pipeline


def picture(height: int, width: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(5).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture(scope="module")
def align() -> Any:
    return load("lipsync_align")


@pytest.fixture(scope="module")
def preprocess() -> Any:
    return load("lipsync_preprocess")


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.3])
@pytest.mark.parametrize("angle", [0.0, 0.35])
@pytest.mark.parametrize("centre", [(300.3, 200.8), (20.0, 350.0)], ids=["inside", "over the edge"])
def test_align_equals_opencv(align: Any, scale: float, angle: float, centre: tuple[float, float]) -> None:
    image = picture(400, 640)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    half = (CROP_SIZE - 1) / 2
    x, y = centre
    matrix = np.array([[cos, -sin, half - cos * x + sin * y], [sin, cos, half - sin * x - cos * y]], np.float32)
    align.feed_input("IMAGE", [image], layout="HWC")
    align.feed_input("TRANSFORM", [matrix])
    crop = align.run()[0].as_array()[0]
    expected = take_crop(image, matrix)
    assert crop.shape == (3, CROP_SIZE, CROP_SIZE)
    error = np.abs(crop.transpose(1, 2, 0) * 255 - expected)
    assert error.mean() < 1.0
    assert np.percentile(error, 99) < 8  # OpenCV's coordinates are in 32nds of a pixel


def test_align_by_the_identity_changes_nothing(align: Any) -> None:
    image = picture(CROP_SIZE, CROP_SIZE)
    align.feed_input("IMAGE", [image], layout="HWC")
    align.feed_input("TRANSFORM", [np.eye(2, 3, dtype=np.float32)])
    np.testing.assert_array_equal(np.rint(align.run()[0].as_array()[0].transpose(1, 2, 0) * 255), image)


@pytest.mark.parametrize("kind", [".jpg", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_preprocess_decodes_and_computes_the_log_mel(preprocess: Any, kind: str, channels: int) -> None:
    source = picture(120, 200)
    stored = source if channels == 3 else source[..., 0]
    data = cv2.imencode(kind, stored)[1]
    audio = np.random.default_rng(0).standard_normal(WINDOW_SAMPLES).astype(np.float32) * 0.1
    preprocess.feed_input("FRAME", [data])
    preprocess.feed_input("AUDIO", [audio])
    image, mel = (output.as_array()[0] for output in preprocess.run())
    expected = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert image.shape == (120, 200, 3)
    assert np.abs(image.astype(int) - expected).mean() < 0.5
    np.testing.assert_array_equal(mel, LogMel(batch_size=1)(audio[None])[0])


def test_the_committed_pipelines_match_the_code(tmp_path: Path) -> None:
    from insync.export.dali import serialise

    # The files' bytes differ between DALI's releases, their operators and arguments do not: so run both.
    image, matrix = picture(300, 300), np.array([[0.9, 0.1, -20], [-0.1, 0.9, 5]], np.float32)
    inputs: dict[str, dict[str, NDArray[Any]]] = {
        "lipsync_preprocess": {
            "FRAME": cv2.imencode(".png", image)[1],
            "AUDIO": np.sin(np.arange(6400, dtype=np.float32)),
        },
        "lipsync_align": {"IMAGE": image, "TRANSFORM": matrix},
    }
    for made in serialise(tmp_path):
        model = made.parts[-3]
        assert str(Path(__file__).parents[3]).encode() not in made.read_bytes(), "a machine's path in a committed file"
        results = []
        for pipeline in (load(model), load(model, tmp_path)):
            for name, value in inputs[model].items():
                pipeline.feed_input(name, [value])
            results.append([output.as_array() for output in pipeline.run()])
        for committed, fresh in zip(*results, strict=True):
            np.testing.assert_array_equal(committed, fresh, err_msg=f"{model}: run `insync export dali`")
