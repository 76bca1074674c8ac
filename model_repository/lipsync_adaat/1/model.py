"""Triton's shell around `insync.ensemble.models.adaat`, and around `insync.ensemble.models.adaat_cuda` for tensors that lie on a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from insync.ensemble.models.adaat import adaat
from insync.ensemble.models.adaat_cuda import AdaatKernel
from insync.ensemble.triton.python_backend import Outputs, answer, anywhere, array, device_response, failure, on_gpu


class TritonPythonModel:
    """REFERENCE, AFFINE → ALIGNED, on the device on which they arrive."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads how many threads the kernel on the CPU may use, which the warm-up compiles; compiles the one for a GPU."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._threads = int(parameters["threads"]["string_value"])
        self._device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        # On a machine with a GPU an instance may be called one of a GPU and see arrays alone: then CuPy is not needed.
        asked_for = parameters.get("FORCE_CPU_ONLY_INPUT_TENSORS", {}).get("string_value", "yes").lower() == "no"
        self._kernel = AdaatKernel(self._device) if asked_for and args["model_instance_kind"] == "GPU" else None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Warps the features of every request; those on a GPU together."""
        there = [index for index, request in enumerate(requests) if on_gpu(request, "REFERENCE", "AFFINE")]
        if not there:
            return answer(requests, self._warp)
        here = [index for index in range(len(requests)) if index not in there]
        responses: list[Any] = [None] * len(requests)
        for index, reply in zip(here, answer([requests[index] for index in here], self._warp), strict=True):
            responses[index] = reply
        for index, reply in zip(there, self._warp_there([requests[index] for index in there]), strict=True):
            responses[index] = reply
        return responses

    def _warp(self, request: Any) -> Outputs:
        return {"ALIGNED": adaat(array(request, "REFERENCE"), array(request, "AFFINE"), self._threads)}

    def _warp_there(self, requests: list[Any]) -> list[Any]:
        try:
            self._kernel = self._kernel or AdaatKernel(self._device)
            results = self._kernel([(anywhere(r, "REFERENCE"), anywhere(r, "AFFINE")) for r in requests])
        except Exception as error:  # noqa: BLE001  an exception that leaves execute() fails the requests on the CPU too
            return [failure(error) for _ in requests]
        return [failure(r) if isinstance(r, Exception) else device_response("ALIGNED", r) for r in results]
