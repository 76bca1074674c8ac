"""Detection of cuts from one shot to another."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["SMALL", "Scenes"]

SMALL = (64, 36)  # pixels of the downscaled frames that are compared
SCENE_CUT = 22.0  # mean absolute difference of consecutive downscaled frames, of 255, ...
SCENE_CUT_RATIO = 5.0  # ... which must also be this many times the usual difference


class Scenes:
    """A detector of scene cuts. Give it every frame, in order."""

    def __init__(self) -> None:
        self._last: npt.NDArray[np.float32] | None = None
        self._usual = 2.0

    def cut(self, image: npt.NDArray[Any]) -> bool:
        """Return whether a scene starts with this frame, uint8 [H, W, 3] RGB of any size; always with the first."""
        small = cv2.resize(image, SMALL, interpolation=cv2.INTER_AREA).astype(np.float32)
        last, self._last = self._last, small
        if last is None:
            return True
        change = float(np.abs(small - last).mean())
        found = change > SCENE_CUT and change > SCENE_CUT_RATIO * self._usual
        self._usual = 0.9 * self._usual + 0.1 * min(change, SCENE_CUT)
        return found
