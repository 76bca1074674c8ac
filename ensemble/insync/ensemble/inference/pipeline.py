"""The served graphs run in one process, without Triton: for evaluation, and as the baseline of the ensemble's latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from insync.core import spec
from insync.ensemble.models.adaat import adaat
from insync.ensemble.models.registration import pixels_of
from insync.ensemble.models.twin_store import Record

Floats = NDArray[np.float32]


class Twin(NamedTuple):
    """A person's features, with a batch dimension of 1.

    Attributes:
        reference: REFERENCE, float32 [1, 160, 36, 40].
        identity: IDENTITY, float32 [1, 128].
        pixels: PIXELS, uint8 [1, 15, 144, 160].
        places: REFERENCE_PLACES, float32 [1, 5, 73, 2].
        neutral: NEUTRAL, float32 [1, 44, 2].
    """

    reference: Floats
    identity: Floats
    pixels: NDArray[np.uint8]
    places: Floats
    neutral: Floats


class Chain:
    """`lipsync_encoder`, `lipsync_mixer`, AdaAT and `lipsync_decoder` in one call; `lipsync_reference` for registration.

    Not thread-safe.

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

    def reference(self, record: Record) -> Twin:
        """Compute a twin's features."""
        planes = np.ascontiguousarray(record.crops.transpose(0, 3, 1, 2)[None], np.float32) / np.float32(255)
        reference, identity = self._run("lipsync_reference", planes, record.codes[None])
        return Twin(reference, identity, pixels_of(record.crops)[None], record.places[None], record.neutral[None])

    def patch(self, crop: Floats, mel: Floats, head: Floats, twin: Twin) -> tuple[NDArray[np.uint8], Floats]:
        """Compute one frame's patch and mouth code.

        Args:
            crop: CROP, float32 [1, 3, 256, 256] in [0, 1].
            mel: MEL, float32 [1, 80, 40].
            head: HEAD, float32 [1, 75, 2].
            twin: the person's features.

        Returns:
            PATCH, uint8 [256, 256, 4]; the mouth code, float32 [12].
        """
        source, pose, speech = self._run("lipsync_encoder", crop, mel)
        affine, style, code, places = self._run("lipsync_mixer", pose, twin.identity, speech, head, twin.neutral)
        aligned = adaat(twin.reference, affine, self._threads)
        (patch,) = self._run("lipsync_decoder", source, aligned, style, twin.pixels, twin.places, places)
        return np.asarray(patch[0], np.uint8), np.asarray(code[0], np.float32)

    def _run(self, name: str, *values: NDArray[Any]) -> list[Any]:
        model = spec.MODELS[name]
        feeds = {wanted.name: value for wanted, value in zip(model.inputs, values, strict=True)}
        outputs: list[Any] = self._graphs[name].run([output.name for output in model.outputs], feeds)
        return outputs
