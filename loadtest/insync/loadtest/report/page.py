"""A run as data (report.json) and as one page that needs nothing else (report.html)."""

from __future__ import annotations

import datetime
import html
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
_POINTS = 600  # of a timeline, at most


def gather(kind: str, record: Record, options: UserOptions, target: Target, command: str) -> Data:
    """A run's data: everything that JSON can hold, in seconds since its start."""
    length = max((second for second, _ in record.users), default=0.0)
    step_s = max(1, math.ceil(length / _POINTS))
    told = {name: value for name, value in asdict(options).items() if name not in ("server", "video", "audio", "tls")}
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
        "users": told,
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
    """Adds the search for the capacity, after searches with faster streams; plots show the newest one.

    Args:
        data: takes it in.
        shape: what was found.
        limits: of the search.
        fps: of each stream.
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
    """What one search has found, in words."""
    least = "at least " if search["cut"] and search["capacity"] else ""
    return f"{least}{search['capacity']} of {search['fps']:g} frames/s"


def add_growth(data: Data, growth: Sequence[Growth], warm_up_s: float) -> None:
    """Adds what a soak has found."""
    data["warm_up_s"] = warm_up_s
    data["allowed_growth"] = ALLOWED_GROWTH
    data["growth"] = [{**asdict(one), "share": one.share} for one in growth]


def write(folder: Path, data: Data) -> None:
    """Writes report.json and report.html into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(_finite(data), indent=1) + "\n")
    (folder / "report.html").write_text(page(data), encoding="utf-8")


def page(data: Data) -> str:
    """The whole page."""
    parts = [_head(data), _overall(data)]
    parts += [_steps(data, search) for search in data.get("searches", ())]
    if "growth" in data:
        parts.append(_growth(data))
    parts += [f"<figure>{svg}</figure>" for svg in plots.figures(data)]
    parts += [_models(data), _errors(data), _options(data)]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>InSync: {_TITLES[data["kind"]]}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


_TITLES = {"load": "load test", "capacity": "how many live streams it holds", "soak": "soak"}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1c2330;background:#fff;max-width:1080px;margin:2em auto;padding:0 1em}"
    "h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.25em .8em;border-bottom:1px solid #d9dee7;text-align:right;white-space:nowrap}th{font-weight:600;white-space:normal}"
    "th:first-child,td:first-child{text-align:left;white-space:normal}figure{margin:1.5em 0}svg{width:100%;height:auto}"
    ".good{color:#0a7d38;font-weight:600}.bad{color:#b42318;font-weight:600}.note{color:#5b6577}code{font-size:.9em}"
)


def _head(data: Data) -> str:
    users = data["users"]
    ended = data["ended"]
    state = "" if ended == "complete" else f'<p class="bad">Ended early: {html.escape(ended)}.</p>'
    if data["kind"] == "soak" and data.get("growth") and ended.startswith("grew"):
        state = f'<p class="bad">{html.escape(ended)}.</p>'
    metrics = "" if data["metrics"] else " Its metrics page could not be read: batches and queues are missing."
    return (
        f"<h1>InSync: {_TITLES[data['kind']]}</h1>{state}"
        f'<p class="note">{html.escape(data["date"])}. <code>{html.escape(data["command"])}</code><br>'
        f"{html.escape(data['machine'])}.<br>Server: {html.escape(data['server'])}.{metrics} "
        f"A live frame has {users['deadline_ms']:g} ms from its audio being complete "
        f"(look-ahead included) to the synced frame in the client's hands.</p>"
    )


def _overall(data: Data) -> str:
    summary = data["summary"]
    rows = [
        ["live frames answered", f"{summary['frames']:,}"],
        ["latency p50 / p95 / p99 / max", " / ".join(_ms(summary[f"{k}_ms"]) for k in ("p50", "p95", "p99", "max"))],
        ["missed their deadline", f"{summary['missed']:,}"],
        ["dropped at the camera", f"{summary['dropped']:,}"],
        ["late, and left out by the client; the one before repeated", f"{summary['skipped']:,}; {summary['repeated']:,}"],
        ["out of order; lost", f"{summary['disordered']:,}; {summary['lost']:,}"],
        ["first frame p50 / max", f"{_ms(summary['first_p50_ms'])} / {_ms(summary['first_max_ms'])}"],
        ["frames dubbed as fast as allowed; jobs", f"{summary['dubbed']:,}; {summary['jobs']:,}"],
        ["registrations; p50 / max", f"{summary['registrations']:,}; {_ms(summary['registration_p50_ms'])} / "
         f"{_ms(summary['registration_max_ms'])}"],
        ["refused by a full server; with a hint when to ask again; p50 / max", f"{summary['refused']:,}; "
         f"{summary['hinted']:,}; {_ms(summary['hint_p50_ms'])} / {_ms(summary['hint_max_ms'])}"],
        ["errors", f"{summary['errors']:,}"],
    ]  # fmt: skip
    return "<h2>Over the whole run</h2>" + _table(["", ""], rows)


def _steps(data: Data, search: Data) -> str:
    limits = data["limits"]
    rows = []
    for step in search["steps"]:
        summary, used = step["summary"], step["usage"]
        verdict = '<span class="good">held</span>' if step["held"] else '<span class="bad">not held</span>'
        rows.append(
            [
                str(step["streams"]),
                verdict,
                *(_ms(summary[f"{k}_ms"]) for k in ("p50", "p95", "p99")),
                f"{100 * summary['miss_rate']:.1f} %",
                f"{summary['fps']:.1f}",
                f"{used['server_cores'] + used['stubs_cores']:.2f}",
                f"{used['clients_cores']:.2f}",
                f"{used['other_cores']:.2f}",
                f"{(used['server_bytes'] + used['stubs_bytes']) / 2**20:,.0f} MiB",
            ]
        )
    header = [
        "streams",
        "",
        "p50",
        "p95",
        "p99",
        "late or missing",
        "frames/s",
        "server, cores",
        "clients, cores",
        "all else, cores",
        "server, memory",
    ]
    return (
        f"<h2>Live streams held: {held(search)} each</h2><p>Held means: p99 at most {limits['p99_ms']:g} ms and at most "
        f"{100 * limits['miss_rate']:g} % of frames late or missing, over {limits['measure_s']:g} s, all streams begun; "
        "a number that is not held is tried once more before that is believed.</p>" + _table(header, rows)
    )


def _growth(data: Data) -> str:
    rows = []
    for one in data["growth"]:
        verdict = '<span class="good">flat</span>' if one["flat"] else '<span class="bad">grew</span>'
        rows.append(
            [
                one["name"],
                f"{one['before']:,.1f}",
                f"{one['after']:,.1f}",
                one["unit"],
                f"{100 * one['share']:+.1f} %",
                verdict,
            ]
        )
    return (
        f"<h2>Growth after {data['warm_up_s'] / 60:.1f} minutes of warm-up</h2><p>Medians of the first and the last part of what "
        f"follows; {100 * data['allowed_growth']:g} % are allowed.</p>"
        + _table(["", "before", "after", "", "growth", ""], rows)
    )


def _models(data: Data) -> str:
    if not data["models"]:
        return ""
    rows = [
        [
            f"<code>{html.escape(name)}</code>",
            f"{load['requests_per_s']:.1f}",
            f"{load['batch']:.2f}" if load["batch"] else "",
            _ms(load["queue_ms"]),
            _ms(load["compute_ms"]),
            _ms(load["request_ms"]),
            str(load["failures"]),
        ]
        for name, load in sorted(data["models"].items())
    ]
    header = ["model", "requests/s", "mean batch", "waiting in its queue", "computing", "whole request", "failures"]
    return "<h2>Models, over the whole run (Triton's metrics)</h2>" + _table(header, rows)


def _errors(data: Data) -> str:
    if not data["errors"]:
        return ""
    rows = [[html.escape(text), str(count)] for text, count in data["errors"].items()]
    return "<h2>Errors (digits masked)</h2>" + _table(["", "times"], rows)


def _options(data: Data) -> str:
    rows = [[html.escape(name), html.escape(str(value))] for name, value in data["users"].items()]
    rows.append(["footage", html.escape(", ".join(data["footage"]))])
    return "<h2>Users</h2>" + _table(["", ""], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if any(header) else ''}{lines}</table>"


def _ms(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _summary(summary: Summary) -> dict[str, float]:
    return {**asdict(summary), "fps": summary.fps, "late": summary.late, "miss_rate": summary.miss_rate}


def _sample(record: Record, before: Sample, now: Sample) -> dict[str, float]:
    used = usage([before, now])
    return {
        "second": round(record.seconds(now), 2),
        "server_cores": round(used.server_cores, 3),
        "stubs_cores": round(used.stubs_cores, 3),
        "clients_cores": round(used.clients_cores, 3),
        "machine_cpu": round(now.machine_cpu, 3),
        **{name: round(value(now), 2) for name, (_, value) in SERIES.items()},
    }


def _finite(value: Any) -> Any:
    """JSON knows no NaN: what is not a number becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
