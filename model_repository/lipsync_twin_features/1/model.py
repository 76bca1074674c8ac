"""Triton model wrapper of `insync.ensemble.models.twin_features`: twins' features, cached in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from insync.core import settings
from insync.ensemble.models.registration import pixels_of
from insync.ensemble.models.twin_features import FeatureCache, Features
from insync.ensemble.models.twin_store import Record, TwinStore
from insync.ensemble.triton.python_backend import Counters, Outputs, array, call, respond


class TritonPythonModel:
    """TWIN → REFERENCE, IDENTITY, PIXELS, REFERENCE_PLACES, NEUTRAL."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the twin store and the cache."""
        loaded = settings.load()
        self._cache = FeatureCache(TwinStore(loaded.twins), loaded.twin_cache, _compute)
        self._cache.open()
        self._lookups = Counters(
            "insync_twin_lookups",
            "Twins looked up for frames, by whether their features were in memory",
            "cache",
            ("hit", "miss"),
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Look up every twin."""
        hits, misses = self._cache.hits, self._cache.misses
        responses = respond(requests, self._look_up)
        self._lookups.add("hit", self._cache.hits - hits)
        self._lookups.add("miss", self._cache.misses - misses)
        return responses

    def finalize(self) -> None:
        """Close the cache."""
        self._cache.close()

    def _look_up(self, request: Any) -> Outputs:
        twins = [bytes(row).decode("ascii", "replace") for row in array(request, "TWIN")]
        found = [self._cache.get(twin) for twin in twins]
        if len(found) == 1:
            return found[0]  # avoids copying a megabyte
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _compute(record: Record) -> Features:
    crops = record.crops.transpose(0, 3, 1, 2)[None].astype(np.float32) / 255
    inputs = {"CROPS": np.ascontiguousarray(crops), "CODES": record.codes[None]}
    return {
        **call("lipsync_reference", inputs, ("REFERENCE", "IDENTITY")),
        "PIXELS": pixels_of(record.crops)[None],
        "REFERENCE_PLACES": record.places[None],
        "NEUTRAL": record.neutral[None],
    }
