"""The backend of the fused pipeline (`insync.ensemble.repository.fused`): all steps in one process, outputs passed without copies."""

from __future__ import annotations

import faulthandler
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from insync.ensemble.triton.python_backend import failure
from insync.ensemble.triton.steps import Step, needed

LIMIT_S = 45.0  # for one request. A process that takes longer hangs: it exits, and the supervisor replaces it

_BACKENDS = Path(__file__).resolve().parents[1]
_VERSION = "1"
_DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


class TritonPythonModel:
    """One process that runs all steps of a frame."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load every step and warm it up as configured."""
        self._steps = [Step(**step) for step in json.loads(_parameter(args, "steps"))]
        self._models = {}
        for step in self._steps:
            try:
                self._models[step.model] = _load(step, args)
            except Exception as error:
                raise RuntimeError(f"{step.model}: {error}") from error
        self._needed: dict[frozenset[str], list[Step]] = {}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Process each request by itself."""
        return [self._process(request) for request in requests]

    def finalize(self) -> None:
        """Finalize every step."""
        for model in self._models.values():
            if hasattr(model, "finalize"):
                model.finalize()

    def _process(self, request: Any) -> Any:
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        try:
            wanted = frozenset(request.requested_output_names())
            if wanted not in self._needed:
                self._needed[wanted] = needed(self._steps, wanted)
            tensors = {tensor.name(): tensor for tensor in request.inputs()}
            for step in self._needed[wanted]:
                inputs = [_named(theirs, tensors[ours]) for theirs, ours in step.inputs.items() if ours in tensors]
                response = _run(self._models[step.model], step.model, inputs, list(step.outputs.values()))
                if response.has_error():
                    return pb.InferenceResponse(error=response.error())
                for ours, theirs in step.outputs.items():
                    tensors[ours] = pb.get_output_tensor_by_name(response, theirs)
            return pb.InferenceResponse([_named(name, tensors[name]) for name in wanted])
        except Exception as error:  # noqa: BLE001  every request gets its own response
            return failure(error)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _parameter(args: dict[str, str], name: str) -> str:
    return str(json.loads(args["model_config"])["parameters"][name]["string_value"])


def _named(name: str, tensor: Any) -> Any:
    """Return the tensor under another name, without copying its data."""
    return tensor if tensor.name() == name else pb.Tensor(name, tensor.as_numpy())


def _run(model: Any, name: str, inputs: list[Any], outputs: list[str]) -> Any:
    return model.execute([pb.InferenceRequest(model_name=name, inputs=inputs, requested_output_names=outputs)])[0]


def _load(step: Step, args: dict[str, str]) -> Any:
    """Load one step's model, initialized and warmed up as by Triton."""
    folder = Path(step.folder)
    file = (folder / _VERSION if step.backend == "python" else _BACKENDS / step.backend) / "model.py"
    spec = importlib.util.spec_from_file_location(f"{step.model}_model", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize(
        {
            **args,
            "model_config": json.dumps(step.config),
            "model_name": step.model,
            "model_repository": step.folder,
            "model_version": _VERSION,
        }
    )
    for warmup in step.config.get("model_warmup", ()):
        zeros = [
            pb.Tensor(name, np.zeros((warmup["batch_size"], *map(int, given["dims"])), _DTYPES[given["data_type"]]))
            for name, given in warmup["inputs"].items()
        ]
        response = _run(model, step.model, zeros, list(step.outputs.values()))
        if response.has_error():
            raise RuntimeError(f"its warm-up failed: {response.error().message()}")
    return model
