"""The manifest of a data set: one row for each segment, also for what was dropped, with the reason; people may overrule it.

`manifest.parquet` lies in the data set's folder. Two of its columns belong to people and survive another curation: `overrule`, which is empty,
`keep` (use picture and sound), `silent` (use the picture only) or `drop`; and `overrule_offset_s`, an offset in seconds in
place of the one that was found. Edit them with any tool that writes Parquet, or with `insync curate -o DATASET --overrule SEGMENT=keep`.
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
    """One segment: an unbroken stretch of one face, or a stretch without a usable one, or a clip that could not be read.

    Attributes:
        segment: its name, CLIP@SECONDS; stays the same when the clip is curated again.
        clip: file name.
        start_s: seconds into the clip, of its first frame.
        end_s: of its last.
        frames: count; 0 for a clip that could not be read.
        fps: of the clip.
        stored: whether its crops are in the data set; what has none cannot be kept.
        person: who it seems to be (`insync.training.curation.identities`); empty where nothing is stored.
        split: train or held_out, the same for all segments of a person.
        face_px: median distance of the face's outer eye corners in pixels of the clip.
        sharpness: median variance of the mouth region's Laplacian, of grey values in [0, 255].
        yaw: median in degrees, positive where the face looks to the picture's right.
        pitch: median in degrees, positive where it looks down.
        visible: share of the lips that nothing covers, in the worst tenth of the frames.
        has_sound: whether the clip has an audio track.
        silence: share of the segment's sound that is silent.
        music: share of it with something tonal behind the speech; a heuristic.
        offset_s: by which the sound trails the picture; the data set's log-mel windows are read that much later.
        lse_c: SyncNet's confidence at its best offset; NaN where it has none.
        lse_d: SyncNet's distance there.
        curve: SyncNet's mean distance at offsets -15 … 15 frames of 40 ms; empty where it has none.
        duplicate_of: the segment that shows the same footage, or empty.
        keep: whether the picture is fit for training.
        speaks: whether picture and sound belong together, so that speech can be learned from it.
        reason: why it was dropped or silenced or shifted; empty where nothing was found.
        overrule: see the module.
        overrule_offset_s: see the module; None for the offset that was found.
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
        """Whether training uses the picture, people's word included."""
        return self.stored and (self.keep if not self.overrule else self.overrule != "drop")

    @property
    def spoken(self) -> bool:
        """Whether training learns speech from it, people's word included."""
        return self.kept and self.has_sound and (self.speaks if not self.overrule else self.overrule == "keep")

    @property
    def used_offset_s(self) -> float:
        """The offset that training mends, people's word included."""
        return self.offset_s if self.overrule_offset_s is None else self.overrule_offset_s


def _schema() -> Any:
    import pyarrow as pa

    kinds = {"str": pa.string(), "float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}
    kinds |= {"tuple[float, ...]": pa.list_(pa.float32()), "float | None": pa.float64()}
    return pa.schema([(f.name, kinds[str(f.type)]) for f in fields(Row)])


def write_manifest(rows: Sequence[Row], path: Path) -> None:
    """Writes rows to a Parquet file, which is there either as before or whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema()), part)
    os.replace(part, path)


def read_manifest(path: Path) -> list[Row]:
    """Reads a Parquet file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a column is missing, or a person wrote what is not allowed.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in {path.parent.name}: curate the footage first")
    table = pq.read_table(path)
    missing = {f.name for f in fields(Row)} - set(table.column_names)
    if missing:
        raise ValueError(f"{path.name}: columns {', '.join(sorted(missing))} are missing: curate the footage again")
    names = {f.name for f in fields(Row)}
    rows = []
    for entry in table.to_pylist():
        known = {name: value for name, value in entry.items() if name in names}
        known |= {"curve": tuple(entry["curve"] or ()), "overrule": entry["overrule"] or ""}
        rows.append(_checked(Row(**known)))
    return rows


def _checked(row: Row) -> Row:
    if row.overrule not in OVERRULES:
        allowed = ", ".join(name or "(empty)" for name in OVERRULES)
        raise ValueError(f"{row.segment}: overrule is {row.overrule!r}, allowed are {allowed}")
    offset = row.overrule_offset_s
    if offset is not None and not -MAX_OFFSET_S <= offset <= MAX_OFFSET_S:
        raise ValueError(f"{row.segment}: overrule_offset_s is {offset}, allowed are -{MAX_OFFSET_S} to {MAX_OFFSET_S}")
    return row


def overrule(rows: Sequence[Row], orders: Sequence[str]) -> list[Row]:
    """Rows with people's orders written in.

    Args:
        rows: of a manifest.
        orders: SEGMENT=keep, SEGMENT=silent, SEGMENT=drop, SEGMENT=SECONDS (an offset), SEGMENT= (takes it all back).

    Raises:
        ValueError: an order names no segment, or asks for what is not allowed.
    """
    result = {row.segment: row for row in rows}
    for order in orders:
        name, _, word = order.rpartition("=")
        if name not in result:
            raise ValueError(f"{order!r}: there is no segment {name!r}; the report lists their names")
        row = result[name]
        if word == "":
            row = replace(row, overrule="", overrule_offset_s=None)
        elif word in OVERRULES:
            row = replace(row, overrule=word)
        else:
            try:
                row = replace(row, overrule_offset_s=float(word))
            except ValueError:
                raise ValueError(f"{order!r}: expected keep, silent, drop or an offset in seconds") from None
        if row.overrule in ("keep", "silent") and not row.stored:
            raise ValueError(f"{order!r}: no face was found there, so there is nothing to keep")
        result[name] = _checked(row)
    return list(result.values())


def carry_over(rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """Rows with what people wrote into an earlier manifest of the same footage."""
    words = {row.segment: (row.overrule, row.overrule_offset_s) for row in before}
    return [
        replace(row, overrule=words[row.segment][0], overrule_offset_s=words[row.segment][1])
        if row.segment in words
        else row
        for row in rows
    ]
