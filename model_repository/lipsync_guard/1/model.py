"""Triton model wrapper of `insync.ensemble.models.guard` and `insync.ensemble.models.admission`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from insync.core import settings
from insync.ensemble.models.admission import Admission
from insync.ensemble.models.guard import check_audio, check_frame
from insync.ensemble.models.twin_store import TwinStore, digits
from insync.ensemble.triton.python_backend import Outputs, array, optional, respond, text


class TritonPythonModel:
    """FRAME, AUDIO, TWIN, and STREAM and RATE of live streams → the first three, checked and admitted."""

    def initialize(self, args: dict[str, str]) -> None:
        """Create the table of admitted streams, and open the twin store."""
        configured = json.loads(args["model_config"])["parameters"]["capacity_fps"]["string_value"]
        loaded = settings.load()
        self._admission = Admission(float(configured) if configured else loaded.capacity_fps)
        self._store = TwinStore(loaded.twins)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return each request's inputs, or an error that explains what is wrong with them."""
        return respond(requests, self._check)

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
        # Last, so that malformed requests and unknown twins take no capacity.
        self._admission.admit_all(
            [
                (None if streams is None else text(streams[k, 0]), None if rates is None else float(rates[k, 0]))
                for k in range(len(frames))
            ]
        )
        return {"CHECKED_FRAME": frames, "CHECKED_AUDIO": windows, "CHECKED_TWIN": twins}
