"""The served graphs called in one process, without Triton: what evaluation judges, and what the ensemble's speed is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from insync.ensemble import spec
from insync.ensemble.adaat import adaat

Floats = NDArray[np.float32]


class Chain:
    """`lipsync_encoder`, `lipsync_mixer`, AdaAT and `lipsync_decoder` as one call, and `lipsync_reference` for registration. Not thread-safe.

    Args:
        repository: the model repository.
        threads: CPU threads of each graph.
    """

    def __init__(self, repository: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._threads = threads
        self._graphs = {
            name: onnxruntime.InferenceSession(
                str(repository / name / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in ("lipsync_encoder", "lipsync_mixer", "lipsync_decoder", "lipsync_reference")
        }

    def reference(self, crops: NDArray[np.uint8], codes: Floats) -> tuple[Floats, Floats]:
        """A twin's features: crops uint8 [5, 256, 256, 3], codes float32 [5, 12] → REFERENCE [1, 160, 36, 40], IDENTITY [1, 128]."""
        planes = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)[None], np.float32) / np.float32(255)
        reference, identity = self._run("lipsync_reference", planes, codes[None].astype(np.float32))
        return reference, identity

    def patch(self, crop: Floats, mel: Floats, reference: Floats, identity: Floats) -> tuple[NDArray[np.uint8], Floats]:
        """One frame: CROP [1, 3, 256, 256] in [0, 1], MEL [1, 80, 40], a twin's features → PATCH [256, 256, 4], mouth code [12]."""
        source, pose, speech = self._run("lipsync_encoder", crop, mel)
        affine, style, code = self._run("lipsync_mixer", pose, identity, speech)
        aligned = adaat(reference, affine, self._threads)
        (patch,) = self._run("lipsync_decoder", source, aligned, style)
        return np.asarray(patch[0], np.uint8), np.asarray(code[0], np.float32)

    def _run(self, name: str, *values: Floats) -> list[Any]:
        model = spec.MODELS[name]
        feeds = {wanted.name: value for wanted, value in zip(model.inputs, values, strict=True)}
        outputs: list[Any] = self._graphs[name].run([output.name for output in model.outputs], feeds)
        return outputs
