"""The page of an evaluation: tables, stills and short videos in one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import av
import jinja2
import numpy as np
import numpy.typing as npt

from insync.core.images import encode_jpeg
from insync.core.spec import CROP_SIZE

Picture = npt.NDArray[np.uint8]

STILLS = 8  # in a row
FILMED_SIDE_BY_SIDE = 4  # the first conditions of a clip
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class ClipPictures:
    """The pictures of one clip: uint8 [N, 256, 256, 3] for each condition, shown as rows of stills and as one video side by side."""

    clip: str
    rows: dict[str, Picture]


def page(
    own: list[list[str]],
    notes: list[str],
    published: list[list[str]],
    sources: list[str],
    skipped: dict[str, str],
    clips: list[ClipPictures],
) -> str:
    """Render the page.

    Args:
        own: header, alignment and cells of our table.
        notes: notes on our table.
        published: header, alignment and cells of the table of published results.
        sources: sources of the published results.
        skipped: clips that could not be evaluated, and why.
        clips: pictures of the clips that were evaluated.
    """
    return _TEMPLATES.get_template("evaluation.html.j2").render(
        own=own,
        notes=notes,
        published=published,
        sources=sources,
        skipped=skipped,
        clips=[(one.clip, list(one.rows), _still(one), _film(one)) for one in clips],
        filmed=FILMED_SIDE_BY_SIDE,
    )


def markdown(table: list[list[str]]) -> str:
    """Format a table as Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def _still(one: ClipPictures) -> str:
    """Return the rows of stills as base64 of a JPEG."""
    lines = []
    for crops in one.rows.values():
        index = np.linspace(0, len(crops) - 1, STILLS).astype(int)
        lines.append(np.hstack(list(crops[index])))
    return base64.b64encode(encode_jpeg(np.vstack(lines), 85)).decode()


def _film(one: ClipPictures) -> str:
    """Return the first conditions side by side as base64 of an MP4."""
    sink = io.BytesIO()
    conditions = list(one.rows.values())[:FILMED_SIDE_BY_SIDE]
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = CROP_SIZE * len(conditions), CROP_SIZE, "yuv420p"
        for pictures in zip(*conditions, strict=True):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.hstack(pictures), format="rgb24")))
        container.mux(stream.encode(None))
    return base64.b64encode(sink.getvalue()).decode()
