"""How fast streams send to a server that cannot take all: a job as fast as it is let, a live stream what comes back in time.

Additive-increase, multiplicative-decrease, as TCP does (Chiu and Jain, 1989), on the rate of requests.
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["LATE", "Late", "Pacer", "Thinner"]

# What becomes of a live stream's frame that is not there in time: it is waited for, left out, or the one before stands in for it.
Late = Literal["wait", "skip", "repeat"]
LATE: tuple[Late, ...] = get_args(Late)

_FIRST_S = 0.02  # between requests, after the first refusal
_SLOWER, _FASTER = 1.5, 0.95
_FREE_S = 0.005  # between requests; faster than that is no pacing any more
_LONGEST_S = 2.0
_LONGEST_FRAME_S = 1.0  # between frames of a live stream


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
            self._interval_s = min(_LONGEST_S, max(_FIRST_S, self._interval_s * _SLOWER))
            self._calm_s = now_s + self._interval_s
        self._next_s = max(self._next_s, now_s + (self._interval_s if retry_after_s is None else retry_after_s))

    def passed(self) -> None:
        """The server took a request: a little faster from now on."""
        self._interval_s = 0.0 if self._interval_s < _FREE_S else self._interval_s * _FASTER


class Thinner:
    """Which frames of a live stream are worth sending, where those that come late are not wanted any more.

    A server that is asked for more than it can do answers everything late, and works for nothing. So every late answer
    lowers the rate, until what is sent comes back in time; every answer in time raises it, up to the camera's.

    Args:
        fps: of the camera.
        deadline_s: of a frame.
    """

    def __init__(self, fps: float, deadline_s: float) -> None:
        self._period_s, self._deadline_s = 1 / fps, deadline_s
        self._interval_s = 0.0  # between frames that are sent; 0: all are
        self._next_s = 0.0
        self._calm_s = 0.0  # as the pacer's

    def due(self, now_s: float) -> bool:
        """Whether a frame that has come now is to be sent."""
        if now_s < self._next_s - self._period_s / 2:
            return False
        self._next_s = now_s + self._interval_s
        return True

    def late(self, now_s: float) -> None:
        """A frame was not there in time."""
        if now_s >= self._calm_s:
            self._interval_s = min(_LONGEST_FRAME_S, max(self._period_s, self._interval_s) * _SLOWER)
            self._next_s = max(self._next_s, now_s + self._interval_s)
            self._calm_s = now_s + self._deadline_s

    def in_time(self) -> None:
        """A frame was."""
        self._interval_s *= _FASTER
        if self._interval_s < self._period_s:
            self._interval_s = 0.0
