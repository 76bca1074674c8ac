"""Choose which frames of a live stream are worth sending, where late ones are not wanted any more."""

from __future__ import annotations

from typing import Literal, get_args

from insync.client.transport.pacing import FASTER, SLOWER

__all__ = ["LATE", "FrameDropper", "Late"]

# The policy for a live stream's late frame: wait for it, skip it, or repeat the frame before it.
Late = Literal["wait", "skip", "repeat"]
LATE: tuple[Late, ...] = get_args(Late)
_LONGEST_FRAME_S = 1.0  # between frames of a live stream


class FrameDropper:
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
            self._interval_s = min(_LONGEST_FRAME_S, max(self._period_s, self._interval_s) * SLOWER)
            self._next_s = max(self._next_s, now_s + self._interval_s)
            self._calm_s = now_s + self._deadline_s

    def in_time(self) -> None:
        """A frame was."""
        self._interval_s *= FASTER
        if self._interval_s < self._period_s:
            self._interval_s = 0.0
