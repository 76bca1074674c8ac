"""The verdict of a soak: whether memory, shared memory, file handles, processes or threads grow over a long run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from insync.loadtest.errors import LoadTestError
from insync.loadtest.measure.resources import Sample

__all__ = ["ALLOWED_GROWTH", "MODELS_MEMORY", "SERIES", "SERVER_MEMORY", "Growth", "judge", "warm_up_s"]

ALLOWED_GROWTH = 0.05  # of the value after warm-up
_SHARE = 0.15  # of the time after warm-up: the medians of its first and its last part of this length are compared
_FEW = 2  # growth that is always allowed for counts: users who connect and leave have some of them open at any time
_MIB = 2**20

SERVER_MEMORY, MODELS_MEMORY = "server, memory of its own", "models' processes, memory of their own"

# Shared memory counts in full as it is reserved: the touched part of it grows with the longest queue so far, up to that size.
SERIES: dict[str, tuple[str, Callable[[Sample], float]]] = {  # name → (unit, value)
    SERVER_MEMORY: ("MiB", lambda s: (s.server.rss_bytes - s.server.shared_bytes) / _MIB),
    MODELS_MEMORY: ("MiB", lambda s: (s.stubs.rss_bytes - s.stubs.shared_bytes) / _MIB),
    "clients, memory": ("MiB", lambda s: s.clients.rss_bytes / _MIB),
    "shared memory": ("MiB", lambda s: s.region_bytes / _MIB),
    "shared memory regions": ("", lambda s: s.regions),
    "server and models, file handles": ("", lambda s: s.server.handles + s.stubs.handles),
    "clients, file handles": ("", lambda s: s.clients.handles),
    "server and models, processes": ("", lambda s: s.server.processes + s.stubs.processes),
    "server and models, threads": ("", lambda s: s.server.threads + s.stubs.threads),
    "clients, threads": ("", lambda s: s.clients.threads),
}


@dataclass(frozen=True)
class Growth:
    """The growth of one series.

    Attributes:
        name, unit: name and unit in `SERIES`.
        before, after: medians of the first and the last part after warm-up.
        flat: whether the growth is within what is allowed.
    """

    name: str
    unit: str
    before: float
    after: float
    flat: bool

    @property
    def share(self) -> float:
        """The growth as a share of the value after warm-up."""
        return (self.after - self.before) / self.before if self.before else 0.0


def warm_up_s(run_time_s: float) -> float:
    """Return the seconds at the start of a run in which resources may grow: caches fill, pools reach their size."""
    return min(600.0, max(0.25 * run_time_s, min(20.0, 0.5 * run_time_s)))


def judge(samples: Sequence[Sample], from_s: float, to_s: float, allowed: float = ALLOWED_GROWTH) -> list[Growth]:
    """Compare the end of an interval with its beginning, for every series.

    Args:
        samples: samples of the machine, in order.
        from_s, to_s: `time.monotonic()` at the end of warm-up and at the end of the load.
        allowed: share by which a series may grow.

    Raises:
        LoadTestError: fewer than four samples in the interval.
    """
    inside = [sample for sample in samples if from_s <= sample.at_s <= to_s]
    part = max(2, round(_SHARE * len(inside)))
    if len(inside) < 2 * part:
        raise LoadTestError(f"{len(inside)} samples after warm-up are too few to measure growth: use a longer run")
    verdicts = []
    for name, (unit, value) in SERIES.items():
        values = [value(sample) for sample in inside]
        if not any(values):
            continue  # not on this machine
        before, after = median(values[:part]), median(values[-part:])
        slack = allowed * before if unit else max(_FEW, allowed * before)
        verdicts.append(Growth(name, unit, before, after, after - before <= slack))
    return verdicts
