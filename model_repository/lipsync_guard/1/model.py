"""Triton's shell around `insync.ensemble.models.guard` and `insync.ensemble.models.admission`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from insync.core import settings
from insync.ensemble.models.admission import Admission
from insync.ensemble.models.guard import check_audio, check_frame
from insync.ensemble.models.twin_store import TwinStore, digits
from insync.ensemble.triton.python_backend import Outputs, answer, array, optional, text


class TritonPythonModel:
    """FRAME, AUDIO, TWIN, and STREAM and RATE of live streams → the first three, checked and admitted."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the table of admitted streams, and the store."""
        said = json.loads(args["model_config"])["parameters"]["capacity_fps"]["string_value"]
        read = settings.load()
        self._admission = Admission(float(said) if said else read.capacity_fps)
        self._store = TwinStore(read.twins)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers each request with its inputs, or with what is wrong with them."""
        return answer(requests, self._check)

    def _check(self, request: Any) -> Outputs:
        frames, windows = array(request, "FRAME"), array(request, "AUDIO")
        streams, rates = optional(request, "STREAM"), optional(request, "RATE")
        for frame, audio in zip(frames, windows, strict=True):
            check_frame(memoryview(frame))
            check_audio(audio)
        names = [text(twin) for twin in array(request, "TWIN").reshape(-1)]
        twins = np.stack([digits(name) for name in names])
        for name in names:
            self._store.expect(name)
        # Last: what is malformed, or of nobody, claims no room.
        self._admission.admit_all(
            [
                (None if streams is None else text(streams[k, 0]), None if rates is None else float(rates[k, 0]))
                for k in range(len(frames))
            ]
        )
        return {"CHECKED_FRAME": frames, "CHECKED_AUDIO": windows, "CHECKED_TWIN": twins}
