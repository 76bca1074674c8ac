"""The only place where the environment is read.

| variable | meaning | default |
|---|---|---|
| `INSYNC_TWINS` | folder of the twin store | `~/.local/share/insync/twins` |
| `INSYNC_TWIN_CACHE` | twins that `lipsync_twin_features` keeps in memory | 64 |
| `INSYNC_SIGNING` | folder of the certificate and key that sign dubbed files | `~/.local/share/insync/signing` |
| `INSYNC_JPEG_QUALITY` | of SYNCED, 1 to 100 | 92 |
| `INSYNC_GPU` | 1: the embedded server runs the networks on the GPU, as `insync serve --gpu` | 0 |
| `INSYNC_PROCESSES` | processes of the embedded server that compute frames on the CPU | one for each core, 4 at most |
| `INSYNC_CAPACITY_FPS` | frames/s that a server admits in all, where its config says nothing; 0: no limit | 0 |
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
    """What the environment says to the serving side."""

    twins: Path
    twin_cache: int
    jpeg_quality: int
    gpu: bool
    capacity_fps: int
    processes: int


def default_twins() -> Path:
    """The twin store's folder where nothing else is said."""
    return _data() / "twins"


def signing_folder() -> Path:
    """Where the certificate and key are that sign dubbed files."""
    said = os.environ.get(SIGNING_VARIABLE)
    return Path(said).expanduser().absolute() if said else _data() / "signing"


def library_cache() -> Path:
    """Tell where libraries are kept that this machine lacked (`insync.ensemble.libpython`): they can be fetched anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "insync"


def load() -> Settings:
    """Reads the environment.

    Raises:
        BadInput: a variable holds something that is not allowed.
    """
    twins = os.environ.get(TWINS_VARIABLE)
    return Settings(
        twins=Path(twins).expanduser() if twins else default_twins(),
        twin_cache=_integer("INSYNC_TWIN_CACHE", 64, 1, 100_000),
        jpeg_quality=_integer("INSYNC_JPEG_QUALITY", 92, 1, 100),
        gpu=bool(_integer(GPU_VARIABLE, 0, 0, 1)),
        capacity_fps=_integer(CAPACITY_VARIABLE, 0, 0, 1_000_000),
        # Each takes 0.3 GB.
        processes=_integer("INSYNC_PROCESSES", min(4, len(os.sched_getaffinity(0))), 1, 1024),
    )


def _data() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "insync"


def _integer(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise BadInput(f"{name} is {text!r}, allowed is a whole number from {low} to {high}")
    return int(text)
