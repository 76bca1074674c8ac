"""Whether anything grows under long mixed load: `python -m benchmarks.serving.soak --minutes 60`.

It runs `insync loadtest --soak` with a load that leaves most of a small machine free, and keeps the table and the plot of
growth. Options that it does not know go to that command; later ones win, as in
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
    "`{command}`. Clients come and go: a stream lasts {shortest:g} to {longest:g} s, pauses last up to {away:g} s, "
    "{new:.0f} % of the sessions begin with a new connection and registration, and of every 40 s one user is away for 10 s, "
    "cut off in the middle of what it does. Compared are medians of the first and the last 15 % of what follows "
    "{warm:.1f} minutes of warm-up; {allowed:g} % of growth are allowed, of things that are counted two in any case."
)


def done(data: Mapping[str, Any]) -> str:
    """What the users did, in a sentence."""
    all_of_it = data["summary"]
    return (
        f"{all_of_it['frames']:,} live frames ({all_of_it['missed']:,} late, {all_of_it['late'] - all_of_it['missed']:,} missing, "
        f"{all_of_it['disordered']:,} out of order, {all_of_it['lost']:,} lost), {all_of_it['dubbed']:,} frames dubbed in "
        f"{all_of_it['jobs']:,} whole jobs, {all_of_it['registrations']:,} registrations, {all_of_it['refused']:,} refusals, "
        f"{all_of_it['errors']:,} errors."
    )


def table(data: Mapping[str, Any]) -> str:
    """Every series."""
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
    return reports.table(["", "after warm-up", "at the end", "growth", ""], rows)


def main() -> int:
    """Run and write `benchmarks/results/soak.md` and `benchmarks/results/soak.png`; 1 where something grew."""
    parser = argparse.ArgumentParser(description="Whether anything grows under long mixed load.")
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


def write(data: Mapping[str, Any], out: Path, asked_minutes: float, rest: Sequence[str]) -> None:
    """Writes table and plot of a report's data; `rest` are the options that went to the command."""
    arguments = ["--soak", f"{asked_minutes:g}", *LIGHT.split(), *rest]
    users, minutes = data["users"], data["users_over_time"][-1][0] / 60
    picture = out.with_suffix(".png")
    if data["growth"]:
        plots.png(dict(data), str(picture))
    other = data["usage"]["other_cores"]
    reports.write(
        out,
        "Growth under long mixed load",
        " ".join([COMMAND, "--minutes", f"{asked_minutes:g}", *rest]),
        [
            f"**{minutes:.1f} minutes: {'nothing grew' if data['ended'] == 'complete' else data['ended']}.** {done(data)}",
            "" if minutes > 59 else "The aim is an hour: this run is shorter, and so is its warm-up.",
            METHOD.format(
                command=" ".join(["insync loadtest", *arguments]),
                shortest=users["session_s"][0],
                longest=users["session_s"][1],
                away=users["away_s"],
                new=100 * users["new_connection"],
                warm=data["warm_up_s"] / 60,
                allowed=100 * data["allowed_growth"],
            ),
            f"Other work on the machine took {other:.1f} of its cores meanwhile: late frames say little."
            if other > 0.5
            else "",
            table(data) if data["growth"] else "",
            f"![Growth of memory over the run]({picture.name})" if data["growth"] else "",
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
