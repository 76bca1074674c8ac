"""The report of a curation: the self-contained page `report.html`, which shows the outcome of every segment, next to the manifest."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np

from insync.training.data.crops import decode, encode
from insync.training.data.manifest import FILE, Row
from insync.training.data.segments import part_path
from insync.training.metrics.sync import MAX_OFFSET

REPORT = "report.html"
CROPS = 6  # of each segment
CROP_SIDE = 112  # pixels
WIDTH, HEIGHT, MARGIN = 230, 92, 14  # pixels, of the offset curve
LABELS = {  # of the outcomes
    "keep": "picture and sound",
    "shifted": "picture and sound, shifted",
    "silent": "picture only",
    "dropped": "dropped",
}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def outcome(row: Row) -> str:
    """Return the outcome of a segment, manual overrides included: keep, shifted, silent or dropped."""
    if not row.kept:
        return "dropped"
    if not row.spoken:
        return "silent"
    return "shifted" if row.used_offset_s else "keep"


def write_report(rows: Sequence[Row], out: Path) -> None:
    """Write the report of a data set.

    Args:
        rows: its manifest.
        out: its folder, which contains the parts of the clips.
    """
    pictures = _Pictures(out)
    people = {row.person: row.split for row in rows if row.kept}
    text = _TEMPLATES.get_template("report.html.j2").render(
        name=out.resolve().name,
        manifest=FILE,
        labels=LABELS,
        counts=Counter(outcome(row) for row in rows),
        summary=_summary(rows),
        people=len(people),
        held_out=sorted(person for person, split in people.items() if split != "train"),
        faults=Counter(fault(row) for row in rows if outcome(row) in ("dropped", "silent")).most_common(),
        cards=((row, outcome(row), pictures.of(row), _measurements(row), curve_svg(row)) for row in rows),
    )
    part = out / f"{REPORT}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(out / REPORT)


def _summary(rows: Sequence[Row]) -> list[tuple[str, int, int, str]]:
    """Return for each outcome its label, number of segments, number of clips and minutes."""
    lines = []
    for name, label in LABELS.items():
        ones = [row for row in rows if outcome(row) == name]
        minutes = sum(row.frames / row.fps for row in ones if row.fps) / 60
        lines.append((label, len(ones), len({row.clip for row in ones}), f"{minutes:.1f}"))
    return lines


def fault(row: Row) -> str:
    """Return the first reason why a segment is not used, without its numbers."""
    reason = row.reason.removeprefix("picture only: ").split(";")[0]
    for end in (":", " for ", " as ", " and confidence"):
        reason = reason.split(end)[0]
    return reason.strip() or "overruled by hand"


class _Pictures:
    """The pictures of segments: a thumbnail of the first frame, and crops."""

    def __init__(self, out: Path) -> None:
        self._out, self._clip = out, ""
        self._runs: list[dict[str, object]] = []
        self._times = self._starts = self._sizes = np.zeros(0)

    def of(self, row: Row) -> list[str]:
        """Return the pictures of a segment as base64 of JPEGs; those that do not exist are left out."""
        return [data for data in (self.view(row), self.strip(row)) if data]

    def _open(self, clip: str) -> None:
        """Read the index of a clip's part."""
        if clip == self._clip:
            return
        self._clip = clip
        self._runs = json.loads(part_path(self._out, clip, ".json").read_text())["runs"]
        with np.load(part_path(self._out, clip, ".npz")) as part:
            self._times, self._starts, self._sizes = (part[n] for n in ("time_s", "jpeg_start", "jpeg_size"))

    def view(self, row: Row) -> str:
        """Return the segment's first frame as base64 of a JPEG; empty if there is none."""
        self._open(row.clip)
        if not self._runs:
            return ""
        nearest = min(self._runs, key=lambda run: abs(float(str(run["start_s"])) - row.start_s))
        return str(nearest["view"])

    def strip(self, row: Row) -> str:
        """Return evenly spaced crops of the segment, side by side, as base64 of a JPEG; empty if no face was found."""
        self._open(row.clip)
        inside = np.flatnonzero((self._times >= row.start_s - 1e-3) & (self._times <= row.end_s + 1e-3))
        if not len(inside):
            return ""
        chosen = inside[np.linspace(0, len(inside) - 1, min(CROPS, len(inside))).astype(int)]
        crops = []
        with open(part_path(self._out, row.clip, ".jpgs"), "rb") as source:
            for number in chosen:
                source.seek(int(self._starts[number]))
                crop = decode(source.read(int(self._sizes[number])))
                crops.append(cv2.resize(crop, (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_AREA))
        return base64.b64encode(encode(np.hstack(crops), 80)).decode()


def _measurements(row: Row) -> dict[str, str]:
    """Format the measurements of a segment."""
    return {
        "frames": f"{row.frames} ({row.start_s:.2f} to {row.end_s:.2f} s)",
        "person": f"{row.person}, {row.split}" if row.person else "–",
        "eye distance": f"{row.face_px:.0f} px",
        "sharpness": f"{row.sharpness:.1f}",
        "yaw, pitch": f"{row.yaw:+.0f}°, {row.pitch:+.0f}°",
        "lips visible": f"{row.visible:.0%}",
        "silence, voice, music": f"{row.silence:.0%}, {row.voice:.0%}, {row.music:.0%}"
        if row.has_sound
        else "no audio",
        "LSE-C, LSE-D": "–" if math.isnan(row.lse_c) else f"{row.lse_c:.2f}, {row.lse_d:.2f}",
    }


def curve_svg(row: Row) -> str:
    """Draw the offset curve of a segment as SVG; empty if SyncNet did not measure the segment."""
    if not row.curve:
        return ""
    low, high = min(*row.curve, 0.8), max(*row.curve, 1.4)

    def place(offset: float, value: float) -> tuple[float, float]:
        """Return the pixel of a point of the curve."""
        x = MARGIN + (offset + MAX_OFFSET) / (2 * MAX_OFFSET) * (WIDTH - 2 * MARGIN)
        return x, MARGIN + (high - value) / (high - low) * (HEIGHT - 2 * MARGIN)

    best = int(np.argmin(row.curve)) - MAX_OFFSET
    corrected = row.used_offset_s * 25
    return _TEMPLATES.get_template("offset_curve.svg.j2").render(
        width=WIDTH,
        height=HEIGHT,
        margin=MARGIN,
        low=low,
        high=high,
        points=[place(i - MAX_OFFSET, value) for i, value in enumerate(row.curve)],
        zero_x=place(0, low)[0],
        corrected_x=place(corrected, low)[0],
        best=place(best, min(row.curve)),
        label=f"best {best:+d}, corrected {corrected:+.0f}",
    )
