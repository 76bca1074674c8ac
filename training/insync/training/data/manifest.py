"""The manifest of a data set: one row for each segment, dropped ones included, with the reason. Its decisions can be overruled by hand.

The file is `manifest.parquet` in the data set's folder. Two of its columns are for manual overrides and are kept when the footage is
curated again: `overrule`, which is empty, `keep` (use picture and sound), `silent` (use the picture only) or `drop`; and
`overrule_offset_s`, an offset in seconds that replaces the measured one. Edit them with any tool that writes Parquet, or with
`insync curate -o DATASET --overrule SEGMENT=keep`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

FILE = "manifest.parquet"
OVERRULES = ("", "keep", "silent", "drop")
MAX_OFFSET_S = 1.0


@dataclass(frozen=True)
class Row:
    """One segment: consecutive frames of one face, or frames without a usable face, or a clip that could not be read.

    Attributes:
        segment: name, CLIP@SECONDS; it stays the same when the clip is curated again.
        clip: file name of the clip.
        start_s: time of its first frame in the clip, in seconds.
        end_s: time of its last frame.
        frames: number of frames; 0 for a clip that could not be read.
        fps: frame rate of the clip.
        stored: whether its crops are in the data set; a segment without crops cannot be kept.
        person: name of the person, from clustering (`insync.training.curation.identities`); empty if no crops are stored.
        split: train or held_out, the same for all segments of a person.
        face_px: median distance of the face's outer eye corners in pixels of the clip.
        sharpness: median variance of the mouth region's Laplacian, of grey values in [0, 255].
        yaw: median in degrees, positive if the face looks to the picture's right.
        pitch: median in degrees, positive if the face looks down.
        visible: visible share of the lips in the worst tenth of the frames.
        has_sound: whether the clip has an audio track.
        silence: silent share of the segment's audio.
        voice: share of the segment's audio with a voice, by Silero's voice activity detector.
        music: share of the audio with tonal sound under the speech; a heuristic.
        offset_s: seconds by which the audio trails the picture; the data set's log-mel windows are read that much later.
        lse_c: SyncNet's confidence at its best offset; NaN if it was not measured.
        lse_d: SyncNet's distance at that offset.
        curve: SyncNet's mean distance at offsets of -15 … 15 frames of 40 ms; empty if it was not measured.
        duplicate_of: the segment that shows the same footage, or empty.
        keep: whether the picture is usable for training.
        speaks: whether picture and audio match, so that speech can be learned from the segment.
        reason: why it was dropped, or its audio not used or shifted; empty if there is nothing to report.
        overrule: see the module.
        overrule_offset_s: see the module; None keeps the measured offset.
    """

    segment: str
    clip: str
    start_s: float = 0.0
    end_s: float = 0.0
    frames: int = 0
    fps: float = 0.0
    stored: bool = False
    person: str = ""
    split: str = "train"
    face_px: float = 0.0
    sharpness: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    visible: float = 0.0
    has_sound: bool = False
    silence: float = 1.0
    voice: float = 1.0
    music: float = 0.0
    offset_s: float = 0.0
    lse_c: float = float("nan")
    lse_d: float = float("nan")
    curve: tuple[float, ...] = field(default=())
    duplicate_of: str = ""
    keep: bool = False
    speaks: bool = False
    reason: str = ""
    overrule: str = ""
    overrule_offset_s: float | None = None

    @property
    def kept(self) -> bool:
        """Whether training uses the picture, manual overrides included."""
        return self.stored and (self.keep if not self.overrule else self.overrule != "drop")

    @property
    def spoken(self) -> bool:
        """Whether training learns speech from it, manual overrides included."""
        return self.kept and self.has_sound and (self.speaks if not self.overrule else self.overrule == "keep")

    @property
    def used_offset_s(self) -> float:
        """The audio offset that training corrects, manual overrides included."""
        return self.offset_s if self.overrule_offset_s is None else self.overrule_offset_s


def _schema() -> Any:
    """Return the Parquet schema of `Row`."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}
    kinds |= {"tuple[float, ...]": pa.list_(pa.float32()), "float | None": pa.float64()}
    return pa.schema([(f.name, kinds[str(f.type)]) for f in fields(Row)])


def write_manifest(rows: Sequence[Row], path: Path) -> None:
    """Write rows to a Parquet file; an interrupted write leaves the old file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema()), part)
    os.replace(part, path)


def read_manifest(path: Path, older: bool = False) -> list[Row]:
    """Read a manifest.

    Args:
        path: the file.
        older: accept one that lacks columns, with their defaults: for curating again.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a column is missing, or a manual override is not valid.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in {path.parent.name}: run `insync curate` first")
    table = pq.read_table(path)
    missing = {f.name for f in fields(Row)} - set(table.column_names)
    if missing and not (older and missing.isdisjoint({"segment", "clip"})):
        raise ValueError(f"{path.name}: columns {', '.join(sorted(missing))} are missing: run `insync curate` again")
    names = {f.name for f in fields(Row)}
    rows = []
    for entry in table.to_pylist():
        known = {name: value for name, value in entry.items() if name in names}
        known |= {"curve": tuple(entry.get("curve") or ()), "overrule": entry.get("overrule") or ""}
        rows.append(_checked(Row(**known)))
    return rows


def _checked(row: Row) -> Row:
    """Return the row if its overrides are valid, else raise ValueError."""
    if row.overrule not in OVERRULES:
        allowed = ", ".join(name or "(empty)" for name in OVERRULES)
        raise ValueError(f"{row.segment}: overrule is {row.overrule!r}, must be one of {allowed}")
    offset = row.overrule_offset_s
    if offset is not None and not -MAX_OFFSET_S <= offset <= MAX_OFFSET_S:
        raise ValueError(f"{row.segment}: overrule_offset_s is {offset}, must be -{MAX_OFFSET_S} to {MAX_OFFSET_S}")
    return row


def overrule(rows: Sequence[Row], orders: Sequence[str]) -> list[Row]:
    """Return the rows with manual overrides applied.

    Args:
        rows: rows of a manifest.
        orders: SEGMENT=keep, SEGMENT=silent, SEGMENT=drop, SEGMENT=SECONDS (an offset), SEGMENT= (removes the overrides).

    Raises:
        ValueError: an order has an unknown segment or a value that is not allowed.
    """
    result = {row.segment: row for row in rows}
    for order in orders:
        name, _, word = order.rpartition("=")
        if name not in result:
            raise ValueError(f"{order!r}: there is no segment {name!r}; report.html lists their names")
        row = result[name]
        if word == "":
            row = replace(row, overrule="", overrule_offset_s=None)
        elif word in OVERRULES:
            row = replace(row, overrule=word)
        else:
            try:
                row = replace(row, overrule_offset_s=float(word))
            except ValueError:
                raise ValueError(
                    f"{order!r}: {word!r} must be keep, silent, drop, an offset in seconds, or empty"
                ) from None
        if row.overrule in ("keep", "silent") and not row.stored:
            raise ValueError(f"{order!r}: no crops of a face are stored for it, so there is nothing to keep")
        result[name] = _checked(row)
    return list(result.values())


def carry_over(rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """Return the rows with the manual overrides of an earlier manifest of the same footage."""
    overrides = {row.segment: (row.overrule, row.overrule_offset_s) for row in before}
    return [
        replace(row, overrule=overrides[row.segment][0], overrule_offset_s=overrides[row.segment][1])
        if row.segment in overrides
        else row
        for row in rows
    ]
