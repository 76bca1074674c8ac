"""The page of an evaluation: its tables, stills and short clips, in one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass

import av
import cv2
import numpy as np
import numpy.typing as npt

from insync.core.spec import CROP_SIZE

Picture = npt.NDArray[np.uint8]

STILLS = 8
FILMED_SIDE_BY_SIDE = 4  # the first rows of a clip
STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:1500px}table{border-collapse:collapse}td,th{padding:2px 8px;text-align:right}"
    "tr:nth-child(even){background:#f2f2f2}td:first-child,th:first-child,.own td:nth-child(2),.own th:nth-child(2){text-align:left}"
    "img,video{max-width:100%}"
)


@dataclass(frozen=True)
class Shown:
    """What the page shows of one clip: rows of stills and one clip side by side."""

    clip: str
    rows: dict[str, Picture]


def page(
    own: list[list[str]],
    notes: list[str],
    elsewhere: list[list[str]],
    sources: list[str],
    refused: dict[str, str],
    shown: list[Shown],
) -> str:
    """The page.

    Args:
        own: head, alignment and cells of our table.
        notes: what is to be said of it.
        elsewhere: the same of what others published.
        sources: of that.
        refused: clips that could not be judged, and why.
        shown: the clips that could.
    """
    parts = [
        f"<!doctype html><meta charset=utf-8><title>InSync: evaluation</title><style>{STYLE}</style>",
        "<h1>Evaluation</h1><p>Twins are registered from the first two fifths of each clip; figures are of the rest. "
        "Columns are explained in <code>insync.training.metrics.summary.Metrics</code>.</p>",
        _table(own, "own"),
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        "<h2>Published elsewhere</h2>",
        _table(elsewhere, "elsewhere"),
        *(f"<p>{html.escape(source)}</p>" for source in sources),
    ]
    for name, reason in refused.items():
        parts.append(f"<p>Not judged: {html.escape(name)}: {html.escape(reason)}</p>")
    for one in shown:
        side_by_side = list(one.rows)[:FILMED_SIDE_BY_SIDE]
        parts += [
            f"<h2>{html.escape(one.clip)}</h2><p>Top to bottom: {', '.join(one.rows)}.</p>",
            f"<img src='data:image/jpeg;base64,{_still(one)}'>",
            f"<p>{' | '.join(side_by_side)}</p><video controls loop src='data:video/mp4;base64,{_film(one)}'></video>",
        ]
    return "\n".join(parts)


def markdown(table: list[list[str]]) -> str:
    """A table as Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def _table(table: list[list[str]], name: str) -> str:
    head, _, *body = table
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return f"<table class={name}>{''.join(lines)}</table>"


def _still(one: Shown) -> str:
    lines = []
    for crops in one.rows.values():
        index = np.linspace(0, len(crops) - 1, STILLS).astype(int)
        lines.append(np.hstack(list(crops[index])))
    sheet = cv2.cvtColor(np.vstack(lines), cv2.COLOR_RGB2BGR)
    return base64.b64encode(cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()).decode()


def _film(one: Shown) -> str:
    sink = io.BytesIO()
    conditions = list(one.rows.values())[:FILMED_SIDE_BY_SIDE]
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = CROP_SIZE * len(conditions), CROP_SIZE, "yuv420p"
        for pictures in zip(*conditions, strict=True):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.hstack(pictures), format="rgb24")))
        container.mux(stream.encode(None))
    return base64.b64encode(sink.getvalue()).decode()
