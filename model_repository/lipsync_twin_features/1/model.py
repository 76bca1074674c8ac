"""Triton's shell around `insync.ensemble.features`: features of twins, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from insync.ensemble import settings
from insync.ensemble.features import FeatureCache, Features
from insync.ensemble.store import Record, TwinStore
from insync.ensemble.triton import Outputs, answer, array, call


class TritonPythonModel:
    """TWIN → REFERENCE, IDENTITY."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the store."""
        read = settings.load()
        self._cache = FeatureCache(TwinStore(read.twins), read.twin_cache, _compute)
        self._cache.open()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Looks every twin up."""
        return answer(requests, self._look_up)

    def finalize(self) -> None:
        """Forgets everybody."""
        self._cache.close()

    def _look_up(self, request: Any) -> Outputs:
        twins = [bytes(row).decode("ascii", "replace") for row in array(request, "TWIN")]
        references, identities = zip(*(self._cache.get(twin) for twin in twins), strict=True)
        return {"REFERENCE": np.stack(references), "IDENTITY": np.stack(identities)}


def _compute(record: Record) -> Features:
    crops = record.crops.transpose(0, 3, 1, 2)[None].astype(np.float32) / 255
    inputs = {"CROPS": np.ascontiguousarray(crops), "CODES": record.codes[None]}
    outputs = call("lipsync_reference", inputs, ("REFERENCE", "IDENTITY"))
    return outputs["REFERENCE"][0], outputs["IDENTITY"][0]
