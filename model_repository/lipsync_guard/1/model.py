"""Triton's shell around `insync.ensemble.guard`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from insync.ensemble.guard import check_audio, check_frame
from insync.ensemble.store import digits
from insync.ensemble.triton import Array, Outputs, answer, array, text


class TritonPythonModel:
    """FRAME, AUDIO, TWIN → the same, checked."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers each request with its inputs, or with what is wrong with them."""
        return answer(requests, _check)


def _check(request: Any) -> Outputs:
    frames, windows = array(request, "FRAME"), array(request, "AUDIO")
    for frame, audio in zip(frames, windows, strict=True):
        check_frame(memoryview(frame))
        check_audio(audio)
    return {"CHECKED_FRAME": frames, "CHECKED_AUDIO": windows, "CHECKED_TWIN": _digits(array(request, "TWIN"))}


def _digits(twins: Array) -> Array:
    return np.stack([digits(text(twin)) for twin in twins.reshape(-1)])
