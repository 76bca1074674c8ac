"""Triton's shell around `insync.ensemble.models.registration`: registers a person, or forgets one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from insync.core import settings
from insync.core.errors import BadInput
from insync.core.mouth import MouthBasis
from insync.ensemble.models.face import FaceFinder
from insync.ensemble.models.registration import register
from insync.ensemble.models.twin_store import TwinStore, digits
from insync.ensemble.triton.python_backend import Outputs, answer, array, call, optional, text


class TritonPythonModel:
    """FRAMES or FORGET → TWIN, REPORT."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the mouth basis that lies beside this file, and the face networks of `lipsync_face`."""
        folder = Path(args["model_repository"])
        cv2.setNumThreads(1)  # the cores belong to the other steps
        os.nice(10)  # who registers waits for seconds anyway; who streams has a deadline for every frame
        self._finder = FaceFinder(folder.parent / "lipsync_face" / "1")
        self._basis = MouthBasis.load(folder / args["model_version"] / "mouth_basis.npz")
        self._store = TwinStore(settings.load().twins)
        self._store.finish_removals()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Registers or forgets one person for each request."""
        return answer(requests, self._register_or_delete)

    def _register_or_delete(self, request: Any) -> Outputs:
        forget = optional(request, "FORGET")
        if forget is None:
            return self._register(request)
        if optional(request, "FRAMES") is not None:
            raise BadInput("FRAMES and FORGET came together: register a person, or forget one")
        twin = text(forget.reshape(-1)[0])
        self._store.remove(twin)
        return _told(twin, {"forgotten": True})

    def _register(self, request: Any) -> Outputs:
        frames = [value if isinstance(value, bytes) else str(value).encode() for value in array(request, "FRAMES")]
        record = register(frames, self._finder, self._basis)
        twin = self._store.save(record)
        try:
            # Proves the twin whole, and spares its first frame the reference encoder.
            call("lipsync_twin_features", {"TWIN": digits(twin)[None]}, ("IDENTITY",))
        except RuntimeError:
            self._store.remove(twin)
            raise
        return _told(twin, record.report)


def _told(twin: str, report: dict[str, Any]) -> Outputs:
    return {"TWIN": digits(twin), "REPORT": np.frombuffer(json.dumps(report).encode(), np.uint8)}
