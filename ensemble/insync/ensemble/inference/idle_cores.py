"""Idle CPU time of the machine, from Linux's counters, and the choice of cores for a multi-threaded run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SPAN_S = 0.1  # shortest interval over which the share is measured: Linux counts in hundredths of a second


class IdleShare:
    """The recent idle share of all cores' time, in [0, 1]; 0 if Linux provides no counters. Not thread-safe.

    Unlike the number of waiting threads at one moment, it distinguishes a stream, which leaves the cores idle between its
    frames, from a job, which does not.

    Args:
        counts: the kernel's file of counters.
    """

    def __init__(self, counts: Path = Path("/proc/stat")) -> None:
        self._counts = counts
        self._read_s = time.monotonic()
        self._idle, self._all = self._now()
        self._share = 0.0

    def __call__(self) -> float:
        """Return the share between the last two readings, which are at least `SPAN_S` apart."""
        if time.monotonic() - self._read_s >= SPAN_S:
            idle, everything = self._now()
            if everything > self._all:
                self._share = (idle - self._idle) / (everything - self._all)
            self._idle, self._all, self._read_s = idle, everything, time.monotonic()
        return self._share

    def _now(self) -> tuple[int, int]:
        """Read the ticks of all cores since the machine was started: idle ones, and all of them."""
        try:
            with self._counts.open("rb") as file:
                # cpu, then: user, nice, system, idle, iowait, irq, softirq, steal, …
                ticks = [int(field) for field in file.readline().split()[1:9]]
        except OSError:
            return 0, 0
        return sum(ticks[3:5]), sum(ticks)


def cores_for(threads: int, instance: int) -> tuple[int, ...]:
    """Choose a different core for each thread of a run, among those that this process may use.

    Without this, Linux wakes a worker thread on the core of the thread that wakes it, which stays busy: the two together
    take longer than one alone.

    Args:
        threads: number of threads.
        instance: number of the model instance: other instances get other cores, as far as there are any.

    Returns:
        The core numbers; empty if there are fewer cores than threads.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        return ()
    return tuple(allowed[(instance * threads + k) % len(allowed)] for k in range(threads))


@contextmanager
def bound_to(core: int) -> Iterator[None]:
    """Pin the calling thread to one core; if that is not allowed, leave its affinity unchanged."""
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)
