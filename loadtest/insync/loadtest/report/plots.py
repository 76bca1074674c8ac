"""The report's plots as SVG text, drawn by matplotlib without a display and without external fonts."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from insync.loadtest.runs.soak import MODELS_MEMORY, SERVER_MEMORY

__all__ = ["figures", "png"]

_WIDTH, _HEIGHT = 10.0, 3.4  # inches
_COLOURS = {"p50": "#3b6fb6", "p95": "#e0912f", "p99": "#b42318", "other": "#5b6577", "good": "#0a7d38"}
_STYLE = {
    "svg.fonttype": "path",  # renders the same on every machine
    "svg.hashsalt": "insync",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ef",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
}
# A fused pipeline has the first one, an unfused one the others.
_MODELS = (
    "lipsync_frame",
    "lipsync_face",
    "lipsync_encoder",
    "lipsync_adaat",
    "lipsync_decoder",
    "lipsync_composite",
)


def figures(data: dict[str, Any]) -> list[str]:
    """Draw every plot for which there are data."""
    made = []
    with mpl.rc_context(_STYLE):
        if data.get("searches") and data["searches"][-1]["steps"]:
            search = data["searches"][-1]
            made.append(_svg(_capacity(data, search)))
            if any(step["models"] for step in search["steps"]):
                made.append(_svg(_batches(search)))
            made.append(_svg(_step_usage(search)))
        if data["timeline"]:
            made.append(_svg(_timeline(data)))
        if data["samples"]:
            made.append(_svg(_machine(data)))
        if data.get("growth"):
            made.append(_svg(_growth(data)))
    return made


def png(data: dict[str, Any], path: str) -> None:
    """Write the main plot of a run as a PNG, for pages that cannot show SVG.

    Args:
        data: data of the run. A capacity search is drawn as latency and throughput against streams, a soak as growth,
            any other run as a timeline.
        path: path of the PNG.
    """
    with mpl.rc_context(_STYLE):
        if data.get("searches"):
            figure = _capacity(data, data["searches"][-1])
        else:
            figure = _growth(data) if data.get("growth") else _timeline(data)
        figure.savefig(path, dpi=100, metadata={"Software": None})


def _capacity(data: dict[str, Any], search: dict[str, Any]) -> Figure:
    """Plot latency, miss rate and throughput against the number of streams."""
    steps, limits = _last_measurements(search), data["limits"]
    streams = [step["streams"] for step in steps]
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    latency, missed, rate = figure.subplots(1, 3)
    for name in ("p50", "p95", "p99"):
        values = [step["summary"][f"{name}_ms"] for step in steps]
        latency.plot(streams, _numbers(values), "o-", color=_COLOURS[name], label=name)
    latency.axhline(limits["p99_ms"], color=_COLOURS["other"], ls=":", label=f"limit {limits['p99_ms']:g} ms")
    _logarithmic(latency)
    each = f"live streams of {search['fps']:g} frames/s"
    latency.set(title="Latency of a live frame", xlabel=each, ylabel="ms")
    latency.legend()
    missed.plot(streams, [100 * step["summary"]["miss_rate"] for step in steps], "o-", color=_COLOURS["p99"])
    missed.axhline(
        100 * limits["miss_rate"], color=_COLOURS["other"], ls=":", label=f"limit {100 * limits['miss_rate']:g} %"
    )
    missed.set(title="Late or missing frames", xlabel=each, ylabel="%", ylim=(-2, 102))
    missed.legend()
    rate.plot(streams, [step["summary"]["fps"] for step in steps], "o-", color=_COLOURS["p50"], label="achieved")
    due = [count * search["fps"] for count in streams]
    rate.plot(streams, due, ls=":", color=_COLOURS["other"], label="required")
    rate.set(title="Frames per second, all streams", xlabel=each, ylabel="frames/s")
    rate.set_ylim(0, None)
    rate.legend()
    for axes in (latency, missed, rate):
        _whole(axes)
        axes.set_xlim(0, max(streams) + max(0.5, 0.05 * max(streams)))
        if search["capacity"]:
            axes.axvline(search["capacity"], color=_COLOURS["good"], lw=6, alpha=0.2)
    return figure


def _last_measurements(search: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the last measurement of each number of streams."""
    return list({step["streams"]: step for step in search["steps"]}.values())


def _batches(search: dict[str, Any]) -> Figure:
    """Plot the models' mean batch size, queue time and compute time against the number of streams."""
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    fields = {
        "batch": ("Mean batch size", "requests"),
        "queue_ms": ("Queue time", "ms"),
        "compute_ms": ("Compute time", "ms"),
    }
    places = figure.subplots(1, 3)
    for axes, (name, (title, unit)) in zip(places, fields.items(), strict=True):
        for model in _MODELS:
            points = [
                (step["streams"], step["models"][model][name])
                for step in _last_measurements(search)
                if model in step["models"]
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", ms=3, label=model.removeprefix("lipsync_"))
        axes.set(title=title, xlabel="live streams", ylabel=unit)
        axes.set_ylim(0, None)
        axes.set_xlim(0, None)
        _whole(axes)
    places[0].legend()
    return figure


def _step_usage(search: dict[str, Any]) -> Figure:
    """Plot processor and memory usage against the number of streams."""
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    cpu, memory = figure.subplots(1, 2)
    steps = _last_measurements(search)
    streams = [step["streams"] for step in steps]
    for axes, suffix, scale in ((cpu, "cores", 1.0), (memory, "bytes", 2**20)):
        for part, title in (("server", "tritonserver"), ("stubs", "Python model stubs"), ("clients", "clients")):
            axes.plot(streams, [step["usage"][f"{part}_{suffix}"] / scale for step in steps], "o-", label=title)
        axes.set_ylim(0, None)
        axes.set_xlim(0, None)
        _whole(axes)
        axes.legend()
    cpu.set(title="Processor", xlabel="live streams", ylabel="cores in use")
    memory.set(title="Resident memory", xlabel="live streams", ylabel="MiB")
    return figure


def _timeline(data: dict[str, Any]) -> Figure:
    """Plot latency, throughput and number of users over the run."""
    line = data["timeline"]
    unit, scale = _clock(data)
    times = [point["second"] / scale for point in line]
    figure = Figure((_WIDTH, 1.6 * _HEIGHT), layout="constrained")
    latency, rate = figure.subplots(2, 1, sharex=True)
    for name in ("p50", "p95", "p99"):
        latency.plot(times, _numbers([point[f"{name}_ms"] for point in line]), color=_COLOURS[name], lw=1, label=name)
    latency.axhline(data["users"]["deadline_ms"], color=_COLOURS["other"], ls=":", label="deadline")
    latency.set(title="Latency of live frames", ylabel="ms")
    _logarithmic(latency)
    latency.legend(ncols=4)
    rate.plot(times, [point["fps"] for point in line], color=_COLOURS["p50"], lw=1, label="live frames/s")
    dubbed = [point["dubbed"] / max(1.0, point["seconds"]) for point in line]
    if any(dubbed):
        rate.plot(times, dubbed, color=_COLOURS["p95"], lw=1, label="dubbed frames/s")
    late = [point["late"] / max(1.0, point["seconds"]) for point in line]
    rate.plot(times, late, color=_COLOURS["p99"], lw=1, label="late or missing frames/s")
    count = rate.twinx()
    seconds, users = zip(*data["users_over_time"], strict=True) if data["users_over_time"] else ((), ())
    count.step(
        [second / scale for second in seconds], users, where="post", color=_COLOURS["other"], alpha=0.6, label="users"
    )
    count.set_ylabel("users")
    count.grid(visible=False)
    count.set_ylim(0, None)
    rate.set(title="Throughput", xlabel=unit, ylabel="frames/s")
    rate.set_ylim(0, None)
    lines, names = rate.get_legend_handles_labels()
    more, others = count.get_legend_handles_labels()
    rate.legend(lines + more, names + others, ncols=4)
    return figure


def _machine(data: dict[str, Any]) -> Figure:
    """Plot processor and memory usage over the run."""
    samples = data["samples"]
    unit, scale = _clock(data)
    times = [sample["second"] / scale for sample in samples]
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    cpu, memory = figure.subplots(1, 2)
    for part, title in (("server", "tritonserver"), ("stubs", "Python model stubs"), ("clients", "clients")):
        cpu.plot(times, [sample[f"{part}_cores"] for sample in samples], lw=1, label=title)
    for name in (SERVER_MEMORY, MODELS_MEMORY, "clients, memory", "shared memory"):
        memory.plot(times, [sample[name] for sample in samples], lw=1, label=name)
    cpu.set(title="Processor", xlabel=unit, ylabel="cores in use")
    memory.set(title="Memory", xlabel=unit, ylabel="MiB")
    for axes in (cpu, memory):
        axes.set_ylim(0, None)
        axes.legend()
    return figure


def _growth(data: dict[str, Any]) -> Figure:
    """Plot every kind of memory in a soak relative to its value after warm-up. Counts are left out: they vary with the users."""
    samples, warm = data["samples"], data["warm_up_s"]
    unit, scale = _clock(data)
    times = [sample["second"] / scale for sample in samples]
    figure = Figure((_WIDTH, 1.3 * _HEIGHT), layout="constrained")
    axes = figure.subplots()
    for one in data["growth"]:
        if one["before"] and one["unit"]:
            values = [100 * (sample[one["name"]] / one["before"] - 1) for sample in samples]
            axes.plot(times, values, lw=1, label=one["name"])
    allowed = 100 * data["allowed_growth"]
    axes.axhspan(-allowed, allowed, color=_COLOURS["good"], alpha=0.08)
    axes.axvline(warm / scale, color=_COLOURS["other"], ls=":")
    axes.set(
        title="Memory growth since the end of warm-up (dotted)",
        xlabel=unit,
        ylabel="%",
        ylim=(-6 * allowed, 6 * allowed),
    )
    axes.legend(ncols=2, fontsize=8)
    return figure


def _numbers(values: Sequence[float | None]) -> list[float]:
    """Replace None by NaN, which matplotlib leaves out."""
    return [math.nan if value is None else value for value in values]


def _logarithmic(axes: Any) -> None:
    """Make the y axis logarithmic, with plain numbers as labels."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.5, high * 1.5)
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def _clock(data: dict[str, Any]) -> tuple[str, float]:
    """Return the unit of a run's time axis, and its length in seconds."""
    last = max((point["second"] for point in data["timeline"]), default=0)
    return ("minutes", 60.0) if last > 180 else ("seconds", 1.0)


def _whole(axes: Any) -> None:
    """Put ticks of the x axis at whole numbers only."""
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, min_n_ticks=1))


def _svg(figure: Figure) -> str:
    """Return a figure as an SVG element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
