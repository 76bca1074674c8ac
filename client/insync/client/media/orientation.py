"""How a stored picture is turned and mirrored for display."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["UPRIGHT", "Orientation", "orientation_of"]

_QUARTER = np.array([[0, 1], [-1, 0]])  # counter-clockwise, in coordinates right and down
_CLOSE = 0.02  # of a whole turn's matrix, for one that only turns and mirrors


@dataclass(frozen=True)
class Orientation:
    """The display transformation of a stored picture, as quarter turns and a mirror.

    Attributes:
        turns: counter-clockwise quarter turns, 0 to 3, that come first.
        mirrored: whether left and right are exchanged after the turns.
        matrix: the file's display matrix, nine integers as in the MP4 format; None without one.
        exact: whether turns and mirror are all that the matrix does; otherwise it also shears, scales unequally, or turns by another angle.
    """

    turns: int = 0
    mirrored: bool = False
    matrix: tuple[int, ...] | None = None
    exact: bool = True

    @property
    def sideways(self) -> bool:
        """Whether width and height are exchanged for display."""
        return self.turns % 2 == 1

    def upright(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Return a view [H, W, …] of a stored picture as it is displayed."""
        turned = np.rot90(picture, self.turns)
        return turned[:, ::-1] if self.mirrored else turned

    def stored(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Return a view of a displayed picture as it is stored; the inverse of `upright`."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, -self.turns)


UPRIGHT = Orientation()


def orientation_of(frame: Any) -> Orientation:
    """Return the orientation of a decoded av.VideoFrame, from its display matrix.

    Matrices of three kinds are in use: turned, mirrored, and both (FFmpeg's `-display_rotation`, `-display_hflip`). Of any other, the nearest one is returned.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    matrix = tuple(int(value) for value in np.frombuffer(data, np.int32))
    a, b, _, c, d, *_ = (value / 65_536 for value in matrix)
    linear = np.array([[a, c], [b, d]])
    size = np.sqrt(abs(np.linalg.det(linear)))
    if size < 1e-3:
        return Orientation(matrix=matrix, exact=False)
    linear = linear / size
    mirrored = bool(np.linalg.det(linear) < 0)
    turned = np.diag([-1, 1]) @ linear if mirrored else linear
    distances = [np.abs(np.linalg.matrix_power(_QUARTER, turns) - turned).max() for turns in range(4)]
    turns = int(np.argmin(distances))
    return Orientation(turns, mirrored, matrix, bool(distances[turns] < _CLOSE))
