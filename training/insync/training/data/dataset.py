"""A curated data set in memory, with its mouth codes."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from insync.core.mouth import POINTS, MouthBasis, aperture
from insync.core.spec import CROP_SIZE, MOUTH
from insync.training.data.audio import read_stored, windows
from insync.training.data.crops import read_crops
from insync.training.data.manifest import FILE, Row, read_manifest
from insync.training.data.segments import Segment

Floats = npt.NDArray[np.float32]
_CROP = (CROP_SIZE, CROP_SIZE, 3)


class Dataset:
    """A folder that `curate` wrote: the segments that its manifest keeps, manual overrides included. Without a manifest, all segments.

    Args:
        folder: the data set.
        split: train, held_out, or None for both.
        pictures: whether to load the crops, 12 GB an hour; without them `crops` is empty.

    Attributes:
        crops: uint8 [N, 256, 256, 3].
        landmarks: float32 [N, 468, 2], in pixels of the crop.
        shapes: float32 [N, L, 2], lips and chin without head pose.
        mel: float16 [N, 80, 40]; with corrected audio offset if there is a manifest.
        time_s: float32 [N].
        segments: the segments.
        segment_of: int [N], number of each frame's segment.
        has_manifest: whether there is a manifest, which has the audio offsets and the segments with usable speech.
        speaks: for each segment, whether its audio matches its picture; without a manifest, whether it has audio.
        people: for each segment, the name of the person; without a manifest, the clip.
        offsets_s: for each segment, the seconds by which its audio trails its picture; 0 without a manifest.
        folder: the data set.

    Raises:
        FileNotFoundError: the folder is not a data set.
        ValueError: the manifest keeps no segment, or the curation was interrupted.
    """

    def __init__(self, folder: Path, split: str | None = None, pictures: bool = True) -> None:
        missing = [name for name in ("segments.json", "frames.npz") if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder.name} is not a data set, {' and '.join(missing)} missing: create one with `insync curate`"
            )
        self.folder = folder
        self.segments = [Segment(**entry) for entry in json.loads((folder / "segments.json").read_text())]
        with np.load(folder / "frames.npz") as rows:
            columns = {name: rows[name] for name in rows.files}
        self.has_manifest = (folder / FILE).exists()
        if self.has_manifest:
            manifest = [row for row in read_manifest(folder / FILE) if row.stored]
            if sum(row.frames for row in manifest) != len(columns["time_s"]) or len(manifest) != len(self.segments):
                raise ValueError(f"the curation of {folder.name} was interrupted: run `insync curate` again")
            kept = [i for i, row in enumerate(manifest) if row.kept and split in (None, row.split)]
            if not kept:
                raise ValueError(
                    f"the manifest of {folder.name} keeps no segment{'' if split is None else f' of the split {split}'}: "
                    "see its report.html"
                )
            columns, manifest = self._select(columns, kept), [manifest[i] for i in kept]
            self.speaks = [row.spoken for row in manifest]
            self.people = [row.person for row in manifest]
            self.offsets_s = [row.used_offset_s for row in manifest]
            self._shift(folder, manifest, columns)
        else:
            self.offsets_s = [0.0] * len(self.segments)
            self.speaks = [segment.has_sound for segment in self.segments]
            self.people = [segment.clip for segment in self.segments]
        self.landmarks = columns["landmarks"]
        self.shapes: Floats = columns["skull"][:, list(POINTS)]
        self.mel = columns["mel"]
        self.time_s: Floats = columns["time_s"]
        self.segment_of = columns["segment"]
        # Read into memory: random access to a memory-mapped file of this size is slower than the training step.
        self.crops = read_crops(folder, self.segments, columns) if pictures else np.zeros((0, *_CROP), np.uint8)
        self.apertures = np.array([aperture(shape) for shape in self.shapes], np.float32)

    def _select(self, columns: dict[str, npt.NDArray[Any]], kept: list[int]) -> dict[str, npt.NDArray[Any]]:
        """Keep only these segments; return their columns."""
        index, start, segments = [], 0, []
        for number in kept:
            rows = self.rows(number)
            index.append(np.arange(rows.start, rows.stop))
            segments.append(replace(self.segments[number], start=start))
            start += segments[-1].frames
        self.segments = segments
        chosen = {name: values[np.concatenate(index)] for name, values in columns.items()}
        return chosen | {"segment": np.repeat(np.arange(len(kept)), [segment.frames for segment in segments])}

    def _shift(self, folder: Path, manifest: list[Row], columns: dict[str, npt.NDArray[Any]]) -> None:
        """Recompute the log-mel of segments whose offset was overruled after the log-mel was computed."""
        for number, row in enumerate(manifest):
            rows = self.rows(number)
            if row.has_sound and abs(row.used_offset_s - float(columns["mel_offset_s"][rows.start])) > 1e-3:
                from insync.ensemble.models.log_mel import LogMel

                audio = read_stored(folder, row.clip)
                times = columns["time_s"][rows] + np.float32(row.used_offset_s)
                columns["mel"][rows] = LogMel()(windows(audio, times))

    def rows(self, segment: int) -> slice:
        """Return the rows of a segment."""
        entry = self.segments[segment]
        return slice(entry.start, entry.start + entry.frames)

    def neutrals(self, basis: MouthBasis) -> Floats:
        """Return each segment's resting shape: float32 [S, L, 2]."""
        return np.stack([basis.neutral(self.shapes[self.rows(i)]) for i in range(len(self.segments))])

    def codes(self, basis: MouthBasis) -> tuple[Floats, Floats]:
        """Return the mouth codes of all frames and of their mirror images: float32 [N, MOUTH] twice."""
        differences = self.shapes - self.neutrals(basis)[self.segment_of]
        return tuple(  # type: ignore[return-value]
            (d.reshape(len(d), -1) @ basis.components.T / basis.deviation).astype(np.float32)
            for d in (differences, mirrored(differences, basis.rest))
        )


def half_of(person: str) -> int:
    """Return 0 or 1, by a hash of the name, so that a split of people into halves stays the same when footage is added."""
    return zlib.crc32(person.encode()) & 1


def mirrored(differences: Floats, rest: Floats) -> Floats:
    """Mirror shape differences float32 [N, L, 2], given the mean resting shape float32 [L, 2]."""
    flipped = rest * np.array([-1, 1], np.float32)
    partner = np.linalg.norm(rest[:, None] - flipped[None], axis=2).argmin(1)
    return differences[:, partner] * np.array([-1, 1], np.float32)


def fit_basis(dataset: Dataset, rigid: Floats) -> MouthBasis:
    """Fit the principal components of the deviation of lips and chin from their resting shape; a segment's weight is the root of its length.

    Args:
        dataset: the footage.
        rigid: float32 [R, 3], see `MouthBasis`.
    """
    slices = [dataset.rows(i) for i in range(len(dataset.segments))]
    rest = np.median([_resting(dataset.shapes[rows], dataset.apertures[rows]) for rows in slices], axis=0).astype(
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


def _resting(shapes: Floats, apertures: Floats) -> Floats:
    """Return the resting shape: the median of the seventh of the frames with the smallest apertures."""
    return np.asarray(np.median(shapes[np.argsort(apertures)[: max(1, len(shapes) // 7)]], axis=0), np.float32)
