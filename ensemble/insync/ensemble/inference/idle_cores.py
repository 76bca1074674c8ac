"""How much of the machine's processor time is left over, as Linux counts it, and how a run takes several cores of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SPAN_S = 0.1  # at least, over which the share is taken: Linux counts in hundredths of a second


class IdleShare:
    """The share of all cores' time that lay idle lately, in [0, 1]; 0 where Linux does not say. Not thread-safe.

    Unlike the number of threads that wait at one moment, it tells a stream, which leaves the cores idle between its frames,
    from a job, which does not.

    Args:
        counts: the file that the kernel counts in.
    """

    def __init__(self, counts: Path = Path("/proc/stat")) -> None:
        self._counts = counts
        self._read_s = time.monotonic()
        self._idle, self._all = self._now()
        self._share = 0.0

    def __call__(self) -> float:
        """The share between the last two looks, which lie `SPAN_S` or more apart."""
        if time.monotonic() - self._read_s >= SPAN_S:
            idle, everything = self._now()
            if everything > self._all:
                self._share = (idle - self._idle) / (everything - self._all)
            self._idle, self._all, self._read_s = idle, everything, time.monotonic()
        return self._share

    def _now(self) -> tuple[int, int]:
        """Ticks of all cores since the machine was started: idle ones, and all of them."""
        try:
            with self._counts.open("rb") as file:
                # cpu, then: user, nice, system, idle, waiting for a disk, interrupts, soft interrupts, stolen, …
                ticks = [int(field) for field in file.readline().split()[1:9]]
        except OSError:
            return 0, 0
        return sum(ticks[3:5]), sum(ticks)


def cores_for(threads: int, instance: int) -> tuple[int, ...]:
    """Different cores for the threads of a run, of those that this process may use.

    Left to itself, Linux wakes a helper on the core of the thread that wakes it, and that one does not make way: the two
    take longer than one alone.

    Args:
        threads: how many.
        instance: number of the process among its like: neighbours get others, as far as there are any.

    Returns:
        Their numbers; none where there are fewer cores than threads.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        return ()
    return tuple(allowed[(instance * threads + k) % len(allowed)] for k in range(threads))


@contextmanager
def bound_to(core: int) -> Iterator[None]:
    """Keeps the calling thread on one core; where it may not go there, it stays where it is."""
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)
