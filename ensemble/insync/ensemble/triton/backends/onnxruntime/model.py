"""Stand-in for Triton's `onnxruntime` backend: ONNX Runtime itself, on the CPU; with `INSYNC_GPU=1` what `insync.ensemble.inference.onnx_session` finds.

Honours `intra_op_thread_count`, `inter_op_thread_count` and `default_model_filename` of the model's config, and
`idle_thread_count`, which the backend that it stands in for does not know: the threads of a run while cores stand idle.
Requests that were batched together run as one, where their shapes are equal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from insync.core import settings
from insync.ensemble.inference.idle_cores import cores_for
from insync.ensemble.inference.onnx_session import CpuSession
from insync.ensemble.inference.runtime import open_session
from insync.ensemble.inference.session import Session
from insync.ensemble.triton.python_backend import array, failure, response

Arrays = dict[str, NDArray[Any]]


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph and checks that it has the tensors of the config."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        options = _options(parameters)
        path = folder / (config.get("default_model_filename") or "model.onnx")
        self._session: Session
        if settings.load().gpu:
            device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
            self._session = open_session(path, config["name"], device, options)
        else:
            threads, instance = int(parameters.get("idle_thread_count", "1")), args["model_instance_name"]
            cores = cores_for(threads, int(instance.rpartition("_")[2])) if threads > 1 else ()
            self._session = CpuSession(path, options, cores)
        self._batched = config["max_batch_size"] > 0
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        for kind, names, known in (
            ("input", self._inputs, self._session.inputs),
            ("output", self._outputs, self._session.outputs),
        ):
            missing = set(names) - set(known)
            if missing:
                raise ValueError(f"{path.name} has no {kind} {sorted(missing)}, it has {list(known)}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Runs all requests, those of equal shapes together."""
        inputs: list[Arrays] = []
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        responses: list[Any] = [None] * len(requests)
        for index, request in enumerate(requests):
            try:
                inputs.append({name: array(request, name) for name in self._inputs})
                shapes = tuple(value.shape[self._batched :] for value in inputs[-1].values())
                groups.setdefault(shapes, []).append(index)
            except Exception as error:  # noqa: BLE001  every request has its own answer
                inputs.append({})
                responses[index] = failure(error)
        for group in groups.values():
            for index, reply in zip(group, self._together([inputs[index] for index in group]), strict=True):
                responses[index] = reply
        return responses

    def _together(self, inputs: list[Arrays]) -> list[Any]:
        """Answers requests of equal shapes in one run; if that fails, each by itself: only the culprit fails."""
        try:
            if len(inputs) == 1:
                return [response(self._run(inputs[0]))]
            if not self._batched:
                raise ValueError("this model does not batch")
            outputs = self._run({name: np.concatenate([part[name] for part in inputs]) for name in self._inputs})
            ends = np.cumsum([len(part[self._inputs[0]]) for part in inputs])[:-1]
            split = {name: np.split(value, ends) for name, value in outputs.items()}
            return [response({name: parts[k] for name, parts in split.items()}) for k in range(len(inputs))]
        except Exception as error:  # noqa: BLE001
            return [failure(error)] if len(inputs) == 1 else [self._together([part])[0] for part in inputs]

    def _run(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


def _options(parameters: dict[str, str]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "0"))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "1"))
    # Threads that spin while they wait take the core from the other models' threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Work is dealt out in small portions: a thread whose core is taken for a while holds up the others for less.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    return options
