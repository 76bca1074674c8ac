"""The generator of every model's `configs/h100.pbtxt` and `configs/onnx_gpu.pbtxt` (`insync export configs`).

Tensors and batch limits come from the typed specification, the wiring of the ensembles from their `config.pbtxt`; this
module only defines where and how each model runs. Triton uses a set with `--model-config-name=h100`.
Counts and batch sizes are reasoned, not measured: see `docs/fleet.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from insync.core.spec import MODELS, Model, Tensor
from insync.ensemble.repository.config import read_config
from insync.export.dali import GPU_MODEL_FILE

ONNX = "onnxruntime"
# Per step of an ensemble: more than a hundred live streams have in flight. A Triton thread waits when it is reached, so this
# bounds the memory of a flooded server; streams are paced by the client's own limit of frames in flight.
MAX_INFLIGHT_REQUESTS = 128
WARM_SIZE = (720, 1280)  # pixels, height and width of DALI's warm-up picture


@dataclass(frozen=True)
class Placement:
    """Where and how one model runs in one deployment profile.

    Attributes:
        why: comments at the head of the file, one line each.
        gpu: on the GPU, otherwise on the CPU.
        count: instances per GPU, or in total on the CPU.
        backend: name of the Triton backend.
        file: `default_model_filename`, if it is not the backend's default.
        preferred: batch sizes that the dynamic batcher sends without waiting for more; None: no dynamic batching.
        parameters: of the backend, in addition to those of `config.pbtxt` for Python models and DALI.
        optimization: lines of the `optimization` message.
        warm: batch sizes that are run once while the model loads.
    """

    why: tuple[str, ...]
    gpu: bool
    count: int
    backend: str = "python"
    file: str = ""
    preferred: tuple[int, ...] | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    optimization: tuple[str, ...] = ()
    warm: tuple[int, ...] = ()


def _plan(model: str, why: str, count: int, batched: bool = True) -> Placement:
    limit = MODELS[model].max_batch_size
    graphs = ", ".join(f"{{ batch_size: {size} }}" for size in range(1, limit + 1))
    return Placement(
        why=(why, "A CUDA graph for each batch size: shapes are fixed, so one always matches exactly."),
        gpu=True,
        count=count,
        backend="tensorrt",
        file="model.plan",
        preferred=(limit,) if batched else None,
        optimization=("cuda {", "  graphs: true", f"  graph_spec [ {graphs} ]", "}"),
        warm=(1, limit),
    )


def _onnx(plan: Placement) -> Placement:
    """Return the placement of the same graph in ONNX Runtime with CUDA."""
    return replace(
        plan,
        why=(plan.why[0], "FP32 without TF32: the precision in which the weights were checked."),
        backend=ONNX,
        file="",
        optimization=(
            "execution_accelerators {",
            '  gpu_execution_accelerator [ { name: "cuda" parameters { key: "use_tf32" value: "0" } } ]',
            "}",
        ),
    )


# Pass tensors on the GPU directly, without copying them to the host.
_ON_DEVICE = ("FORCE_CPU_ONLY_INPUT_TENSORS", "no")
_ONE_THREAD = ("threads", "1")

H100: dict[str, Placement] = {
    "lipsync_guard": Placement(
        (
            "Checks FRAME and AUDIO on the host, where they arrive.",
            "One instance, as in config.pbtxt: it must count all of the server's frames.",
        ),
        gpu=False,
        count=1,
    ),
    "lipsync_preprocess": Placement(
        (
            "Decodes FRAME with nvJPEG and leaves IMAGE on the GPU; the log-mel is computed on the host, as in every profile.",
            "No dynamic batching: DALI fails a whole batch on one bad sample. Instances decode in parallel instead.",
        ),
        gpu=True,
        count=4,
        backend="dali",
        file=GPU_MODEL_FILE,
        warm=(1,),
    ),
    "lipsync_face": Placement(
        ("Face networks on the host, about 2 ms of one core per frame: choose the count by the cores, not the GPU.",),
        gpu=False,
        count=8,
        preferred=(),
        parameters=(_ONE_THREAD,),
    ),
    "lipsync_align": Placement(
        ("Crops IMAGE on the GPU.",),
        gpu=True,
        count=2,
        backend="dali",
        file=GPU_MODEL_FILE,
        preferred=(8,),
        warm=(1,),
    ),
    "lipsync_twin_features": Placement(
        ("Each instance has its own cache: more instances serve more frames, but have more cache misses for new twins.",),
        gpu=False,
        count=2,
        preferred=(),
    ),
    "lipsync_encoder": _plan("lipsync_encoder", "Source features, pose and speech embedding.", 2),
    "lipsync_mixer": _plan("lipsync_mixer", "From speech to the mouth code and the warps of the reference features.", 1),
    "lipsync_adaat": Placement(
        ("The CUDA kernel: REFERENCE, AFFINE and ALIGNED stay on the GPU.",),
        gpu=True,
        count=2,
        preferred=(8,),
        parameters=(_ONE_THREAD, _ON_DEVICE),
        warm=(1, 8),
    ),
    "lipsync_decoder": _plan("lipsync_decoder", "Renders the patch: most of a frame's computation.", 2),
    "lipsync_composite": Placement(
        (
            "Blends and encodes on the host: IMAGE is copied there once, for clients that request whole frames.",
            "Not part of lipsync_patch, which is the one to use for many streams.",
        ),
        gpu=False,
        count=6,
    ),
    "lipsync_reference": _plan("lipsync_reference", "A person's reference features, computed once for each twin.", 1, batched=False),
    "lipsync_twin": Placement(
        ("Registers a twin from frames, on the host. One request is one registration.",),
        gpu=False,
        count=2,
    ),
}  # fmt: skip
ONNX_GPU = {name: _onnx(placed) if placed.backend == "tensorrt" else placed for name, placed in H100.items()}
PROFILES = {"h100": H100, "onnx_gpu": ONNX_GPU}


def write_configs(repository: Path) -> list[Path]:
    """Write `<model>/configs/<profile>.pbtxt` for every model and profile, and DALI's warm-up files.

    Args:
        repository: the Triton model repository; its ensembles' `config.pbtxt` are read.

    Returns:
        The files written.
    """
    written = []
    for (name, tensor), data in _warm_data().items():
        path = repository / name / "warmup" / tensor
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        written.append(path)
    for profile in PROFILES:
        for name in MODELS:
            path = repository / name / "configs" / f"{profile}.pbtxt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(render(name, profile, repository), encoding="utf-8")
            written.append(path)
    return written


def render(name: str, profile: str, repository: Path) -> str:
    """Return the text of one model's config for one profile."""
    model = MODELS[name]
    if model.backend == "ensemble":
        return _ensemble(model, repository)
    placed = PROFILES[profile][name]
    lines = [
        *(f"# {why}" for why in placed.why),
        *_written_by(),
        *_head(model, f'backend: "{placed.backend}"'),
    ]
    if placed.file:
        lines.append(f'default_model_filename: "{placed.file}"')
    if placed.preferred is not None:
        sizes = ", ".join(map(str, placed.preferred))
        # Only the largest is preferred: with smaller ones, five waiting frames would be split into four and one.
        lines.append(f"dynamic_batching {{ {f'preferred_batch_size: [ {sizes} ] ' if sizes else ''}}}")
    kind = "KIND_GPU" if placed.gpu else "KIND_CPU"
    lines.append(f"instance_group [ {{ kind: {kind} count: {placed.count} }} ]")
    for key, value in _parameters(model, placed, repository).items():
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    if placed.optimization:
        lines += ["optimization {", *(f"  {line}" for line in placed.optimization), "}"]
    if placed.warm:
        lines += ["model_warmup [", ",\n".join(_warmup(model, size, repository) for size in placed.warm), "]"]
    return "\n".join(lines) + "\n"


def _parameters(model: Model, placed: Placement, repository: Path) -> dict[str, str]:
    given = dict(placed.parameters)
    if placed.backend in ("python", "dali"):  # those of ONNX Runtime are for the CPU
        usual = read_config(repository, model.name).parameters
        given.update({key: usual[key].string_value for key in sorted(usual) if key not in given})
    return given


def _ensemble(model: Model, repository: Path) -> str:
    steps = read_config(repository, model.name).ensemble_scheduling.step
    lines = [
        "# Frames in flight are bounded at every step, so that a flood of them cannot fill the GPU's memory.",
        *_written_by(),
        *_head(model, 'platform: "ensemble"'),
        "ensemble_scheduling {",
        f"  max_inflight_requests: {MAX_INFLIGHT_REQUESTS}",
        "  step [",
        ",\n".join(_step(step) for step in steps),
        "  ]",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _step(step: Any) -> str:
    lines = [f'      model_name: "{step.model_name}"', f"      model_version: {step.model_version}"]
    for field, mapping in (("input_map", step.input_map), ("output_map", step.output_map)):
        called = MODELS[step.model_name]
        for tensor in called.inputs if field == "input_map" else called.outputs:
            if tensor.name in mapping:  # an optional input may be left out
                lines.append(f'      {field} {{ key: "{tensor.name}" value: "{mapping[tensor.name]}" }}')
    return "\n".join(["    {", *lines, "    }"])


def _written_by() -> list[str]:
    return ["# Generated by `insync export configs`: do not edit."]


def _head(model: Model, what: str) -> list[str]:
    return [
        f'name: "{model.name}"',
        what,
        f"max_batch_size: {model.max_batch_size}",
        *_tensors("input", model.inputs),
        *_tensors("output", model.outputs),
    ]


def _tensors(field: str, tensors: Sequence[Tensor]) -> list[str]:
    entries = [
        f'  {{ name: "{t.name}" data_type: TYPE_{t.dtype} dims: {_dims(t.shape)}{" optional: true" if t.optional else ""} }}'
        for t in tensors
    ]
    return [f"{field} [", ",\n".join(entries), "]"]


def _warmup(model: Model, size: int, repository: Path) -> str:
    lines = [f'    name: "{size}"', f"    batch_size: {size}"]
    for tensor in model.inputs:
        file = repository / model.name / "warmup" / tensor.name
        shape, source = tensor.shape, "zero_data: true"
        if file.is_file():  # the bytes of one sample
            source = f'input_data_file: "{file.name}"'
            shape = (file.stat().st_size,) if shape == (-1,) else shape
        elif tensor.shape == (-1, -1, 3):
            shape = (*WARM_SIZE, 3)
        lines.append(
            f'    inputs {{ key: "{tensor.name}" value: {{ data_type: TYPE_{tensor.dtype} dims: {_dims(shape)} {source} }} }}'
        )
    return "\n".join(["  {", *lines, "  }"])


def _warm_data() -> dict[tuple[str, str], bytes]:
    """Return the warm-up inputs that cannot be zeros: (model, tensor) → the bytes of one sample."""
    grey = np.full((*WARM_SIZE, 3), 128, np.uint8)
    jpeg = cv2.imencode(".jpg", grey, (cv2.IMWRITE_JPEG_QUALITY, 90))[1]
    identity = np.eye(2, 3, dtype="<f4")  # a transform of zeros has no inverse
    return {("lipsync_preprocess", "FRAME"): jpeg.tobytes(), ("lipsync_align", "TRANSFORM"): identity.tobytes()}


def _dims(shape: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, shape))} ]"
