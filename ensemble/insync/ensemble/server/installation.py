"""Finds a `tritonserver` on this machine, and gives it the backends that it lacks."""

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
_EXTRA = "install them with: pip install 'insync[serve]'"


@dataclass(frozen=True)
class Installation:
    """A server and what it needs.

    Attributes:
        server: the `tritonserver` executable.
        backends: folder with its backends.
        stub: the Python backend's interpreter for this Python, where it does not lie with the backend.
        libraries: folders for the dynamic linker.
    """

    server: Path
    backends: Path
    stub: Path | None
    libraries: tuple[Path, ...]

    def write_backends(self, folder: Path) -> None:
        """Fills a backend directory: the installation's backends, and our stand-ins for those that it lacks."""
        folder.mkdir(parents=True)
        for backend in self.backends.iterdir():
            if backend.name == "python" and self.stub is not None:
                # Copies: Triton refuses a backend whose library lies outside the backend directory.
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
        """What the server's environment has that ours may lack."""
        inherited = os.environ.get("LD_LIBRARY_PATH")
        libraries = [str(folder) for folder in self.libraries] + ([inherited] if inherited else [])
        return {
            # The stub is an isolated interpreter: it takes its packages from the first `python` on the path.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # Each model's numerical libraries would start a thread for every core, and wait for them by spinning.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            # Tensors of megabytes come and go with each frame: given back to the kernel every time, their pages cost a
            # fifth of what the server spends around the networks.
            "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
            "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
            # And every arena keeps its own: with eight for each core, as is usual, they fill for an hour.
            "MALLOC_ARENA_MAX": str(2 * (os.cpu_count() or 1)),
        }


def find_installation() -> Installation:
    """The wheel's server, or else a system one.

    Raises:
        MissingExtra: a package is missing.
        ServerError: what is installed does not fit together.
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
            raise ServerError(f"nvidia-pytriton serves no Python {python}: use 3.10, 3.11 or 3.12")
        libraries = (find_library(), package.parent / "nvidia_pytriton.libs")
        return Installation(folder / "bin" / "tritonserver", folder / "backends", stub, libraries)
    found = shutil.which("tritonserver") or shutil.which("tritonserver", path=str(_SYSTEM / "bin"))
    if found is not None:
        server = Path(found).resolve()
        return Installation(server, server.parents[1] / "backends", None, (server.parents[1] / "lib",))
    raise MissingExtra(f"there is no tritonserver on this machine: nvidia-pytriton is not installed, {_EXTRA}")


def _check_packages() -> None:
    needed = {
        "numba": "numba",
        "ai_edge_litert": "ai-edge-litert",
        "onnxruntime": "onnxruntime",
        "nvidia.dali": "nvidia-dali",
    }
    missing = [package for module, package in needed.items() if not _installed(module)]
    if missing:
        raise MissingExtra(f"packages that serve the models are missing ({', '.join(missing)}): {_EXTRA}")
    try:
        numpy = version("numpy")
    except PackageNotFoundError:
        numpy = "0"
    if int(numpy.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy is {numpy}: Triton's Python backend reads wrong inputs with numpy 2, install 'numpy<2'"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the parent package
        return False
