"""The page on which people look at what curation kept, shifted and dropped: `report.html`, self-contained, written beside the manifest."""

from __future__ import annotations

import base64
import html
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from insync.training.data.crops import decode, encode
from insync.training.data.manifest import FILE, Row
from insync.training.data.segments import part_path
from insync.training.metrics.sync import MAX_OFFSET

REPORT = "report.html"
CROPS = 6  # of each segment
CROP_SIDE = 112  # pixels
WIDTH, HEIGHT, MARGIN = 230, 92, 14  # pixels, of the offset curve
FATES = ("keep", "shifted", "silent", "dropped")
WORDS = {
    "keep": "picture and sound",
    "shifted": "picture and sound, shifted",
    "silent": "picture only",
    "dropped": "dropped",
}
STYLE = """
body{font:14px/1.4 sans-serif;margin:2em auto;max-width:1320px;padding:0 1em;color:#222}
h1,h2{font-weight:600}table{border-collapse:collapse}td,th{padding:1px 10px 1px 0;text-align:left;vertical-align:top}
td.n{text-align:right}code{background:#f2f2f2;padding:0 3px}
section{border-left:6px solid;padding:6px 10px;margin:10px 0;background:#fafafa;overflow-x:auto}
section.keep{border-color:#2a8f4f}section.shifted{border-color:#2c6fbb}section.silent{border-color:#c98a11}section.dropped{border-color:#b3372f}
section>div{display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start}section b{font-weight:600}
.why{margin:2px 0 6px}.fate{display:inline-block;padding:0 6px;color:#fff;border-radius:3px}
.keep .fate{background:#2a8f4f}.shifted .fate{background:#2c6fbb}.silent .fate{background:#c98a11}.dropped .fate{background:#b3372f}
.figures{font-size:12px}.figures td{white-space:nowrap}svg{background:#fff;border:1px solid #ddd;flex:none}svg text{font-size:10px;fill:#555}
img{display:block;height:112px}label{margin-right:1.2em}
"""
SCRIPT = """
const boxes = document.querySelectorAll('input[data-fate]');
const show = () => {
  const on = new Set([...boxes].filter(box => box.checked).map(box => box.dataset.fate));
  document.querySelectorAll('section').forEach(one => { one.hidden = !on.has(one.className); });
};
boxes.forEach(box => box.addEventListener('change', show));
show();
"""


def fate(row: Row) -> str:
    """What becomes of a segment, people's word included: keep, shifted, silent or dropped."""
    if not row.kept:
        return "dropped"
    if not row.spoken:
        return "silent"
    return "shifted" if row.used_offset_s else "keep"


def write_report(rows: Sequence[Row], out: Path) -> None:
    """Writes the page of a data set.

    Args:
        rows: its manifest.
        out: its folder, where the clips' parts lie.
    """
    pictures = _Pictures(out)
    cards = []
    for row in rows:
        cards.append(_card(row, pictures))
    total = Counter(fate(row) for row in rows)
    boxes = "".join(
        f"<label><input type=checkbox checked data-fate={name}> {WORDS[name]} ({total[name]})</label>" for name in FATES
    )
    page = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>InSync: curated footage</title>",
        f"<style>{STYLE}</style><h1>Curated footage: {html.escape(out.resolve().name)}</h1>",
        _summary(rows),
        "<p>To overrule a verdict, edit the column <code>overrule</code> (<code>keep</code>, <code>silent</code>, <code>drop</code>) or "
        f"<code>overrule_offset_s</code> of <code>{FILE}</code>, or run <code>insync curate -o DATASET --overrule "
        "'SEGMENT=keep'</code> (also <code>silent</code>, <code>drop</code>, or an offset in seconds). Training uses it at once, "
        "and so does the next curation.</p>",
        "<p>Curves: SyncNet's mean distance between mouth and sound (0 equal, 1.41 unrelated) at offsets of −15 to +15 frames of "
        "40 ms; positive where the sound trails. The line marks the offset that is mended.</p>",
        f"<p>Show: {boxes}</p>",
        *cards,
        f"<script>{SCRIPT}</script></html>",
    ]
    part = out / f"{REPORT}.part"
    part.write_text("\n".join(page), encoding="utf-8")
    part.replace(out / REPORT)


def _minutes(rows: Sequence[Row]) -> float:
    return sum(row.frames / row.fps for row in rows if row.fps) / 60


def _summary(rows: Sequence[Row]) -> str:
    lines = []
    for name in FATES:
        ones = [row for row in rows if fate(row) == name]
        clips = len({row.clip for row in ones})
        lines.append((WORDS[name], f"{len(ones)}", f"{clips}", f"{_minutes(ones):.1f}"))
    head = "".join(f"<th>{cell}</th>" for cell in ("", "segments", "of clips", "minutes"))
    body = "".join(
        f"<tr><td>{line[0]}</td>" + "".join(f"<td class=n>{cell}</td>" for cell in line[1:]) + "</tr>" for line in lines
    )
    people = {row.person: row.split for row in rows if row.kept}
    held = sorted(person for person, split in people.items() if split != "train")
    reasons = Counter(fault(row) for row in rows if fate(row) in ("dropped", "silent"))
    why = "".join(
        f"<tr><td>{html.escape(kind)}</td><td class=n>{count}</td></tr>" for kind, count in reasons.most_common()
    )
    return (
        f"<table><tr>{head}</tr>{body}</table><p>People, told apart by their looks: {len(people)}. Held out: "
        f"{', '.join(held) or 'nobody'}.</p><h2>Why not</h2><table>{why}</table>"
    )


def fault(row: Row) -> str:
    """The first fault of a segment, without its figures."""
    reason = row.reason.removeprefix("picture only: ").split(";")[0]
    for end in (":", " for ", " as ", " and confidence"):
        reason = reason.split(end)[0]
    return reason.strip() or "a person's word"


class _Pictures:
    """Crops of segments, and the small views of their first frames."""

    def __init__(self, out: Path) -> None:
        self._out, self._clip = out, ""
        self._runs: list[dict[str, object]] = []
        self._times = self._starts = self._sizes = np.zeros(0)

    def _open(self, clip: str) -> None:
        if clip == self._clip:
            return
        self._clip = clip
        self._runs = json.loads(part_path(self._out, clip, ".json").read_text())["runs"]
        with np.load(part_path(self._out, clip, ".npz")) as part:
            self._times, self._starts, self._sizes = (part[n] for n in ("time_s", "jpeg_start", "jpeg_size"))

    def view(self, row: Row) -> str:
        """The segment's first frame as base64 of a JPEG; empty where there is none."""
        self._open(row.clip)
        if not self._runs:
            return ""
        nearest = min(self._runs, key=lambda run: abs(float(str(run["start_s"])) - row.start_s))
        return str(nearest["view"])

    def strip(self, row: Row) -> str:
        """Crops over the segment's time in a row, the same; empty where no face was found."""
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


def _card(row: Row, pictures: _Pictures) -> str:
    kind = fate(row)
    said = f" (overruled: {row.overrule})" if row.overrule else ""
    if row.overrule_offset_s is not None:
        said += f" (offset given: {row.overrule_offset_s:+.3f} s)"
    images = "".join(
        f"<img alt='' src='data:image/jpeg;base64,{data}'>"
        for data in (pictures.view(row), pictures.strip(row))
        if data
    )
    known = (
        ("frames", f"{row.frames} ({row.start_s:.2f} to {row.end_s:.2f} s)"),
        ("person", f"{row.person}, {row.split}" if row.person else "–"),
        ("eyes apart", f"{row.face_px:.0f} px"),
        ("sharpness", f"{row.sharpness:.1f}"),
        ("yaw, pitch", f"{row.yaw:+.0f}°, {row.pitch:+.0f}°"),
        ("lips bare", f"{row.visible:.0%}"),
        ("silence, music", f"{row.silence:.0%}, {row.music:.0%}" if row.has_sound else "no sound"),
        ("LSE-C, LSE-D", "–" if math.isnan(row.lse_c) else f"{row.lse_c:.2f}, {row.lse_d:.2f}"),
    )
    figures = "".join(f"<tr><td>{name}</td><td>{html.escape(text)}</td></tr>" for name, text in known)
    return (
        f"<section class={kind}><b>{html.escape(row.segment)}</b> <span class=fate>{WORDS[kind]}</span>{html.escape(said)}"
        f"<p class=why>{html.escape(row.reason) or 'nothing found wrong'}</p>"
        f"<div><table class=figures>{figures}</table>{curve_svg(row)}{images}</div></section>"
    )


def curve_svg(row: Row) -> str:
    """The offset curve of a segment as SVG; empty where SyncNet said nothing."""
    if not row.curve:
        return ""
    low, high = min(*row.curve, 0.8), max(*row.curve, 1.4)

    def place(offset: float, value: float) -> tuple[float, float]:
        x = MARGIN + (offset + MAX_OFFSET) / (2 * MAX_OFFSET) * (WIDTH - 2 * MARGIN)
        return x, MARGIN + (high - value) / (high - low) * (HEIGHT - 2 * MARGIN)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(i - MAX_OFFSET, v) for i, v in enumerate(row.curve)))
    best = int(np.argmin(row.curve)) - MAX_OFFSET
    mended = row.used_offset_s * 25
    zero, dot, mark = place(0, low)[0], place(best, min(row.curve)), place(mended, low)[0]
    words = f"best {best:+d}, mended {mended:+.0f}"
    return (
        f"<svg width={WIDTH} height={HEIGHT} role=img aria-label='offset curve, {words}'>"
        f"<line x1={zero:.1f} x2={zero:.1f} y1={MARGIN} y2={HEIGHT - MARGIN} stroke='#ccc'/>"
        f"<line x1={mark:.1f} x2={mark:.1f} y1={MARGIN} y2={HEIGHT - MARGIN} stroke='#2c6fbb' stroke-dasharray='3 2'/>"
        f"<polyline points='{line}' fill=none stroke='#333' stroke-width=1.5 />"
        f"<circle cx={dot[0]:.1f} cy={dot[1]:.1f} r=3 fill='#b3372f'/>"
        f"<text x=3 y={MARGIN - 3}>{high:.1f}</text><text x=3 y={HEIGHT - 3}>{low:.1f}</text>"
        f"<text x={WIDTH - 4} y={HEIGHT - 3} text-anchor=end>{words}</text></svg>"
    )
