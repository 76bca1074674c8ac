"""Admission control: keeps admitted streams within their deadline when three times as many arrive as the server can serve.

A **live stream** sends its name (STREAM) and its frame rate (RATE) with every frame. Its first frame requests admission, each
further one renews it, and RATE 0 or a few seconds without frames end it. Streams are admitted as long as the sum of their
rates fits the server's capacity; later ones are refused at once, with a hint when to retry. **Unpaced** requests, as a
dubbing job sends them, have no STREAM: they get the capacity that live streams leave, all of it if there are none.

The table is in memory, in the one process of `lipsync_guard`. Losing it is harmless: every frame carries all that is needed
to request admission again. Rates are limited by the generic cell rate algorithm (ITU-T I.371, Annex A): one number per stream.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from insync.core.errors import BadInput, Overloaded
from insync.core.spec import CANARY

LEASE_S = 5.0  # without a frame, until a stream's capacity is released
MIN_RATE, MAX_RATE = 1.0, 240.0  # frames/s of one stream
STREAM_SLACK = 1.5  # × its rate that a stream may send: a frame whose face has moved out of the region is sent twice
STREAM_BURST_S = 1.0  # seconds' worth of frames that a stream may send at once, as after a network stall
UNPACED_FLOOR = 0.05  # share of the capacity that unpaced requests get even when live streams use all of it
UNPACED_BURST = 2  # frames; each of them delays all live streams
CANARY_RATE, CANARY_BURST = (
    2.0,
    8,
)  # frames/s, frames of all probes together, at any load: a full server is not a dead one
MAX_NAME = 64  # characters of STREAM


@dataclass
class _Meter:
    """The generic cell rate algorithm: `due_s` is when the next frame is due at an even rate."""

    due_s: float = 0.0

    def wait_s(self, now_s: float, rate: float, burst: float) -> float:
        """Count a frame and return 0, or return the seconds until one is allowed."""
        early = self.due_s - (burst - 1) / rate - now_s
        if early > 1e-9:
            return early
        self.due_s = max(self.due_s, now_s) + 1 / rate
        return 0.0


@dataclass
class _Lease:
    rate: float
    seen_s: float
    meter: _Meter = field(default_factory=_Meter)


class Admission:
    """The table of admitted streams. Not thread-safe.

    Args:
        capacity_fps: frames/s that the server can serve, over all streams; 0: no limit, and nothing is counted.
        clock: returns monotonic seconds.

    Raises:
        BadInput: a capacity below 0 or not a number.
    """

    def __init__(self, capacity_fps: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 <= capacity_fps < float("inf"):
            raise BadInput(f"capacity_fps must be a number of at least 0 (0: no limit), got {capacity_fps}")
        self.capacity_fps = capacity_fps
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._unpaced = _Meter()
        self._canary = _Meter()

    @property
    def leased_fps(self) -> float:
        """Sum of the rates of the streams that are admitted now, frames/s."""
        return sum(lease.rate for lease in self._leases.values())

    def admit_all(self, frames: Sequence[tuple[str | None, float | None]]) -> None:
        """Admit all frames of one request, each given by its stream and rate as in `admit`, or none of them.

        Raises:
            Overloaded, BadInput: as `admit`; streams that this request introduced are then not admitted.
        """
        before = set(self._leases)
        try:
            for stream, rate in frames:
                self.admit(stream, rate)
        except (Overloaded, BadInput):
            for name in self._leases.keys() - before:
                del self._leases[name]
            raise

    def admit(self, stream: str | None, rate: float | None) -> None:
        """Admit one frame.

        Args:
            stream: the name of its live stream; None for an unpaced request.
            rate: the stream's frames/s; 0 ends the stream.

        Raises:
            Overloaded: there is no capacity now; carries the time to retry after.
            BadInput: a rate without a name or a name without a rate, or one that is not allowed.
        """
        if stream is None:
            if rate is not None:
                raise BadInput("RATE was sent without STREAM: send the name of the stream too")
            self._admit_unpaced()
            return
        if not 0 < len(stream) <= MAX_NAME:
            raise BadInput(f"STREAM has {len(stream)} characters, must have 1 to {MAX_NAME}")
        if rate is None or not (rate == 0 or MIN_RATE <= rate <= MAX_RATE):
            shown = "missing" if rate is None else f"{rate:g}"
            raise BadInput(f"RATE is {shown}, must be {MIN_RATE:g} to {MAX_RATE:g} frames/s, or 0 to end the stream")
        if stream == CANARY:
            wait_s = self._canary.wait_s(self._clock(), CANARY_RATE, CANARY_BURST)
            if wait_s:
                raise Overloaded(f"probes must be at most {CANARY_RATE:g} frames/s together", wait_s)
        elif rate == 0:
            self._leases.pop(stream, None)
        elif self.capacity_fps:
            self._admit_live(stream, rate)

    def _admit_live(self, stream: str, rate: float) -> None:
        now_s = self._clock()
        self._drop(now_s)
        lease = self._leases.get(stream)
        if lease is None or rate > lease.rate:
            others = self.leased_fps - (lease.rate if lease else 0.0)
            # An empty server admits any stream: there is no other stream whose deadline could suffer.
            if others and others + rate > self.capacity_fps * (1 + 1e-6):
                raise Overloaded(
                    f"the server is full: {len(self._leases)} streams use {self.leased_fps:g} of its "
                    f"{self.capacity_fps:g} frames/s, this one needs {rate:g}",
                    # Random, so that streams refused at the same time do not all retry at once and delay admitted frames.
                    random.uniform(LEASE_S / 2, LEASE_S),
                )
            lease = self._leases.setdefault(stream, _Lease(rate, now_s))
        lease.rate, lease.seen_s = rate, now_s
        wait_s = lease.meter.wait_s(now_s, rate * STREAM_SLACK, max(4.0, rate * STREAM_BURST_S))
        if wait_s:
            raise Overloaded(f"the stream sends faster than the {rate:g} frames/s that it was admitted for", wait_s)

    def _admit_unpaced(self) -> None:
        if not self._leases:
            return
        now_s = self._clock()
        self._drop(now_s)
        if not self._leases:
            return
        left = max(self.capacity_fps - self.leased_fps, UNPACED_FLOOR * self.capacity_fps)
        wait_s = self._unpaced.wait_s(now_s, left, UNPACED_BURST)
        if wait_s:
            raise Overloaded(f"live streams leave {left:.3g} frames/s to requests without STREAM", wait_s)

    def _drop(self, now_s: float) -> None:
        gone = [name for name, lease in self._leases.items() if now_s - lease.seen_s > LEASE_S]
        for name in gone:
            del self._leases[name]
