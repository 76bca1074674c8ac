"""Parts shared by all benchmark reports: the description of the machine, and the Markdown file."""

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
    """Return the checkout's commit, with a + where files differ from it; an empty string outside a checkout."""
    try:
        head, status = (
            subprocess.run(["git", "-C", str(FOLDER), *command], capture_output=True, text=True, check=True, timeout=10)
            for command in (("rev-parse", "--short=7", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    # Tables that benchmarks write are not part of what is measured.
    changed = [line for line in status.stdout.splitlines() if not line.endswith((".md", ".json"))]
    return head.stdout.strip() + ("+" if changed else "")


def comparable(first: str, second: str) -> bool:
    """Return whether results of two machines, as `describe` describes them, can be compared.

    The hardware must be the same, and the version of every package that both name. A package that only one of them names
    was added to the description later.
    """
    (hardware, packages), (other_hardware, others) = _parts(first), _parts(second)
    return hardware == other_hardware and all(
        packages[name] == others[name] for name in packages.keys() & others.keys()
    )


def _parts(description: str) -> tuple[str, dict[str, str]]:
    hardware, _, packages = description.partition("; ")
    versions = (package.rpartition(" ") for package in packages.split(", "))
    return hardware.removesuffix(", no GPU used"), {name: version for name, _, version in versions}


def busy() -> str:
    """Return a warning for the report when other work shares the cores, or an empty string.

    Call it before the benchmark loads the machine itself.
    """
    load = os.getloadavg()[0]
    if load < 0.25 * cores():
        return ""
    return (
        f"**Other work ran on the machine (load {load:.1f} on {cores()} cores before the start): results are too low.**"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is aligned left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, title: str, command: str, parts: Sequence[str]) -> None:
    """Write a report: the command, the date, the machine, then `parts` as paragraphs; empty ones are omitted."""
    head = [f"# {title}", f"`{command}`, {datetime.date.today().isoformat()}.", f"{describe()}; no GPU used."]
    path.write_text("\n\n".join([*head, *filter(None, parts)]) + "\n")
