"""Counts and latency percentiles of any interval of a run, at a resolution of one second."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from insync.loadtest import events as kinds
from insync.loadtest.events import Event

__all__ = ["Summary", "Tally", "percentile"]

MAX_ERROR_TEXTS = 50
_COUNTED = {kinds.DROPPED: "dropped", kinds.SKIPPED: "skipped", kinds.REPEATED: "repeated", kinds.ORDER: "disordered"}


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of the values do not exceed (nearest rank); NaN for no values."""
    ordered = np.sort(np.fromiter(values, np.float64))
    if not ordered.size:
        return math.nan
    return float(ordered[max(0, math.ceil(share * ordered.size) - 1)])


@dataclass(frozen=True)
class Summary:
    """The counts and latencies of an interval.

    Attributes:
        seconds: length of the interval.
        frames: live frames with a response.
        missed: live frames among them whose response came after the deadline.
        dropped: live frames that the camera's buffer dropped because the client did not read them in time.
        skipped: late live frames that the client skipped.
        repeated: late live frames for which the client repeated the previous one.
        disordered: responses that were not for the next frame.
        lost: frames without a response in streams that ran to their end.
        p50_ms, p95_ms, p99_ms, max_ms: latency of live frames with a response, since their audio was complete.
        first_p50_ms, first_max_ms: time from opening a live stream to its first synced frame.
        dubbed: frames of dubbing jobs.
        jobs: finished dubbing jobs.
        registrations: finished registrations.
        registration_p50_ms, registration_max_ms: their duration.
        refused: requests for a stream that the server rejected because it had no capacity.
        hinted: rejections among them that came with a retry hint.
        hint_p50_ms, hint_max_ms: the time in the retry hints.
        errors: number of errors.
    """

    seconds: float
    frames: int
    missed: int
    dropped: int
    skipped: int
    repeated: int
    disordered: int
    lost: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    first_p50_ms: float
    first_max_ms: float
    dubbed: int
    jobs: int
    registrations: int
    registration_p50_ms: float
    registration_max_ms: float
    refused: int
    hinted: int
    hint_p50_ms: float
    hint_max_ms: float
    errors: int

    @property
    def fps(self) -> float:
        """Live frames with a response per second, over all streams."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def late(self) -> int:
        """Number of live frames that were late or missing."""
        return self.missed + self.dropped + self.skipped + self.repeated

    @property
    def miss_rate(self) -> float:
        """Share of live frames that were late or missing, 0 to 1; 1 if there were no frames."""
        due = self.frames + self.dropped + self.skipped + self.repeated
        return self.late / due if due else 1.0


@dataclass
class _Second:
    counts: Counter[str] = field(default_factory=Counter)
    frames_ms: array[float] = field(default_factory=lambda: array("f"))
    first_ms: array[float] = field(default_factory=lambda: array("f"))
    registrations_ms: array[float] = field(default_factory=lambda: array("f"))
    hints_ms: array[float] = field(default_factory=lambda: array("f"))


class Tally:
    """A collector of events that summarizes any interval.

    Args:
        start_s: `time.monotonic()` at second 0 of the run.

    Attributes:
        errors: count of each error text; digits are masked, so that there are few different texts.
        streaming: numbers of the live users whose stream has started and has not ended or failed.
    """

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.errors: Counter[str] = Counter()
        self.streaming: set[int] = set()
        self._seconds: dict[int, _Second] = {}

    def add(self, event: Event) -> None:
        """Add an event."""
        second = self._seconds.setdefault(math.floor(event.at_s - self.start_s), _Second())
        live = event.role == "live"
        if event.kind == kinds.FRAME and live:
            second.frames_ms.append(event.ms)
            second.counts["missed"] += event.late
        elif event.kind == kinds.FRAME:
            second.counts["dubbed"] += 1
        elif event.kind == kinds.FIRST and live:
            second.first_ms.append(event.ms)
            self.streaming.add(event.user)
        elif event.kind == kinds.REGISTERED:
            second.registrations_ms.append(event.ms)
        elif event.kind in _COUNTED:
            second.counts[_COUNTED[event.kind]] += event.count
        elif event.kind == kinds.JOB:
            second.counts["jobs"] += 1
        elif event.kind == kinds.REFUSED:
            second.counts["refused"] += 1
            self.streaming.discard(event.user)
            if event.ms:
                second.hints_ms.append(event.ms)
        elif event.kind == kinds.ENDED:
            second.counts["lost"] += event.count
            self.streaming.discard(event.user)
        elif event.kind == kinds.ERROR:
            second.counts["errors"] += 1
            self.streaming.discard(event.user)
            text = "".join("#" if letter.isdigit() else letter for letter in event.text)[:200]
            if text in self.errors or len(self.errors) < MAX_ERROR_TEXTS:
                self.errors[text] += 1

    def stopped(self, user: int) -> None:
        """Record that a user was stopped."""
        self.streaming.discard(user)

    def window(self, from_s: float = -math.inf, to_s: float = math.inf) -> Summary:
        """Summarize seconds `from_s` to `to_s` of the run; only whole seconds count, and `to_s` is excluded."""
        inside = [second for at, second in self._seconds.items() if from_s <= at and at + 1 <= to_s]
        ats = [at for at in self._seconds if from_s <= at and at + 1 <= to_s]
        counts: Counter[str] = Counter()
        for second in inside:
            counts.update(second.counts)
        frames, firsts, registrations, hints = (
            np.concatenate([np.zeros(0, np.float32), *(np.asarray(getattr(s, name)) for s in inside)])
            for name in ("frames_ms", "first_ms", "registrations_ms", "hints_ms")
        )
        if math.isfinite(from_s) and math.isfinite(to_s):
            length = float(max(0, math.floor(to_s) - math.ceil(from_s)))
        else:
            length = float(max(ats) - min(ats) + 1) if ats else 0.0
        return Summary(
            seconds=length,
            frames=len(frames),
            missed=counts["missed"],
            dropped=counts["dropped"],
            skipped=counts["skipped"],
            repeated=counts["repeated"],
            disordered=counts["disordered"],
            lost=counts["lost"],
            p50_ms=percentile(frames, 0.50),
            p95_ms=percentile(frames, 0.95),
            p99_ms=percentile(frames, 0.99),
            max_ms=percentile(frames, 1.0),
            first_p50_ms=percentile(firsts, 0.50),
            first_max_ms=percentile(firsts, 1.0),
            dubbed=counts["dubbed"],
            jobs=counts["jobs"],
            registrations=len(registrations),
            registration_p50_ms=percentile(registrations, 0.50),
            registration_max_ms=percentile(registrations, 1.0),
            refused=counts["refused"],
            hinted=len(hints),
            hint_p50_ms=percentile(hints, 0.50),
            hint_max_ms=percentile(hints, 1.0),
            errors=counts["errors"],
        )

    def timeline(self, step_s: int = 1) -> list[tuple[int, Summary]]:
        """Return (second, summary) of consecutive intervals of `step_s` seconds, from second 0 to the newest event."""
        if not self._seconds:
            return []
        return [(at, self.window(at, at + step_s)) for at in range(0, max(self._seconds) + 1, step_s)]
