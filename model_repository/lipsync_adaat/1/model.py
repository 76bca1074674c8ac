"""Triton model wrapper of `insync.ensemble.models.adaat`, and of `insync.ensemble.models.adaat_cuda` for tensors on a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from insync.ensemble.models.adaat import adaat
from insync.ensemble.models.adaat_cuda import AdaatKernel
from insync.ensemble.triton.python_backend import (
    Outputs,
    array,
    device_response,
    device_tensor,
    failure,
    on_gpu,
    respond,
)


class TritonPythonModel:
    """REFERENCE, AFFINE → ALIGNED, on the device of the inputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the number of CPU threads, and compile the GPU kernel; the warm-up compiles the CPU kernel."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._threads = int(parameters["threads"]["string_value"])
        self._device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        # On a machine with a GPU an instance may be of kind GPU and yet receive only CPU tensors: CuPy is not needed then.
        gpu_inputs = parameters.get("FORCE_CPU_ONLY_INPUT_TENSORS", {}).get("string_value", "yes").lower() == "no"
        self._kernel = AdaatKernel(self._device) if gpu_inputs and args["model_instance_kind"] == "GPU" else None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Warp the features of every request; those on a GPU together."""
        gpu = [index for index, request in enumerate(requests) if on_gpu(request, "REFERENCE", "AFFINE")]
        if not gpu:
            return respond(requests, self._warp)
        cpu = [index for index in range(len(requests)) if index not in gpu]
        responses: list[Any] = [None] * len(requests)
        for index, result in zip(cpu, respond([requests[index] for index in cpu], self._warp), strict=True):
            responses[index] = result
        for index, result in zip(gpu, self._warp_on_gpu([requests[index] for index in gpu]), strict=True):
            responses[index] = result
        return responses

    def _warp(self, request: Any) -> Outputs:
        return {"ALIGNED": adaat(array(request, "REFERENCE"), array(request, "AFFINE"), self._threads)}

    def _warp_on_gpu(self, requests: list[Any]) -> list[Any]:
        try:
            self._kernel = self._kernel or AdaatKernel(self._device)
            results = self._kernel([(device_tensor(r, "REFERENCE"), device_tensor(r, "AFFINE")) for r in requests])
        except Exception as error:  # noqa: BLE001  an exception that leaves execute() fails the requests on the CPU too
            return [failure(error) for _ in requests]
        return [failure(r) if isinstance(r, Exception) else device_response("ALIGNED", r) for r in results]
