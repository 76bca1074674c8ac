"""Triton's shell around `insync.core.compositing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from insync.core import settings
from insync.core.compositing import blend, place
from insync.core.images import encode_jpeg
from insync.ensemble.triton.python_backend import Array, Outputs, answer, array


class TritonPythonModel:
    """FRAME, IMAGE, TRANSFORM, PATCH, CONFIDENCE → SYNCED."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the settings."""
        self._quality = settings.load().jpeg_quality
        cv2.setNumThreads(1)  # the cores belong to the other steps

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Blends and encodes; a frame in which nothing shows comes back byte for byte."""
        return answer(requests, self._composite)

    def _composite(self, request: Any) -> Outputs:
        names = ("FRAME", "IMAGE", "TRANSFORM", "PATCH", "CONFIDENCE")
        samples = zip(*(array(request, name) for name in names), strict=True)
        synced = [self._one(*sample) for sample in samples]
        # Samples of one request share a length: bytes after a picture's end mean nothing to decoders.
        longest = max(len(data) for data in synced)
        return {"SYNCED": np.stack([np.pad(data, (0, longest - len(data))) for data in synced])}

    def _one(self, frame: Array, image: Array, transform: Array, patch: Array, confidence: Array) -> Array:
        height, width = image.shape[:2]
        placed = place(patch, transform, float(confidence[0]), width, height)
        if placed is None:
            return frame
        whole = image.copy()  # what came in is shared memory of the server's
        blend(whole, placed)
        return np.frombuffer(encode_jpeg(whole, self._quality), np.uint8)
