"""Triton model wrapper of `insync.ensemble.models.face`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from insync.core.head import head_of
from insync.core.spec import HEAD
from insync.ensemble.models.face import FaceFinder, centred_transform
from insync.ensemble.triton.python_backend import Outputs, array, optional, respond


class TritonPythonModel:
    """IMAGE, FACE_HINT → TRANSFORM, CONFIDENCE, FACE, HEAD."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the face networks from this file's folder."""
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        cv2.setNumThreads(1)  # leave the other cores to the other models
        self._rigid = np.load(folder / "rigid.npy")
        self._finder = FaceFinder(folder, threads=int(parameters["threads"]["string_value"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Find one face in every image; an image without a face is no error."""
        return respond(requests, self._find)

    def _find(self, request: Any) -> Outputs:
        images, hints = array(request, "IMAGE"), optional(request, "FACE_HINT")
        count, height, width = images.shape[:3]
        transforms = np.repeat(centred_transform(width, height)[None], count, axis=0)
        confidences, boxes = np.zeros((count, 1), np.float32), np.zeros((count, 4), np.float32)
        heads = np.zeros((count, *HEAD.shape), np.float32)
        for k, image in enumerate(images):
            face = self._finder.find(image, None if hints is None else hints[k])
            if face is not None:
                transforms[k], confidences[k], boxes[k] = face.transform, face.confidence, face.box
                heads[k] = head_of(face.landmarks, face.transform, self._rigid)
        return {"TRANSFORM": transforms, "CONFIDENCE": confidences, "FACE": boxes, "HEAD": heads}
