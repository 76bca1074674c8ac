"""The settings that come from environment variables; nothing else reads the environment.

| variable | meaning | default |
|---|---|---|
| `INSYNC_TWINS` | folder of the twin store | `~/.local/share/insync/twins` |
| `INSYNC_TWIN_CACHE` | how many twins `lipsync_twin_features` keeps in memory | 64 |
| `INSYNC_SIGNING` | folder of the certificate and key that sign dubbed files | `~/.local/share/insync/signing` |
| `INSYNC_JPEG_QUALITY` | JPEG quality of SYNCED, 1 to 100 | 92 |
| `INSYNC_GPU` | 1: the embedded server runs the networks on the GPU, like `insync serve --gpu` | 0 |
| `INSYNC_PROCESSES` | processes of the embedded server that compute frames on the CPU | one per core, at most 4 |
| `INSYNC_CAPACITY_FPS` | frames/s that a server admits in total, if its config sets no capacity; 0: no limit | 0 |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from insync.core.errors import BadInput

TWINS_VARIABLE = "INSYNC_TWINS"
GPU_VARIABLE = "INSYNC_GPU"
SIGNING_VARIABLE = "INSYNC_SIGNING"
CAPACITY_VARIABLE = "INSYNC_CAPACITY_FPS"


@dataclass(frozen=True)
class Settings:
    """The server's settings from environment variables."""

    twins: Path
    twin_cache: int
    jpeg_quality: int
    gpu: bool
    capacity_fps: int
    processes: int


def default_twins() -> Path:
    """Return the default folder of the twin store."""
    return _data() / "twins"


def signing_folder() -> Path:
    """Return the folder of the certificate and key that sign dubbed files."""
    folder = os.environ.get(SIGNING_VARIABLE)
    return Path(folder).expanduser().absolute() if folder else _data() / "signing"


def library_cache() -> Path:
    """Return the folder of libraries that this machine lacked (`insync.ensemble.server.libpython`); they can be downloaded again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "insync"


def load() -> Settings:
    """Read the settings from the environment.

    Raises:
        BadInput: a variable's value is not allowed.
    """
    twins = os.environ.get(TWINS_VARIABLE)
    return Settings(
        twins=Path(twins).expanduser() if twins else default_twins(),
        twin_cache=_integer("INSYNC_TWIN_CACHE", 64, 1, 100_000),
        jpeg_quality=_integer("INSYNC_JPEG_QUALITY", 92, 1, 100),
        gpu=bool(_integer(GPU_VARIABLE, 0, 0, 1)),
        capacity_fps=_integer(CAPACITY_VARIABLE, 0, 0, 1_000_000),
        # Each process takes 0.3 GB.
        processes=_integer("INSYNC_PROCESSES", min(4, len(os.sched_getaffinity(0))), 1, 1024),
    )


def _data() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "insync"


def _integer(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise BadInput(f"{name} is {text!r}; it must be a whole number from {low} to {high}")
    return int(text)
