"""Who may send frames while a server is full: what keeps an admitted stream's deadline when three times as many come.

A **live stream** names itself (STREAM) and its frame rate (RATE) with every frame. Its first frame asks for admission, each
further one renews it, RATE 0 or a few silent seconds end it. As long as the admitted rates fit the server's capacity it
gets in; later ones are refused at once, with a hint when to ask again. **Unpaced** requests, as a dubbing job sends them,
name no stream: they get what the live ones leave over, all of it where there are none.

The table lives in memory, in the one process of `lipsync_guard`: losing it costs nobody anything, since every frame carries
what it needs to ask anew. Rates are held by the generic cell rate algorithm (ITU-T I.371, Annex A): one number per stream.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from insync.core.errors import BadInput, Overloaded
from insync.core.spec import CANARY

LEASE_S = 5.0  # without a frame, until a stream's place is given away
MIN_RATE, MAX_RATE = 1.0, 240.0  # frames/s of one stream
STREAM_SLACK = 1.5  # times its rate that a stream may send: a frame whose face has moved away is sent twice
STREAM_BURST_S = 1.0  # of frames that it may send at once, as after a hiccup of its network
UNPACED_FLOOR = 0.05  # of the capacity: what unpaced requests get when live streams take everything
UNPACED_BURST = 2  # frames; every one of them stands in the way of all live streams
CANARY_RATE, CANARY_BURST = 2.0, 8  # frames/s of all probes together, whatever else comes: a full server is no dead one
MAX_NAME = 64  # characters of STREAM


@dataclass
class _Meter:
    """The generic cell rate algorithm: `due_s` is when the next frame would come if frames came evenly."""

    due_s: float = 0.0

    def wait_s(self, now_s: float, rate: float, burst: float) -> float:
        """Counts a frame and returns 0, or returns the seconds until there is room for it."""
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
        capacity_fps: frames/s that the server holds, over all streams; 0: no limit, and nothing is counted.
        clock: seconds that only grow.

    Raises:
        BadInput: a capacity below 0 or not a number.
    """

    def __init__(self, capacity_fps: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 <= capacity_fps < float("inf"):
            raise BadInput(f"capacity_fps is {capacity_fps}, allowed are numbers from 0 (no limit)")
        self.capacity_fps = capacity_fps
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._unpaced = _Meter()
        self._canary = _Meter()

    @property
    def leased_fps(self) -> float:
        """Frames/s promised to the streams that are admitted now."""
        return sum(lease.rate for lease in self._leases.values())

    def admit_all(self, asked: Sequence[tuple[str | None, float | None]]) -> None:
        """Lets the frames of one request in, each with its stream and rate as in `admit`, or none of them.

        Raises:
            Overloaded, BadInput: as `admit` does; a stream that the request named first has no place then.
        """
        before = set(self._leases)
        try:
            for stream, rate in asked:
                self.admit(stream, rate)
        except (Overloaded, BadInput):
            for name in self._leases.keys() - before:
                del self._leases[name]
            raise

    def admit(self, stream: str | None, rate: float | None) -> None:
        """Lets one frame in.

        Args:
            stream: the name of its live stream, or None where it belongs to none.
            rate: the stream's frames/s; 0 ends the stream.

        Raises:
            Overloaded: there is no room now; says when to ask again.
            BadInput: a name without a rate, or either outside of what is allowed.
        """
        if stream is None:
            if rate is not None:
                raise BadInput("RATE comes without STREAM: name the stream that has this rate")
            self._admit_unpaced()
            return
        if not 0 < len(stream) <= MAX_NAME:
            raise BadInput(f"STREAM has {len(stream)} characters, allowed are 1 to {MAX_NAME}")
        if rate is None or not (rate == 0 or MIN_RATE <= rate <= MAX_RATE):
            shown = "missing" if rate is None else f"{rate:g}"
            raise BadInput(f"RATE is {shown}, allowed are {MIN_RATE:g} to {MAX_RATE:g} frames/s, or 0 at the end")
        if stream == CANARY:
            wait_s = self._canary.wait_s(self._clock(), CANARY_RATE, CANARY_BURST)
            if wait_s:
                raise Overloaded(f"more probes come than {CANARY_RATE:g} frames/s", wait_s)
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
            # An empty server takes anybody: there is nobody whose deadline could suffer.
            if others and others + rate > self.capacity_fps * (1 + 1e-6):
                raise Overloaded(
                    f"the server is full: {len(self._leases)} streams hold {self.leased_fps:g} of its "
                    f"{self.capacity_fps:g} frames/s, this one asks for {rate:g}",
                    # Spread out: all who were refused together would come back together, in front of admitted frames.
                    random.uniform(LEASE_S / 2, LEASE_S),
                )
            lease = self._leases.setdefault(stream, _Lease(rate, now_s))
        lease.rate, lease.seen_s = rate, now_s
        wait_s = lease.meter.wait_s(now_s, rate * STREAM_SLACK, max(4.0, rate * STREAM_BURST_S))
        if wait_s:
            raise Overloaded(f"the stream sends faster than the {rate:g} frames/s that it was admitted with", wait_s)

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
