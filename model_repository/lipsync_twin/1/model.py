"""Triton model wrapper of `insync.ensemble.models.registration`: registers a person, or deletes one."""

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
from insync.ensemble.triton.python_backend import Outputs, array, call, optional, respond, text


class TritonPythonModel:
    """FRAMES or FORGET → TWIN, REPORT."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the mouth basis from this file's folder, and the face networks of `lipsync_face`."""
        folder = Path(args["model_repository"])
        cv2.setNumThreads(1)  # leave the other cores to the other models
        os.nice(10)  # registration takes seconds anyway, while streams have a deadline for every frame
        self._finder = FaceFinder(folder.parent / "lipsync_face" / "1")
        self._basis = MouthBasis.load(folder / args["model_version"] / "mouth_basis.npz")
        self._store = TwinStore(settings.load().twins)
        self._store.finish_removals()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Register or delete one person for each request."""
        return respond(requests, self._register_or_delete)

    def _register_or_delete(self, request: Any) -> Outputs:
        deleted = optional(request, "FORGET")
        if deleted is None:
            return self._register(request)
        if optional(request, "FRAMES") is not None:
            raise BadInput(
                "FRAMES and FORGET were sent together: send FRAMES to register, or FORGET to delete a person"
            )
        twin = text(deleted.reshape(-1)[0])
        self._store.remove(twin)
        return _outputs(twin, {"forgotten": True})

    def _register(self, request: Any) -> Outputs:
        frames = [value if isinstance(value, bytes) else str(value).encode() for value in array(request, "FRAMES")]
        record = register(frames, self._finder, self._basis)
        twin = self._store.save(record)
        try:
            # Checks that the twin is usable, and runs the reference encoder before its first frame needs it.
            call("lipsync_twin_features", {"TWIN": digits(twin)[None]}, ("IDENTITY",))
        except RuntimeError:
            self._store.remove(twin)
            raise
        return _outputs(twin, record.report)


def _outputs(twin: str, report: dict[str, Any]) -> Outputs:
    return {"TWIN": digits(twin), "REPORT": np.frombuffer(json.dumps(report).encode(), np.uint8)}
