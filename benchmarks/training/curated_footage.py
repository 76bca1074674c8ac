"""Result of curating the training footage: `python -m benchmarks.training.curated_footage DATASET` lists the manifest of a data set, clip by clip."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks import reports
from insync.training.curation.report import fault, outcome
from insync.training.data.manifest import FILE, Row, read_manifest

REPORT = "curated_footage.md"


def offsets(rows: list[Row]) -> str:
    """Return the offsets of a clip's sound in frames of 40 ms, of the segments that speech is learned from."""
    found = sorted({round(row.used_offset_s * 25) for row in rows if row.spoken})
    return ", ".join(f"{offset:+d}" for offset in found) if found else "not used"


def losses(rows: list[Row]) -> str:
    """Return the frames of a clip that are not used, or whose picture alone is used, with the reasons."""
    frames: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        if outcome(row) in ("dropped", "silent"):
            frames["picture only: " if outcome(row) == "silent" else "", fault(row)] += row.frames
    ranked = sorted(frames.items(), key=lambda item: -item[1])
    return "; ".join(f"{kind}{reason} ({count})" for (kind, reason), count in ranked)


def main() -> int:
    """Write the report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / REPORT)
    options = parser.parse_args()
    clips: dict[str, list[Row]] = defaultdict(list)
    for row in read_manifest(options.dataset / FILE):
        clips[row.clip].append(row)
    lines: list[tuple[str, ...]] = []
    for clip, rows in clips.items():
        kept = [row for row in rows if row.kept]
        people = ", ".join(sorted({row.person + ("*" if row.split != "train" else "") for row in kept}))
        lines.append(
            (
                f"`{clip}`", f"{sum(row.frames for row in rows)}", f"{sum(row.frames for row in kept)}",
                f"{sum(row.frames for row in kept if row.spoken)}", offsets(rows), people or "–", losses(rows) or "–",
            )
        )  # fmt: skip
    everything = [row for rows in clips.values() for row in rows]
    counts = [
        sum(row.frames for row in everything if test(row))
        for test in (lambda _: True, lambda r: r.kept, lambda r: r.spoken)
    ]
    shifted = sum(any(outcome(row) == "shifted" for row in rows) for rows in clips.values())
    gone = sum(not any(row.kept for row in rows) for rows in clips.values())
    lines.append((f"**{len(clips)} clips**", *(f"**{count}**" for count in counts), "", "", ""))
    header = (
        "clip",
        "frames",
        "picture used",
        "sound used",
        "audio lag",
        "person",
        "frames not used, and why",
    )
    reports.write(
        options.out, "Curated training footage", "python -m benchmarks.training.curated_footage DATASET",
        [
            f"`insync curate` with its default thresholds, on the footage of the model card. In {shifted} clips the sound was shifted, {gone} "
            "clips were dropped as a whole. Audio lag is in frames of 40 ms; negative where the audio leads. People with a star are held out.",
            reports.table(header, lines),
        ],
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
