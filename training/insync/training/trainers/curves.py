"""Plots of the metrics of a training stage, from its CSV into a PNG next to it."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ef",
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
}
_COLUMNS = 4
_SMOOTH_SHARE = 0.04  # of the rows: standard deviation of the smoothing
_X = ("step", "seconds")


def draw(path: Path) -> Path | None:
    """Plot every column of a stage's CSV over the steps, raw and smoothed.

    Args:
        path: the CSV that `insync.training.trainers.run.Log` writes.

    Returns:
        The path of the PNG, or None if there are fewer than two rows.
    """
    table = np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True))
    if len(table) < 2:
        return None
    names = [name for name in table.dtype.names or () if name not in _X]
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * columns, 0.5 + 1.9 * rows), layout="constrained")
        figure.suptitle(f"{path.stem}: {int(table['step'][-1]) + 1} steps, {table['seconds'][-1] / 60:.1f} minutes")
        for number, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.plot(table["step"], table[name], color="#c3cfe2", linewidth=0.7)
            axes.plot(table["step"], _smooth(table[name]), color="#3b6fb6", linewidth=1.5)
            axes.set_title(name)
            if number >= len(names) - columns:
                axes.set_xlabel("step")
        picture = path.with_suffix(".png")
        part = picture.with_suffix(".part")
        figure.savefig(part, dpi=120, format="png")
    part.replace(picture)
    return picture


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Smooth values with a Gaussian kernel, cut off at both ends."""
    deviation = max(1.0, _SMOOTH_SHARE * len(values))
    reach = min(math.ceil(3 * deviation), (len(values) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights = np.convolve(np.ones(len(values)), kernel, "same")
    smoothed: npt.NDArray[np.float64] = np.convolve(values, kernel, "same") / weights
    return smoothed
