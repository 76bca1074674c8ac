"""What every benchmark's report shares: the machine in words, and the Markdown file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
SAMPLES = FOLDER.parent / "samples"
_PACKAGES = ("numpy", "onnxruntime", "nvidia-pytriton", "tritonclient", "av", "opencv-python-headless")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _vectors() -> str:
    """The widest vector instructions of the CPU, which decide ONNX Runtime's speed more than the clock does."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "vector width unknown"
    kinds = (("amx_tile", "AMX"), ("avx512_vnni", "AVX-512 VNNI"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
    return next((name for flag, name in kinds if flag in flags), "no AVX2")


def describe() -> str:
    """The machine and the versions that count, without anything that names the machine."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return (
        f"{platform.machine()}, {cores()} cores ({_vectors()}), {memory_gib:.0f} GiB, no GPU used; "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


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
    head = [f"# {title}", f"`{command}`, {datetime.date.today().isoformat()}.", describe() + "."]
    path.write_text("\n\n".join([*head, *filter(None, parts)]) + "\n")
