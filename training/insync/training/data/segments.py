"""A segment of footage, and the files that hold its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Segment:
    """An unbroken stretch of one face: rows [start, start + frames) of the data set."""

    clip: str
    start: int
    frames: int
    fps: float
    has_sound: bool


PARTS = "parts"


def part_path(folder: Path, clip: str, ending: str) -> Path:
    """Where a clip's part of a data set lies."""
    return folder / PARTS / f"{clip}{ending}"
