"""How fast streams send to a server that cannot take all: a job as fast as it is let, a live stream what comes back in time.

Additive-increase, multiplicative-decrease, as TCP does (Chiu and Jain, 1989), on the rate of requests.
"""

from __future__ import annotations

__all__ = ["FASTER", "SLOWER", "Pacer"]

_FIRST_S = 0.02  # between requests, after the first refusal
SLOWER, FASTER = 1.5, 0.95  # factors of the time between requests, after a refusal and after a success
_FREE_S = 0.005  # between requests; faster than that is no pacing any more
_LONGEST_S = 2.0


class Pacer:
    """Gives each request a time to be sent at. Free of waiting until the first refusal."""

    def __init__(self) -> None:
        self._interval_s = 0.0
        self._next_s = 0.0
        self._calm_s = 0.0  # until then, refusals tell nothing new: their requests were sent before the last one

    def slot(self, now_s: float) -> float:
        """When the next request may be sent, in the clock of `now_s`; each call takes one slot."""
        at_s = max(now_s, self._next_s)
        self._next_s = at_s + self._interval_s
        return at_s

    def refused(self, now_s: float, retry_after_s: float | None) -> None:
        """The server had no room: slower from now on, and nothing before the time that it named."""
        if now_s >= self._calm_s:
            self._interval_s = min(_LONGEST_S, max(_FIRST_S, self._interval_s * SLOWER))
            self._calm_s = now_s + self._interval_s
        self._next_s = max(self._next_s, now_s + (self._interval_s if retry_after_s is None else retry_after_s))

    def passed(self) -> None:
        """The server took a request: a little faster from now on."""
        self._interval_s = 0.0 if self._interval_s < _FREE_S else self._interval_s * FASTER
