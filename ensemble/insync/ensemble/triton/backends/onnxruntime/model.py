"""Fallback for Triton's `onnxruntime` backend: ONNX Runtime on the CPU, or with `INSYNC_GPU=1` the GPU runtime.

`insync.ensemble.inference.runtime` chooses the GPU runtime. Uses `intra_op_thread_count`, `inter_op_thread_count` and
`default_model_filename` of the model's config, and `idle_thread_count`, which the compiled backend does not have: the
threads of a run while cores are idle. Batched requests run together if their shapes are equal.
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
        """Load the graph and check that it has the tensors of the config."""
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
                raise ValueError(f"{path.name} has no {kind} {sorted(missing)}: it must be one of {list(known)}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run all requests, those of equal shapes together."""
        inputs: list[Arrays] = []
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        responses: list[Any] = [None] * len(requests)
        for index, request in enumerate(requests):
            try:
                inputs.append({name: array(request, name) for name in self._inputs})
                shapes = tuple(value.shape[self._batched :] for value in inputs[-1].values())
                groups.setdefault(shapes, []).append(index)
            except Exception as error:  # noqa: BLE001  every request gets its own response
                inputs.append({})
                responses[index] = failure(error)
        for group in groups.values():
            for index, result in zip(group, self._together([inputs[index] for index in group]), strict=True):
                responses[index] = result
        return responses

    def _together(self, inputs: list[Arrays]) -> list[Any]:
        """Process requests of equal shapes in one run; if that fails, each by itself, so that only the bad one fails."""
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
    # Threads that busy-wait take the core from the other models' threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Small blocks of work: a thread that is preempted for a while then delays the other threads less.
    options.add_session_config_entry("session.dynamic_block_base", "4")
    return options
