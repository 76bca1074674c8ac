"""The model repository of the fused pipeline, for a CPU: all steps of a frame after the guard in one model, `lipsync_frame`.

Between separate models, each step's tensors are copied from one process to the next, and wait there for a core. In the fused
pipeline the steps keep their wrappers, configs and wiring, and the backend `fused` runs them one after the other in one
process; there is one such process per core. In other servers, and on a GPU, where batching matters and tensors stay on the
device, each step is a separate model.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from insync.core.spec import ENSEMBLES, FRAME_MODEL, MODELS, Tensor
from insync.ensemble.repository.config import read_config
from insync.ensemble.triton.steps import Step

GUARD = "lipsync_guard"  # stays separate: its one instance counts the admitted streams
STEPS = (GUARD, FRAME_MODEL.name)  # the models that process a frame
# Not loaded as separate models. Registration calls `lipsync_twin_features`, so that one is.
_FUSED = set(MODELS["lipsync"].steps) - {GUARD, "lipsync_twin_features"}
SERVED = (*(name for name in MODELS if name not in _FUSED), FRAME_MODEL.name)


def read_steps(repository: Path) -> list[Step]:
    """Return the steps of a frame after the guard, in the order of `lipsync`, the ensemble that has all of them.

    Args:
        repository: a Triton model repository with a model for each step.
    """
    found = []
    for step in read_config(repository, "lipsync").ensemble_scheduling.step:
        if step.model_name != GUARD:
            config = read_config(repository, step.model_name)
            found.append(
                Step(
                    step.model_name,
                    config.backend,
                    str(repository / step.model_name),
                    json_format.MessageToDict(config, preserving_proto_field_name=True),
                    dict(step.input_map),
                    {ours: theirs for theirs, ours in step.output_map.items()},
                )
            )
    return found


def write_repository(source: Path, folder: Path, processes: int) -> list[str]:
    """Write a repository with the fused pipeline of another, with links to the other's files.

    Args:
        source: a Triton model repository with a model for each step.
        folder: the folder to create.
        processes: number of processes that run the pipeline.

    Returns:
        The models to load: `SERVED`, and any other models of the source.
    """
    folder.mkdir(parents=True)
    for model in source.iterdir():
        if model.name not in ENSEMBLES:
            (folder / model.name).symlink_to(model)
    for config in (_frame_config(source, processes), *(_ensemble_config(source, name) for name in ENSEMBLES)):
        (folder / config.name / "1").mkdir(parents=True)
        (folder / config.name / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    return sorted(model.name for model in folder.iterdir() if model.name not in _FUSED and model.is_dir())


def _frame_config(source: Path, processes: int) -> Any:
    config = model_config_pb2.ModelConfig(
        name=FRAME_MODEL.name, backend=FRAME_MODEL.backend, max_batch_size=FRAME_MODEL.max_batch_size
    )
    for tensor in FRAME_MODEL.inputs:
        config.input.add(**_described(tensor), optional=tensor.optional)
    for tensor in FRAME_MODEL.outputs:
        config.output.add(**_described(tensor))
    config.instance_group.add(count=processes)
    config.parameters["steps"].string_value = json.dumps([asdict(step) for step in read_steps(source)])
    return config


def _described(tensor: Tensor) -> dict[str, Any]:
    kind = model_config_pb2.DataType.Value(f"TYPE_{tensor.dtype}")
    return {"name": tensor.name, "data_type": kind, "dims": tensor.shape}


def _ensemble_config(source: Path, name: str) -> Any:
    """Return the config of an ensemble of the guard and `lipsync_frame`."""
    config = read_config(source, name)
    (guard,) = (step for step in config.ensemble_scheduling.step if step.model_name == GUARD)
    config.ClearField("ensemble_scheduling")
    config.ensemble_scheduling.step.append(guard)
    frame = config.ensemble_scheduling.step.add(model_name=FRAME_MODEL.name, model_version=-1)
    frame.input_map.update({tensor.name: tensor.name for tensor in FRAME_MODEL.inputs})
    frame.output_map.update({tensor.name: tensor.name for tensor in config.output})
    return config
