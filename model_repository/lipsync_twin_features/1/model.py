"""Triton's shell around the twin store: features of twins, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from insync.ensemble import settings
from insync.ensemble.spec import CANARY, CROP_SIZE, MOUTH, REFERENCES
from insync.ensemble.store import TwinStore
from insync.ensemble.triton import Array, Outputs, answer, array, call, text


class TritonPythonModel:
    """TWIN → REFERENCE, IDENTITY."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the store."""
        read = settings.load()
        self._store = TwinStore(read.twins)
        self._limit = read.twin_cache
        self._features: OrderedDict[str, tuple[Array, Array]] = OrderedDict()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Looks every twin up."""
        return answer(requests, self._look_up)

    def _look_up(self, request: Any) -> Outputs:
        twins = [text(value) for value in array(request, "TWIN").reshape(-1)]
        references, identities = zip(*(self._one(twin) for twin in twins), strict=True)
        return {"REFERENCE": np.stack(references), "IDENTITY": np.stack(identities)}

    def _one(self, twin: str) -> tuple[Array, Array]:
        # A twin that was removed from the store must not live on in memory.
        if twin not in self._features or not (twin == CANARY or self._store.holds(twin)):
            self._features.pop(twin, None)
            inputs = self._canary() if twin == CANARY else self._stored(twin)
            outputs = call("lipsync_reference", inputs, ("REFERENCE", "IDENTITY"))
            self._features[twin] = (outputs["REFERENCE"][0], outputs["IDENTITY"][0])
            while len(self._features) > self._limit:
                self._features.popitem(last=False)
        self._features.move_to_end(twin)
        return self._features[twin]

    def _stored(self, twin: str) -> Outputs:
        record = self._store.load(twin).record
        crops = record.crops.transpose(0, 3, 1, 2)[None].astype(np.float32) / 255
        return {"CROPS": np.ascontiguousarray(crops), "CODES": record.codes[None]}

    def _canary(self) -> Outputs:
        crops = np.full((1, REFERENCES, 3, CROP_SIZE, CROP_SIZE), 0.5, np.float32)
        return {"CROPS": crops, "CODES": np.zeros((1, REFERENCES, MOUTH), np.float32)}
