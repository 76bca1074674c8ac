"""Triton model wrapper of `insync.core.compositing`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from insync.core import settings
from insync.core.compositing import blend, place
from insync.core.images import encode_jpeg
from insync.ensemble.triton.python_backend import Array, Outputs, array, respond


class TritonPythonModel:
    """FRAME, IMAGE, TRANSFORM, PATCH, CONFIDENCE → SYNCED."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings."""
        self._quality = settings.load().jpeg_quality
        cv2.setNumThreads(1)  # leave the other cores to the other models

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Blend and encode; a frame in which no patch is visible is returned byte for byte."""
        return respond(requests, self._composite)

    def _composite(self, request: Any) -> Outputs:
        names = ("FRAME", "IMAGE", "TRANSFORM", "PATCH", "CONFIDENCE")
        samples = zip(*(array(request, name) for name in names), strict=True)
        synced = [self._one(*sample) for sample in samples]
        # Samples of one request must have the same length: decoders ignore bytes after a picture's end.
        longest = max(len(data) for data in synced)
        return {"SYNCED": np.stack([np.pad(data, (0, longest - len(data))) for data in synced])}

    def _one(self, frame: Array, image: Array, transform: Array, patch: Array, confidence: Array) -> Array:
        height, width = image.shape[:2]
        placed = place(patch, transform, float(confidence[0]), width, height)
        if placed is None:
            return frame
        whole = image.copy()  # the input is the server's shared memory
        blend(whole, placed)
        return np.frombuffer(encode_jpeg(whole, self._quality), np.uint8)
