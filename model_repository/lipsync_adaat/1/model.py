"""Triton's shell around `insync.ensemble.adaat`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from insync.ensemble.adaat import adaat
from insync.ensemble.triton import Outputs, answer, array


class TritonPythonModel:
    """REFERENCE, AFFINE → ALIGNED."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads how many threads the kernel may use; the warm-up compiles it."""
        self._threads = int(json.loads(args["model_config"])["parameters"]["threads"]["string_value"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Warps the features of every request."""
        return answer(requests, self._warp)

    def _warp(self, request: Any) -> Outputs:
        return {"ALIGNED": adaat(array(request, "REFERENCE"), array(request, "AFFINE"), self._threads)}
