"""What every benchmark's report shares: the machine in words, and the Markdown file."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from insync.loadtest.measure.machine import cores, describe

FOLDER = Path(__file__).parent / "results"
SAMPLES = FOLDER.parents[1] / "samples"


def commit() -> str:
    """The checkout's commit, with a + where files differ from it; empty outside a checkout."""
    try:
        asked = [
            subprocess.run(["git", "-C", str(FOLDER), *words], capture_output=True, text=True, check=True, timeout=10)
            for words in (("rev-parse", "--short=7", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    # Tables that benchmarks write are no part of what is measured.
    changed = [line for line in asked[1].stdout.splitlines() if not line.endswith((".md", ".json"))]
    return asked[0].stdout.strip() + ("+" if changed else "")


def alike(first: str, second: str) -> bool:
    """Whether figures of two machines, as `describe` puts them into words, can be compared.

    The hardware has to be the same, and every package that both name; what only one of them names came to the words later.
    """
    (hardware, packages), (other_hardware, others) = _parts(first), _parts(second)
    return hardware == other_hardware and all(
        packages[name] == others[name] for name in packages.keys() & others.keys()
    )


def _parts(words: str) -> tuple[str, dict[str, str]]:
    hardware, _, packages = words.partition("; ")
    versions = (package.rpartition(" ") for package in packages.split(", "))
    return hardware.removesuffix(", no GPU used"), {name: version for name, _, version in versions}


def busy() -> str:
    """A warning for the report when other work shares the cores, or an empty string.

    To be asked before the benchmark loads the machine itself.
    """
    load = os.getloadavg()[0]
    if load < 0.25 * cores():
        return ""
    return (
        f"**Other work ran on the machine (load {load:.1f} on {cores()} cores before the start): figures are too low.**"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, title: str, command: str, parts: Sequence[str]) -> None:
    """Write a report: what was run, when, on what, then `parts` as paragraphs; empty ones are left out."""
    head = [f"# {title}", f"`{command}`, {datetime.date.today().isoformat()}.", f"{describe()}; no GPU used."]
    path.write_text("\n\n".join([*head, *filter(None, parts)]) + "\n")
