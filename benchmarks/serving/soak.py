"""Soak test, for growth of memory and handles under long mixed load: `python -m benchmarks.serving.soak --minutes 60`.

It runs `insync loadtest --soak` with a load that leaves most of a small machine free, and saves the table and the plot of
growth. Options that it does not know are passed to that command and override this load, as in
`python -m benchmarks.serving.soak --minutes 60 --users live=2,dub=1,twin=1 --fps 25 --height 720`.
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
from insync.loadtest.report import plots

COMMAND = "python -m benchmarks.serving.soak"
LIGHT = "--users live=1,dub=1,twin=1 --fps 3 --height 270 --job-frames 20 --in-flight 2 --deadline 1000"
METHOD = (
    "`{command}`. Clients connect and disconnect: a stream lasts {shortest:g} to {longest:g} s, pauses last up to {away:g} s, "
    "{new:.0f} % of the sessions begin with a new connection and registration, and in every 40 s one user is away for 10 s, "
    "disconnected in the middle of an operation. Medians of the first and the last 15 % of the time after "
    "{warm:.1f} minutes of warm-up are compared; growth of {allowed:g} % is allowed, and of countable series always by two."
)


def summary(data: Mapping[str, Any]) -> str:
    """Describe what the users did, in a sentence."""
    total = data["summary"]
    return (
        f"{total['frames']:,} live frames ({total['missed']:,} late, {total['late'] - total['missed']:,} missing, "
        f"{total['disordered']:,} out of order, {total['lost']:,} lost), {total['dubbed']:,} frames dubbed in "
        f"{total['jobs']:,} whole jobs, {total['registrations']:,} registrations, {total['refused']:,} refusals, "
        f"{total['errors']:,} errors."
    )


def table(data: Mapping[str, Any]) -> str:
    """Return a table with a row for each series."""
    rows = [
        [
            f"{one['name']}{', ' + one['unit'] if one['unit'] else ''}",
            f"{one['before']:,.1f}",
            f"{one['after']:,.1f}",
            f"{100 * one['share']:+.1f} %",
            "flat" if one["flat"] else "**grew**",
        ]
        for one in data["growth"]
    ]
    return reports.table(["series", "after warm-up", "at the end", "growth", "result"], rows)


def main() -> int:
    """Run and write `benchmarks/results/soak.md` and `benchmarks/results/soak.png`; return 1 if something grew."""
    parser = argparse.ArgumentParser(description="Soak test: growth of memory and handles under long mixed load.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=reports.FOLDER / "soak.md")
    parser.add_argument("--report", type=Path, default=Path("loadtest-report"), help="folder of the whole report")
    options, rest = parser.parse_known_args()
    arguments = ["--soak", f"{options.minutes:g}", *LIGHT.split(), *rest]
    file = options.report / "report.json"
    file.unlink(missing_ok=True)
    code = cli.main([*arguments, "--quiet", "-o", str(options.report)])
    if not file.is_file():
        return code
    write(json.loads(file.read_text()), options.out, options.minutes, rest)
    sys.stdout.write(options.out.read_text())
    return code


def write(data: Mapping[str, Any], out: Path, requested_minutes: float, rest: Sequence[str]) -> None:
    """Write table and plot of a report's data; `rest` are the options that were passed to the command."""
    arguments = ["--soak", f"{requested_minutes:g}", *LIGHT.split(), *rest]
    users, minutes = data["users"], data["users_over_time"][-1][0] / 60
    picture = out.with_suffix(".png")
    if data["growth"]:
        plots.png(dict(data), str(picture))
    other = data["usage"]["other_cores"]
    reports.write(
        out,
        "Growth under long mixed load",
        " ".join([COMMAND, "--minutes", f"{requested_minutes:g}", *rest]),
        [
            f"**{minutes:.1f} minutes: {'nothing grew' if data['ended'] == 'complete' else data['ended']}.** {summary(data)}",
            "" if minutes > 59 else "The target is an hour: this run is shorter, and so is its warm-up.",
            METHOD.format(
                command=" ".join(["insync loadtest", *arguments]),
                shortest=users["session_s"][0],
                longest=users["session_s"][1],
                away=users["away_s"],
                new=100 * users["new_connection"],
                warm=data["warm_up_s"] / 60,
                allowed=100 * data["allowed_growth"],
            ),
            f"Other work on the machine used {other:.1f} of its cores meanwhile: the number of late frames is not meaningful."
            if other > 0.5
            else "",
            table(data) if data["growth"] else "",
            f"![Growth of memory over the run]({picture.name})" if data["growth"] else "",
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
