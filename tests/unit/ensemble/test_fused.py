"""The model repository of the fused pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from insync.core.spec import ALL_MODELS, ENSEMBLES, FRAME_MODEL, MODELS, Tensor
from insync.ensemble.repository import fused
from insync.ensemble.triton.steps import Step, needed

PATCH_OUTPUTS = [tensor.name for tensor in MODELS["lipsync_patch"].outputs]


@pytest.fixture
def written(repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "fused"
    assert set(fused.write_repository(repository, folder, 3)) == set(fused.SERVED)
    return folder


def config(repository: Path, name: str) -> Any:
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tensors(entries: Any) -> list[Tensor]:
    kind = model_config_pb2.DataType.Name
    return [
        Tensor(e.name, kind(e.data_type).removeprefix("TYPE_"), tuple(e.dims), getattr(e, "optional", False))
        for e in entries
    ]


def test_the_frame_model_matches_the_specification(written: Path) -> None:
    made = config(written, FRAME_MODEL.name)
    assert (made.name, made.backend, made.max_batch_size) == (FRAME_MODEL.name, "fused", FRAME_MODEL.max_batch_size)
    assert tensors(made.input) == list(FRAME_MODEL.inputs)
    assert tensors(made.output) == list(FRAME_MODEL.outputs)
    assert made.instance_group[0].count == 3
    assert not made.HasField("dynamic_batching")


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_look_the_same_from_outside(written: Path, repository: Path, name: str) -> None:
    made, original = config(written, name), config(repository, name)
    guard, frame = made.ensemble_scheduling.step
    assert guard == original.ensemble_scheduling.step[0]
    made_before = {*guard.output_map.values(), *(tensor.name for tensor in made.input)}
    assert set(frame.input_map.values()) <= made_before
    assert set(frame.input_map) == {tensor.name for tensor in FRAME_MODEL.inputs}
    assert set(frame.output_map.values()) == {tensor.name for tensor in made.output}
    assert set(frame.output_map) <= {tensor.name for tensor in FRAME_MODEL.outputs}
    for config_ in (made, original):
        config_.ClearField("ensemble_scheduling")
    assert made == original


def test_steps_get_their_inputs_from_earlier_steps(repository: Path) -> None:
    steps = fused.read_steps(repository)
    assert ("lipsync_guard", *(step.model for step in steps)) == MODELS["lipsync"].steps
    known = {tensor.name for tensor in FRAME_MODEL.inputs}
    for step in steps:
        assert set(step.inputs.values()) <= known
        assert set(step.inputs) == {tensor.name for tensor in ALL_MODELS[step.model].inputs}
        known |= set(step.outputs)
    assert known >= {tensor.name for tensor in FRAME_MODEL.outputs}


def test_only_needed_steps_are_run(repository: Path) -> None:
    steps = fused.read_steps(repository)

    def run(*wanted: str) -> list[str]:
        return [step.model.removeprefix("lipsync_") for step in needed(steps, wanted)]

    assert run("SYNCED") == [step.model.removeprefix("lipsync_") for step in steps]
    assert "composite" not in run(*PATCH_OUTPUTS)
    assert run(*PATCH_OUTPUTS, "SYNCED") == run("SYNCED")
    assert run("FACE") == ["preprocess", "face"]
    assert run() == []


def test_steps_reach_their_process_whole(written: Path, repository: Path) -> None:
    text = config(written, FRAME_MODEL.name).parameters["steps"].string_value
    assert [Step(**step) for step in json.loads(text)] == fused.read_steps(repository)


def test_a_step_finds_its_neighbours_files(written: Path) -> None:
    assert (written / "lipsync_twin" / "1" / "model.py").is_file()
    assert (written / "lipsync_face" / "1" / "face_landmark.tflite").is_file()  # registration reads it too


def test_other_models_of_a_repository_are_served(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for model in repository.iterdir():
        (source / model.name).symlink_to(model)
    (source / "theirs" / "1").mkdir(parents=True)
    assert "theirs" in fused.write_repository(source, tmp_path / "fused", 1)
