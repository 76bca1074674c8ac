"""A description of the machine for reports: what determines its speed, and nothing that identifies it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

__all__ = ["cores", "describe"]

_PACKAGES = (
    "insync",
    "numpy",
    "onnxruntime",
    "nvidia-pytriton",
    "tritonclient",
    "grpcio",
    "av",
    "opencv-python-headless",
    "locust",
)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> str:
    """Return one line with the processor, the memory and the versions of Python and the relevant packages."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return (
        f"{platform.machine()}, {cores()} cores ({_vectors()}), {gib:.0f} GiB; "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def _vectors() -> str:
    """Return the CPU's widest vector instructions, which affect ONNX Runtime's speed more than the clock does."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "vector width unknown"
    kinds = (("amx_tile", "AMX"), ("avx512_vnni", "AVX-512 VNNI"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
    return next((name for flag, name in kinds if flag in flags), "no AVX2")
