"""Triton's shell around `insync.ensemble.twin`: registers a person."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from insync.ensemble import settings
from insync.ensemble.face import FaceFinder
from insync.ensemble.mouth import MouthBasis
from insync.ensemble.store import TwinStore
from insync.ensemble.triton import Outputs, answer, array, call
from insync.ensemble.twin import register


class TritonPythonModel:
    """FRAMES → TWIN, REPORT."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the mouth basis that lies beside this file, and the face networks of `lipsync_face`."""
        folder = Path(args["model_repository"])
        cv2.setNumThreads(1)  # the cores belong to the other steps
        os.nice(10)  # who registers waits for seconds anyway; who streams has a deadline for every frame
        self._finder = FaceFinder(folder.parent / "lipsync_face" / "1")
        self._basis = MouthBasis.load(folder / args["model_version"] / "mouth_basis.npz")
        self._store = TwinStore(settings.load().twins)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Registers one person for each request."""
        return answer(requests, self._register)

    def _register(self, request: Any) -> Outputs:
        frames = [value if isinstance(value, bytes) else str(value).encode() for value in array(request, "FRAMES")]
        record = register(frames, self._finder, self._basis)
        twin = self._store.save(record)
        try:
            # Proves the twin whole, and spares its first frame the reference encoder.
            call("lipsync_twin_features", {"TWIN": np.array([[twin]], np.object_)}, ("IDENTITY",))
        except RuntimeError:
            self._store.remove(twin)
            raise
        return {
            "TWIN": np.array([twin], np.object_),
            "REPORT": np.array([json.dumps(record.report)], np.object_),
        }
