"""Frame dropping: which frames of a live stream to send, if late ones are skipped or repeated."""

from __future__ import annotations

from typing import Literal, get_args

from insync.client.transport.pacing import FASTER, SLOWER

__all__ = ["LATE", "FrameDropper", "Late"]

# The policy for a live stream's late frame: wait for it, skip it, or repeat the previous frame.
Late = Literal["wait", "skip", "repeat"]
LATE: tuple[Late, ...] = get_args(Late)
_LONGEST_INTERVAL_S = 1.0  # between sent frames of a live stream


class FrameDropper:
    """Decides which frames of a live stream to send, if late frames are not used.

    A server with more requests than it can process returns all of them late, and its work is wasted. So each late frame
    lowers the rate, until the frames that are sent return in time; each frame in time raises it, up to the camera's rate.

    Args:
        fps: the camera's frames per second.
        deadline_s: seconds from having a frame and its audio until it is late.
    """

    def __init__(self, fps: float, deadline_s: float) -> None:
        self._period_s, self._deadline_s = 1 / fps, deadline_s
        self._interval_s = 0.0  # between sent frames; 0: all are sent
        self._next_s = 0.0
        self._calm_s = 0.0  # until then, late frames do not lower the rate again, as in `Pacer`

    def due(self, now_s: float) -> bool:
        """Return whether to send a frame that has arrived now."""
        if now_s < self._next_s - self._period_s / 2:
            return False
        self._next_s = now_s + self._interval_s
        return True

    def late(self, now_s: float) -> None:
        """Record a frame that was late."""
        if now_s >= self._calm_s:
            self._interval_s = min(_LONGEST_INTERVAL_S, max(self._period_s, self._interval_s) * SLOWER)
            self._next_s = max(self._next_s, now_s + self._interval_s)
            self._calm_s = now_s + self._deadline_s

    def in_time(self) -> None:
        """Record a frame that was in time."""
        self._interval_s *= FASTER
        if self._interval_s < self._period_s:
            self._interval_s = 0.0
