"""Twins' features in memory: computed when a twin is first met, gone soon after the twin is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from insync.core.spec import CANARY
from insync.ensemble.models.twin_store import Record, TwinStore, canary_record

SWEEP_S = 2.0  # a removed twin's features stay in memory for no longer

Features = dict[str, NDArray[Any]]  # tensors by name, with a batch dimension of 1


class FeatureCache:
    """The features of the twins met last. Thread-safe.

    Every look-up asks the store first: a twin that was removed is not served, not even once. While it is open, a thread
    drops what the store no longer holds, whether anybody asks or not. The canary is always there, and the store not asked.

    Args:
        store: where twins are.
        limit: twins kept; of more, those not met for longest go.
        compute: the features of a record.

    Attributes:
        hits, misses: look-ups so far, by whether the features were in memory.
    """

    def __init__(self, store: TwinStore, limit: int, compute: Callable[[Record], Features]) -> None:
        self._store, self._limit, self._compute = store, limit, compute
        self._features: OrderedDict[str, Features] = OrderedDict()
        self._lock = threading.Lock()
        self.hits, self.misses = 0, 0
        self._closing = threading.Event()
        self._sweeper: threading.Thread | None = None

    def open(self) -> None:
        """Starts the thread."""
        self._sweeper = threading.Thread(target=self._sweep_on, name="insync-twins", daemon=True)
        self._sweeper.start()

    def close(self) -> None:
        """Ends the thread, and forgets everything."""
        self._closing.set()
        if self._sweeper is not None:
            self._sweeper.join()
        with self._lock:
            self._features.clear()

    def get(self, twin: str) -> Features:
        """A twin's features.

        Raises:
            NotFound: there is no such twin.
        """
        if self._exists(twin):
            with self._lock:
                known = self._features.get(twin)
                if known is not None:
                    self._features.move_to_end(twin)
                    self.hits += 1
                    return known
        else:
            self._drop(twin)
        made = self._compute(canary_record() if twin == CANARY else self._store.load(twin).record)
        with self._lock:
            self.misses += 1
            self._features[twin] = made
            while len(self._features) > self._limit:
                self._features.popitem(last=False)
        return made

    def sweep(self) -> None:
        """Drops what the store no longer holds."""
        with self._lock:
            twins = list(self._features)
        for twin in twins:
            if not self._exists(twin):
                self._drop(twin)

    def __len__(self) -> int:
        return len(self._features)

    def _exists(self, twin: str) -> bool:
        return twin == CANARY or self._store.holds(twin)

    def _drop(self, twin: str) -> None:
        with self._lock:
            self._features.pop(twin, None)

    def _sweep_on(self) -> None:
        while not self._closing.wait(SWEEP_S):
            self.sweep()
