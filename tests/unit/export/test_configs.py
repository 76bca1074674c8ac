"""configs/h100.pbtxt and configs/onnx_gpu.pbtxt of every model, against the generator and the specification."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from insync.core.spec import MODELS, Tensor
from insync.export.configs import PROFILES, render, write_configs

REPOSITORY = Path(__file__).parents[3] / "model_repository"
KINDS = model_config_pb2.DataType
INSTANCES = model_config_pb2.ModelInstanceGroup
PLANS = {name for name, model in MODELS.items() if model.backend == "onnxruntime"}
DALI = {name for name, model in MODELS.items() if model.backend == "dali"}
ENSEMBLES = [name for name, model in MODELS.items() if model.backend == "ensemble"]
SINGLE = [name for name in MODELS if name not in ENSEMBLES]
# Fields that an older Triton's protobuf does not have; no other may be unknown.
NEWER = {"max_inflight_requests": model_config_pb2.ModelEnsembling}
BYTES = {"UINT8": 1, "FP32": 4}


def text_of(name: str, profile: str) -> str:
    return (REPOSITORY / name / "configs" / f"{profile}.pbtxt").read_text()


def parse(text: str) -> Any:
    """Parse like Triton: an unknown field or a wrong type is an error."""
    for field, message in NEWER.items():
        if field not in message.DESCRIPTOR.fields_by_name:
            text = re.sub(rf"^ *{field}: \d+\n", "", text, flags=re.MULTILINE)
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def default(name: str) -> Any:
    return parse((REPOSITORY / name / "config.pbtxt").read_text())


def tensors(entries: Any) -> list[Tensor]:
    return [
        Tensor(
            entry.name,
            KINDS.Name(entry.data_type).removeprefix("TYPE_"),
            tuple(entry.dims),
            getattr(entry, "optional", False),
        )
        for entry in entries
    ]


each_profile = pytest.mark.parametrize("profile", PROFILES)


@each_profile
@pytest.mark.parametrize("name", MODELS)
def test_the_committed_file_is_that_of_the_generator(name: str, profile: str) -> None:
    assert text_of(name, profile) == render(name, profile, REPOSITORY), "run `insync export configs` to regenerate it"


@each_profile
@pytest.mark.parametrize("name", MODELS)
def test_it_has_the_specification_s_tensors_and_batch_limit(name: str, profile: str) -> None:
    model, parsed = MODELS[name], parse(text_of(name, profile))
    assert parsed.name == name
    assert parsed.max_batch_size == model.max_batch_size
    assert tensors(parsed.input) == list(model.inputs)
    assert tensors(parsed.output) == list(model.outputs)
    backend = {"h100": {"onnxruntime": "tensorrt"}}.get(profile, {}).get(model.backend, model.backend)
    assert (parsed.platform or parsed.backend) == backend


@each_profile
@pytest.mark.parametrize("name", SINGLE)
def test_its_device_is_specified(name: str, profile: str) -> None:
    groups = parse(text_of(name, profile)).instance_group
    assert len(groups) == 1
    assert groups[0].count >= 1
    on_gpu = name in PLANS | DALI | {"lipsync_adaat"}
    assert groups[0].kind == (INSTANCES.KIND_GPU if on_gpu else INSTANCES.KIND_CPU)
    assert not groups[0].gpus  # every GPU that the server sees


@each_profile
@pytest.mark.parametrize("name", MODELS)
def test_batching_is_as_in_the_default_config_and_never_stalls(name: str, profile: str) -> None:
    parsed = parse(text_of(name, profile))
    batching = parsed.dynamic_batching
    assert parsed.HasField("dynamic_batching") == default(name).HasField("dynamic_batching")
    assert batching.priority_levels == 0
    assert batching.max_queue_delay_microseconds == 0
    assert not batching.HasField("default_queue_policy")
    assert not batching.preserve_ordering
    assert list(batching.preferred_batch_size) in ([], [MODELS[name].max_batch_size])


@each_profile
@pytest.mark.parametrize("name", SINGLE)
def test_its_file_exists_or_is_a_plan_that_the_target_builds(name: str, profile: str) -> None:
    file = parse(text_of(name, profile)).default_model_filename
    if name in PLANS and profile == "h100":
        assert file == "model.plan"
        assert (REPOSITORY / name / "1" / "model.onnx").is_file()  # the plan is built from it
    elif name in DALI:
        assert (REPOSITORY / name / "1" / file).is_file()
    else:
        assert file == ""


@each_profile
@pytest.mark.parametrize("name", SINGLE)
def test_parameters_of_the_default_config_are_kept_for_the_same_backend(name: str, profile: str) -> None:
    parsed, usual = parse(text_of(name, profile)), default(name)
    if parsed.backend in ("python", "dali"):  # model.py reads them
        assert {key: parsed.parameters[key].string_value for key in usual.parameters} == {
            key: value.string_value for key, value in usual.parameters.items()
        }


@each_profile
def test_the_kernel_takes_tensors_on_the_gpu(profile: str) -> None:
    parameters = parse(text_of("lipsync_adaat", profile)).parameters
    assert parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"


@pytest.mark.parametrize("name", sorted(PLANS))
def test_every_batch_size_has_a_cuda_graph(name: str) -> None:
    cuda = parse(text_of(name, "h100")).optimization.cuda
    assert cuda.graphs
    assert [spec.batch_size for spec in cuda.graph_spec] == list(range(1, MODELS[name].max_batch_size + 1))


@pytest.mark.parametrize("name", sorted(PLANS))
def test_onnx_runtime_computes_in_full_precision(name: str) -> None:
    (accelerator,) = parse(text_of(name, "onnx_gpu")).optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert dict(accelerator.parameters) == {"use_tf32": "0"}


@each_profile
@pytest.mark.parametrize("name", SINGLE)
def test_warm_ups_feed_every_input_with_as_many_bytes_as_it_has(name: str, profile: str) -> None:
    parsed, model = parse(text_of(name, profile)), MODELS[name]
    if name in PLANS | DALI | {"lipsync_adaat"}:
        assert parsed.model_warmup
    for warmup in parsed.model_warmup:
        assert 1 <= warmup.batch_size <= model.max_batch_size
        assert warmup.inputs.keys() == {tensor.name for tensor in model.inputs}
        for tensor in model.inputs:
            given = warmup.inputs[tensor.name]
            assert KINDS.Name(given.data_type) == f"TYPE_{tensor.dtype}"
            fits = [have == want for have, want in zip(given.dims, tensor.shape, strict=True) if want != -1]
            assert all(fits), tensor.name
            if given.input_data_file:
                size = (REPOSITORY / name / "warmup" / given.input_data_file).stat().st_size
                assert size == math.prod(given.dims) * BYTES[tensor.dtype]


@each_profile
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_are_wired_as_in_the_default_config_and_bounded(name: str, profile: str) -> None:
    parsed = parse(text_of(name, profile))
    assert list(parsed.ensemble_scheduling.step) == list(default(name).ensemble_scheduling.step)
    found = re.findall(r"max_inflight_requests: (\d+)", text_of(name, profile))
    assert len(found) == 1
    assert int(found[0]) >= 100  # live streams that one GPU should serve


def test_only_named_fields_are_newer_than_the_embedded_server() -> None:
    with pytest.raises(text_format.ParseError, match="no_such_field"):
        parse(text_of("lipsync", "h100") + "no_such_field: 1\n")


def test_it_writes_every_file_into_another_repository(tmp_path: Path) -> None:
    for name in MODELS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text((REPOSITORY / name / "config.pbtxt").read_text())
    written = write_configs(tmp_path)
    assert {path.name for path in written} == {"h100.pbtxt", "onnx_gpu.pbtxt", "FRAME", "TRANSFORM"}
    assert len(written) == 2 * len(MODELS) + 2
    for path in written:
        # The picture's length depends on the OpenCV release, and with it the config that contains it.
        if path.parent.parent.name != "lipsync_preprocess":
            assert path.read_bytes() == (REPOSITORY / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize(("name", "device"), [("lipsync_preprocess", b"mixed"), ("lipsync_align", b"gpu")])
def test_the_dali_pipelines_of_a_gpu_use_it(name: str, device: bytes) -> None:
    folder = REPOSITORY / name / "1"
    assert device in (folder / "model_gpu.dali").read_bytes()
    assert device not in (folder / "model.dali").read_bytes()
