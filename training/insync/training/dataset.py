"""A curated data set in memory, with its mouth codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from insync.ensemble.mouth import POINTS, MouthBasis, opening
from insync.ensemble.spec import CROP_SIZE, MOUTH
from insync.training.curate import Segment

Floats = npt.NDArray[np.float32]


class Dataset:
    """A folder that `curate` wrote.

    Attributes:
        crops: uint8 [N, 256, 256, 3].
        landmarks: float32 [N, 468, 2], in pixels of the crop.
        shapes: float32 [N, L, 2], pose-free lips and chin.
        mel: float16 [N, 80, 40].
        time_s: float32 [N].
        segments: what belongs together.
        segment_of: int [N].
    """

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "frames.npz") as rows:
            self.landmarks = rows["landmarks"]
            self.shapes: Floats = rows["skull"][:, list(POINTS)]
            self.mel = rows["mel"]
            self.time_s: Floats = rows["time_s"]
            self.segment_of = rows["segment"]
        self.segments = [Segment(**entry) for entry in json.loads((folder / "segments.json").read_text())]
        shape = (len(self.time_s), CROP_SIZE, CROP_SIZE, 3)
        # Read at once: random access to a mapped file of this size is slower than the training step.
        self.crops = np.fromfile(folder / "crops.u8", np.uint8).reshape(shape)
        self.openings = np.array([opening(shape) for shape in self.shapes], np.float32)

    def rows(self, segment: int) -> slice:
        """The rows of a segment."""
        entry = self.segments[segment]
        return slice(entry.start, entry.start + entry.frames)

    def neutrals(self, basis: MouthBasis) -> Floats:
        """Each segment's resting shape: float32 [S, L, 2]."""
        return np.stack([basis.neutral(self.shapes[self.rows(i)]) for i in range(len(self.segments))])

    def codes(self, basis: MouthBasis) -> tuple[Floats, Floats]:
        """Mouth codes of all frames and of their mirror images: float32 [N, MOUTH] twice."""
        differences = self.shapes - self.neutrals(basis)[self.segment_of]
        return tuple(  # type: ignore[return-value]
            (d.reshape(len(d), -1) @ basis.components.T / basis.deviation).astype(np.float32)
            for d in (differences, mirrored(differences, basis.rest))
        )


def mirrored(differences: Floats, rest: Floats) -> Floats:
    """Shape differences float32 [N, L, 2] as a mirror shows them, given the mean resting shape float32 [L, 2]."""
    flipped = rest * np.array([-1, 1], np.float32)
    partner = np.linalg.norm(rest[:, None] - flipped[None], axis=2).argmin(1)
    return differences[:, partner] * np.array([-1, 1], np.float32)


def fit_basis(dataset: Dataset, rigid: Floats) -> MouthBasis:
    """The principal components of how lips and chin leave their resting shape, each segment weighing by the root of its length.

    Args:
        dataset: the footage.
        rigid: float32 [R, 3], see `MouthBasis`.
    """
    slices = [dataset.rows(i) for i in range(len(dataset.segments))]
    rest = np.median([_resting(dataset.shapes[rows], dataset.openings[rows]) for rows in slices], axis=0).astype(
        np.float32
    )
    sides = len(POINTS)
    start = MouthBasis(rigid, rest, np.zeros((MOUTH, 2 * sides), np.float32), np.ones(MOUTH, np.float32))
    differences = dataset.shapes - dataset.neutrals(start)[dataset.segment_of]
    counts = np.array([segment.frames for segment in dataset.segments])
    weights = 1 / np.sqrt(counts)[dataset.segment_of]
    both = np.concatenate([differences, mirrored(differences, rest)]).reshape(2 * len(differences), -1)
    weighted = both * np.sqrt(np.concatenate([weights, weights]) / weights.sum() / 2)[:, None]
    _, values, rows = np.linalg.svd(weighted, full_matrices=False)
    components = rows[:MOUTH]
    # The first component opens the mouth for positive codes.
    lower = POINTS.index(14)
    components *= np.where(components[:, 2 * lower + 1] < 0, -1, 1)[:, None]
    return MouthBasis(rigid, rest, components.astype(np.float32), np.maximum(values[:MOUTH], 1e-4).astype(np.float32))


def _resting(shapes: Floats, openings: Floats) -> Floats:
    return np.asarray(np.median(shapes[np.argsort(openings)[: max(1, len(shapes) // 7)]], axis=0), np.float32)
