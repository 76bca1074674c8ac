"""A segment of footage, and the paths of a data set's parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Segment:
    """Consecutive frames of one face: rows [start, start + frames) of the data set."""

    clip: str
    start: int
    frames: int
    fps: float
    has_sound: bool


PARTS = "parts"


def part_path(folder: Path, clip: str, ending: str) -> Path:
    """Return the path of a file of a clip's part."""
    return folder / PARTS / f"{clip}{ending}"
