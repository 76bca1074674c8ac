"""Every config.pbtxt of the model repository against the typed specification."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from insync.core.spec import MODELS, Tensor

REPOSITORY = Path(__file__).parents[3] / "model_repository"
ENSEMBLES = [model for model in MODELS.values() if model.backend == "ensemble"]
SINGLE = [model for model in MODELS.values() if model.backend != "ensemble"]


def config(name: str) -> Any:
    """Return the parsed config; an unknown field or a wrong type does not parse, as in Triton."""
    return text_format.Parse((REPOSITORY / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tensors(entries: Any) -> list[Tensor]:
    kinds = model_config_pb2.DataType
    return [
        Tensor(
            entry.name,
            kinds.Name(entry.data_type).removeprefix("TYPE_"),
            tuple(entry.dims),
            getattr(entry, "optional", False),
        )
        for entry in entries
    ]


def test_the_repository_holds_exactly_the_specified_models() -> None:
    assert {path.parent.name for path in REPOSITORY.glob("*/config.pbtxt")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_config_agrees_with_the_specification(name: str) -> None:
    model, parsed = MODELS[name], config(name)
    assert parsed.name == name
    assert (parsed.platform or parsed.backend) == model.backend
    assert parsed.max_batch_size == model.max_batch_size
    assert tensors(parsed.input) == list(model.inputs)
    assert tensors(parsed.output) == [Tensor(t.name, t.dtype, t.shape) for t in model.outputs]


@pytest.mark.parametrize("name", [model.name for model in SINGLE])
def test_instances_have_a_count_and_no_device(name: str) -> None:
    groups = config(name).instance_group
    assert len(groups) == 1
    assert groups[0].count >= 1
    assert groups[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO  # the default, so that no device is set


@pytest.mark.parametrize("name", MODELS)
def test_no_option_stalls_the_batcher(name: str) -> None:
    """A queue size, timeout or priority on a dynamic batcher stalls Triton's batcher (seen in 2.51 and later)."""
    parsed = config(name)
    assert parsed.dynamic_batching.priority_levels == 0
    assert not parsed.dynamic_batching.HasField("default_queue_policy")
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 0
    assert not parsed.dynamic_batching.preserve_ordering


@pytest.mark.parametrize("name", MODELS)
def test_no_output_is_a_string(name: str) -> None:
    """If a request has Triton classify one, Triton divides by the size of its elements, which is 0, and dies with all streams."""
    assert all(tensor.dtype != "STRING" for tensor in MODELS[name].outputs)


def test_one_malformed_frame_cannot_fail_others() -> None:
    assert not config("lipsync_preprocess").HasField("dynamic_batching")


@pytest.mark.parametrize("name", MODELS)
def test_no_config_depends_on_the_embedded_server(name: str) -> None:
    text = (REPOSITORY / name / "config.pbtxt").read_text()
    assert not re.search(r"\.\./|\"/|insync|EXECUTION_ENV|kind:", text)
    assert (REPOSITORY / name / "1").is_dir()


@pytest.mark.parametrize("model", ENSEMBLES, ids=lambda model: model.name)
def test_ensemble_steps_fit_together(model: Any) -> None:
    """Every step gets all its inputs, from tensors that exist by then and have the same type, and no input is unused."""
    parsed = config(model.name)
    steps = parsed.ensemble_scheduling.step
    assert tuple(step.model_name for step in steps) == model.steps
    known = {tensor.name: tensor for tensor in model.inputs}
    used: set[str] = set()
    for step in steps:
        called = MODELS[step.model_name]
        assert step.model_version == -1
        assert dict(step.input_map).keys() == {tensor.name for tensor in called.inputs}
        assert dict(step.output_map).keys() == {tensor.name for tensor in called.outputs}
        for tensor in called.inputs:
            source = known[step.input_map[tensor.name]]
            assert (source.dtype, source.shape) == (tensor.dtype, tensor.shape), tensor.name
            assert tensor.optional or not source.optional, tensor.name
            used.add(source.name)
        for tensor in called.outputs:
            name = step.output_map[tensor.name]
            assert name not in known, f"{name} is made twice"
            known[name] = tensor
    for tensor in model.outputs:
        assert (known[tensor.name].dtype, known[tensor.name].shape) == (tensor.dtype, tensor.shape)
    assert {tensor.name for tensor in model.inputs} <= used


@pytest.mark.parametrize("model", ENSEMBLES, ids=lambda model: model.name)
def test_every_frame_is_checked_before_anything_else(model: Any) -> None:
    steps = {step.model_name: step for step in config(model.name).ensemble_scheduling.step}
    # Only one step may be ready at the start: a quick error of one of several can block the server (see the specification).
    ready = [name for name, step in steps.items() if set(step.input_map.values()) <= {t.name for t in model.inputs}]
    assert ready == ["lipsync_guard"]
    assert dict(steps["lipsync_preprocess"].input_map) == {"FRAME": "CHECKED_FRAME", "AUDIO": "CHECKED_AUDIO"}


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("dims: [ 6400 ]", "dims: [ 6401 ]", "6401"),
        ("TYPE_FP32", "TYPE_FP16", "FP16"),
        ('name: "AUDIO"', 'name: "SOUND"', "SOUND"),
    ],
)
def test_a_wrong_config_is_detected(good: str, bad: str, message: str) -> None:
    text = (REPOSITORY / "lipsync_guard" / "config.pbtxt").read_text()
    assert good in text
    parsed = text_format.Parse(text.replace(good, bad, 1), model_config_pb2.ModelConfig())
    assert tensors(parsed.input) != list(MODELS["lipsync_guard"].inputs)
    assert message in str(tensors(parsed.input))


def test_an_unknown_field_does_not_parse() -> None:
    text = (REPOSITORY / "lipsync_guard" / "config.pbtxt").read_text() + "\nmax_inflight_requests: 3\n"
    with pytest.raises(text_format.ParseError, match="max_inflight_requests"):
        text_format.Parse(text, model_config_pb2.ModelConfig())
