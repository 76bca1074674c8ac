"""Number of live streams that a server on this machine holds: `python -m benchmarks.serving.capacity`.

It runs `insync loadtest --find-capacity` and saves the search's table and plot. Options that it does not know are passed to that
command, as in `python -m benchmarks.serving.capacity --host HOST:8001 --users 16 --run-time 5m`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import reports
from insync.loadtest import cli
from insync.loadtest.measure.machine import cores
from insync.loadtest.report import page, plots

COMMAND = "python -m benchmarks.serving.capacity"
HEADER = (
    "streams × frames/s", "held", "p50 ms", "p95 ms", "p99 ms", "late or missing", "received frames/s", "server cores",
    "clients' cores", "other work, cores",
)  # fmt: skip
METHOD = (
    "`{command}`: live streams of the sample at its frame rate, each with a connection and a registration of its own; "
    "server: {server}. The deadline of a frame is {deadline:g} ms, from the end of its audio window to the synced frame's "
    "arrival at the client. *Held*: over {measure:g} s, p99 at most {deadline:g} ms and at most {miss:g} % of the frames "
    "late or missing (dropped at the camera, because the client did not fetch them in time). A number of streams that is not held is "
    "tried once more, in the next row. If not even one stream is held, slower ones are tried."
)


def table(searches: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the search, a row for each number of streams that was tried."""
    rows = []
    for search in searches:
        for step in search["steps"]:
            summary, used = step["summary"], step["usage"]
            rows.append(
                [
                    f"{step['streams']} × {search['fps']:g}",
                    "yes" if step["held"] else "no",
                    *(
                        "–" if summary[name] is None else f"{summary[name]:.0f}"
                        for name in ("p50_ms", "p95_ms", "p99_ms")
                    ),
                    f"{100 * summary['miss_rate']:.1f} %",
                    f"{summary['fps']:.1f}",
                    f"{used['server_cores'] + used['stubs_cores']:.2f}",
                    f"{used['clients_cores']:.2f}",
                    f"{used['other_cores']:.2f}",
                ]
            )
    return reports.table(HEADER, rows)


def models(search: Mapping[str, Any]) -> str:
    """Return the table of the models' batches and queues, at the highest number of streams that was tried."""
    step = search["steps"][-1]
    rows = [
        [
            f"`{name}`",
            f"{load['requests_per_s']:.1f}",
            f"{load['batch']:.2f}" if load["batch"] else "",
            f"{load['queue_ms']:.1f}",
            f"{load['compute_ms']:.1f}",
        ]
        for name, load in sorted(step["models"].items())
    ]
    return reports.table(["model", "requests/s", "mean batch", "queue, ms", "compute, ms"], rows)


def warning(searches: Sequence[Mapping[str, Any]]) -> str:
    """Return a warning for the report if other work used the cores meanwhile, or an empty string."""
    most = max(step["usage"]["other_cores"] for search in searches for step in search["steps"])
    if most < 0.25 * cores():
        return ""
    return f"**Other work used up to {most:.1f} of {cores()} cores meanwhile: results are too low.**"


def main() -> int:
    """Measure and write `benchmarks/results/capacity.md` and `benchmarks/results/capacity.png`."""
    parser = argparse.ArgumentParser(description="Number of live streams that a server on this machine holds.")
    parser.add_argument("--out", type=Path, default=reports.FOLDER / "capacity.md")
    parser.add_argument("--title", default="Live streams held")
    parser.add_argument("--report", type=Path, default=Path("loadtest-report"), help="folder of the whole report")
    options, rest = parser.parse_known_args()
    code = cli.main(["--find-capacity", *rest, "-o", str(options.report)])
    if code:
        return code
    data = json.loads((options.report / "report.json").read_text())
    write(data, options.out, options.title, rest)
    sys.stdout.write(options.out.read_text())
    return 0


def write(data: Mapping[str, Any], out: Path, title: str, rest: Sequence[str]) -> None:
    """Write table and plot of a report's data; `rest` are the options that were passed to the command."""
    limits, searches = data["limits"], data["searches"]
    picture = out.with_suffix(".png")
    plots.png(dict(data), str(picture))
    reports.write(
        out,
        title,
        " ".join([COMMAND, *rest]),
        [
            warning(searches),
            f"**{'; '.join(page.held(search) for search in searches)}.**",
            METHOD.format(
                command=" ".join(["insync loadtest --find-capacity", *rest]),
                server=data["server"],
                deadline=limits["p99_ms"],
                measure=limits["measure_s"],
                miss=100 * limits["miss_rate"],
            ),
            table(searches),
            f"![Latency, late frames and throughput against the number of live streams]({picture.name})",
            f"At {searches[-1]['steps'][-1]['streams']} × {searches[-1]['fps']:g} frames/s, from Triton's metrics:",
            models(searches[-1]),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
