"""The `tritonserver` installation on this machine, and the fallback backends for what it lacks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from insync.core.errors import MissingExtra, ServerError
from insync.ensemble.server.libpython import find_library
from insync.ensemble.triton import backends

FALLBACK_BACKENDS = ("onnxruntime", "dali", "fused")
_SYSTEM = Path("/opt/tritonserver")
_EXTRA = "pip install 'insync[serve]'"


@dataclass(frozen=True)
class Installation:
    """A Triton server installation.

    Attributes:
        server: the `tritonserver` executable.
        backends: folder of its backends.
        stub: the Python backend's stub executable for this Python version, if it is not in the backend's folder.
        libraries: folders for the dynamic linker.
    """

    server: Path
    backends: Path
    stub: Path | None
    libraries: tuple[Path, ...]

    def write_backends(self, folder: Path) -> None:
        """Fill a backend directory: the installation's backends, and our fallback backends for those that it lacks."""
        folder.mkdir(parents=True)
        for backend in self.backends.iterdir():
            if backend.name == "python" and self.stub is not None:
                # Copied, not linked: Triton refuses a backend whose library is outside the backend directory.
                (folder / "python").mkdir()
                for file in (*backend.iterdir(), self.stub):
                    if file.is_file():
                        shutil.copy2(file, folder / "python" / file.name)
            else:
                (folder / backend.name).symlink_to(backend)
        for name in FALLBACK_BACKENDS:
            if not (folder / name).exists():
                (folder / name).symlink_to(Path(backends.__file__).resolve().parent / name)

    def environment(self) -> dict[str, str]:
        """Return the environment variables to set for the server's process."""
        inherited = os.environ.get("LD_LIBRARY_PATH")
        libraries = [str(folder) for folder in self.libraries] + ([inherited] if inherited else [])
        return {
            # The stub is an isolated interpreter: it uses the packages of the first `python` on the path.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # Otherwise each model's numerical libraries start one thread per core and busy-wait for them.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # Each frame allocates and frees tensors of megabytes. Returning those pages to the kernel every time costs a
            # fifth of the server's time outside the networks.
            "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
            "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
            # Every malloc arena keeps its own free memory: with the default of eight per core, memory grows for an hour.
            "MALLOC_ARENA_MAX": str(2 * (os.cpu_count() or 1)),
        }


def find_installation() -> Installation:
    """Find the wheel's server, or else a system-wide one.

    Raises:
        MissingExtra: a package is missing.
        ServerError: the installed versions are not compatible.
    """
    if sys.version_info >= (3, 13):
        raise ServerError(
            f"the embedded server needs Python 3.10, 3.11 or 3.12, and this is {sys.version_info[0]}.{sys.version_info[1]}: "
            "make an environment with one of them, or run a Triton container (docs/deploy-docker.md)"
        )
    _check_packages()
    spec = importlib.util.find_spec("pytriton")
    if spec is not None and spec.submodule_search_locations:
        package = Path(next(iter(spec.submodule_search_locations)))
        folder = package / "tritonserver"
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = folder / "python_backend_stubs" / python / "triton_python_backend_stub"
        if not stub.is_file():
            raise ServerError(f"nvidia-pytriton does not support Python {python}: use 3.10, 3.11 or 3.12")
        libraries = (find_library(), package.parent / "nvidia_pytriton.libs")
        return Installation(folder / "bin" / "tritonserver", folder / "backends", stub, libraries)
    found = shutil.which("tritonserver") or shutil.which("tritonserver", path=str(_SYSTEM / "bin"))
    if found is not None:
        server = Path(found).resolve()
        return Installation(server, server.parents[1] / "backends", None, (server.parents[1] / "lib",))
    raise MissingExtra(f"no tritonserver found on this machine, and nvidia-pytriton is not installed: {_EXTRA}")


def _check_packages() -> None:
    needed = {
        "numba": "numba",
        "ai_edge_litert": "ai-edge-litert",
        "onnxruntime": "onnxruntime",
        "nvidia.dali": "nvidia-dali",
    }
    missing = [package for module, package in needed.items() if not _installed(module)]
    if missing:
        raise MissingExtra(f"packages that the server needs are not installed ({', '.join(missing)}): {_EXTRA}")
    try:
        numpy = version("numpy")
    except PackageNotFoundError:
        numpy = "0"
    if int(numpy.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy must be older than 2, got {numpy}: with numpy 2, Triton's Python backend reads wrong inputs; "
            "install 'numpy<2'"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # raised for a missing parent package
        return False
