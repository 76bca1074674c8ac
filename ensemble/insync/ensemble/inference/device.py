"""The GPU and the TensorRT library of this machine."""

from __future__ import annotations

import ctypes
import ctypes.util
import shutil
import subprocess
from dataclasses import dataclass

from insync.core.errors import ServerError

_NVINFER = ("libnvinfer.so.11", "libnvinfer.so.10")


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, and its compute capability as in "9.0"."""

    name: str
    capability: str


def library_version(library: str | None = None) -> str:
    """Return this machine's TensorRT version, with four parts, from the library itself, which Triton's backend loads too.

    Args:
        library: file or name of the library; by default libnvinfer from the linker's path.

    Raises:
        ServerError: there is none.
    """
    found = ctypes.util.find_library("nvinfer")
    names = [library] if library else [*_NVINFER, *([found] if found else [])]
    for name in names:
        try:
            loaded = ctypes.CDLL(name)
            parts = [getattr(loaded, f"getInferLib{part}Version")() for part in ("Major", "Minor", "Patch", "Build")]
        except (OSError, AttributeError):
            continue
        return ".".join(str(part) for part in parts)
    raise ServerError(f"TensorRT is not installed on this machine: the linker finds none of {', '.join(names)}")


def find_gpu() -> Gpu | None:
    """Return the first GPU of this machine, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    name, comma, capability = done.stdout.partition("\n")[0].rpartition(",")
    return Gpu(name.strip(), capability.strip()) if done.returncode == 0 and comma else None
