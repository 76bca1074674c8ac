"""The report of a run: its data (report.json), and one self-contained page (report.html)."""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from insync.loadtest.measure.machine import describe
from insync.loadtest.measure.resources import Sample
from insync.loadtest.measure.statistics import Summary
from insync.loadtest.measure.triton_metrics import between
from insync.loadtest.options import UserOptions
from insync.loadtest.report import plots
from insync.loadtest.runs.capacity import CapacityShape, Limits, usage
from insync.loadtest.runs.runner import Record
from insync.loadtest.runs.soak import ALLOWED_GROWTH, SERIES, Growth
from insync.loadtest.target import Target

__all__ = ["Data", "add_growth", "add_search", "gather", "held", "write"]

Data = dict[str, Any]
_POINTS = 600  # maximum of a timeline


def gather(kind: str, record: Record, options: UserOptions, target: Target, command: str) -> Data:
    """Return a run's data for the report, with times in seconds since its start."""
    length = max((second for second, _ in record.users), default=0.0)
    step_s = max(1, math.ceil(length / _POINTS))
    shown = {name: value for name, value in asdict(options).items() if name not in ("server", "video", "audio", "tls")}
    server = options.server + (", over TLS" if options.tls else "")
    samples = record.samples
    seconds = samples[-1].at_s - samples[0].at_s if samples else 0.0
    return {
        "kind": kind,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "machine": describe(),
        "server": "embedded, on the same machine" if target.embedded else server,
        "metrics": target.metrics is not None,
        "users": shown,
        "footage": [Path(options.video).name, Path(options.audio).name],
        "ended": record.ended,
        "summary": _summary(record.tally.window()),
        "users_over_time": record.users,
        "timeline": [{"second": at, **_summary(summary)} for at, summary in record.tally.timeline(step_s)],
        "samples": [_sample(record, before, now) for before, now in itertools.pairwise(samples)],
        "usage": asdict(usage(samples)),
        "models": (
            {name: asdict(load) for name, load in between(samples[0].models, samples[-1].models, seconds).items()}
            if samples
            else {}
        ),
        "errors": dict(record.tally.errors.most_common()),
    }


def add_search(data: Data, shape: CapacityShape, limits: Limits, fps: float, before: Sequence[Data] = ()) -> None:
    """Add a capacity search to the data, after earlier searches with faster streams; the plots show the last one.

    Args:
        data: data of the run, which is changed.
        shape: the finished search.
        limits: limits of the search.
        fps: frame rate of each stream.
        before: `searches` of an earlier run's data.
    """
    found = {
        "fps": fps,
        "capacity": shape.search.held,
        "cut": shape.cut,
        "steps": [
            {**asdict(step), "summary": _summary(step.summary)} for step in sorted(shape.steps, key=lambda s: s.streams)
        ],
    }
    data["limits"] = asdict(limits)
    data["searches"] = [*before, found]


def held(search: Data) -> str:
    """Format the result of one capacity search."""
    least = "at least " if search["cut"] and search["capacity"] else ""
    return f"{least}{search['capacity']} of {search['fps']:g} frames/s"


def add_growth(data: Data, growth: Sequence[Growth], warm_up_s: float) -> None:
    """Add the growth that a soak has measured to the data."""
    data["warm_up_s"] = warm_up_s
    data["allowed_growth"] = ALLOWED_GROWTH
    data["growth"] = [{**asdict(one), "share": one.share} for one in growth]


def write(folder: Path, data: Data) -> None:
    """Write report.json and report.html into a folder, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(_finite(data), indent=1) + "\n")
    (folder / "report.html").write_text(page(data), encoding="utf-8")


def page(data: Data) -> str:
    """Render the whole page."""
    return _TEMPLATES.get_template("page.html.j2").render(
        data=data, title=_TITLES[data["kind"]], plots=plots.figures(data)
    )


_TITLES = {"load": "load test", "capacity": "capacity in live streams", "soak": "soak test"}


def _ms(value: float | None) -> str:
    """Format a duration in milliseconds; a dash if there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _summary(summary: Summary) -> dict[str, float]:
    """Convert a summary and its derived values to a dict."""
    return {**asdict(summary), "fps": summary.fps, "late": summary.late, "miss_rate": summary.miss_rate}


def _sample(record: Record, before: Sample, now: Sample) -> dict[str, float]:
    """Convert a sample to a dict, with the processor usage since the previous one."""
    used = usage([before, now])
    return {
        "second": round(record.seconds(now), 2),
        "server_cores": round(used.server_cores, 3),
        "stubs_cores": round(used.stubs_cores, 3),
        "clients_cores": round(used.clients_cores, 3),
        "machine_cpu": round(now.machine_cpu, 3),
        **{name: round(value(now), 2) for name, (_, value) in SERIES.items()},
    }


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"ms": _ms, "search_result": held}


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None, since JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
