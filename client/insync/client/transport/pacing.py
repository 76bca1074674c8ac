"""Pacing of requests to an overloaded server: its rate of refusals controls how fast a stream sends.

Additive-increase, multiplicative-decrease, as TCP does (Chiu and Jain, 1989), on the rate of requests.
"""

from __future__ import annotations

__all__ = ["FASTER", "SLOWER", "Pacer"]

_FIRST_S = 0.02  # between requests, after the first refusal
SLOWER, FASTER = 1.5, 0.95  # factors of the time between requests, after a refusal and after a success
_FREE_S = 0.005  # between requests; pacing stops below this interval
_LONGEST_S = 2.0


class Pacer:
    """Schedules the time at which each request is sent. There is no delay until the first refusal."""

    def __init__(self) -> None:
        self._interval_s = 0.0
        self._next_s = 0.0
        self._calm_s = 0.0  # until then, refusals are ignored: their requests were sent before the rate was lowered

    def slot(self, now_s: float) -> float:
        """Return when the next request may be sent, on the clock of `now_s`; each call takes one slot."""
        at_s = max(now_s, self._next_s)
        self._next_s = at_s + self._interval_s
        return at_s

    def refused(self, now_s: float, retry_after_s: float | None) -> None:
        """Record a refusal: send slower, and nothing before the time that the server suggests."""
        if now_s >= self._calm_s:
            self._interval_s = min(_LONGEST_S, max(_FIRST_S, self._interval_s * SLOWER))
            self._calm_s = now_s + self._interval_s
        self._next_s = max(self._next_s, now_s + (self._interval_s if retry_after_s is None else retry_after_s))

    def passed(self) -> None:
        """Record an accepted request: send a little faster."""
        self._interval_s = 0.0 if self._interval_s < _FREE_S else self._interval_s * FASTER
