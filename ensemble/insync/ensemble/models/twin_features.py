"""A cache of twins' features in memory: computed on first use, dropped soon after the twin is deleted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from insync.core.spec import CANARY
from insync.ensemble.models.twin_store import Record, TwinStore, canary_record

SWEEP_S = 2.0  # a deleted twin's features stay in memory for no longer than this

Features = dict[str, NDArray[Any]]  # tensors by name, with a batch dimension of 1


class FeatureCache:
    """A least-recently-used cache of twins' features. Thread-safe.

    Every look-up checks the store first: a deleted twin is never served, not even once. While the cache is open, a thread
    drops features of deleted twins, even without look-ups. The canary twin always exists and is not looked up in the store.

    Args:
        store: the twin store.
        limit: number of twins to keep; beyond it, the least recently used are dropped.
        compute: computes the features of a record.

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
        """Start the thread."""
        self._sweeper = threading.Thread(target=self._sweep_on, name="insync-twins", daemon=True)
        self._sweeper.start()

    def close(self) -> None:
        """End the thread and drop all features."""
        self._closing.set()
        if self._sweeper is not None:
            self._sweeper.join()
        with self._lock:
            self._features.clear()

    def get(self, twin: str) -> Features:
        """Return a twin's features.

        Raises:
            NotFound: there is no such twin.
        """
        if self._exists(twin):
            with self._lock:
                cached = self._features.get(twin)
                if cached is not None:
                    self._features.move_to_end(twin)
                    self.hits += 1
                    return cached
        else:
            self._drop(twin)
        features = self._compute(canary_record() if twin == CANARY else self._store.load(twin).record)
        with self._lock:
            self.misses += 1
            self._features[twin] = features
            while len(self._features) > self._limit:
                self._features.popitem(last=False)
        return features

    def sweep(self) -> None:
        """Drop the features of twins that are no longer in the store."""
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
