"""Requirements of the project as a whole: imports, pinned versions, tracked files."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
# Neither serving nor dubbing needs these: they belong to `insync[export]`, `insync[train]` and `insync[loadtest]`.
HEAVY = ("torch", "onnx", "matplotlib", "mediapipe", "jax", "locust", "gevent")
# What `pip install insync` brings, and what `insync[media]` and `insync[serve]` add to it.
BASE = ("numpy", "grpc", "google.protobuf", "PIL")
MEDIA = ("cv2", "av", "tqdm", "c2pa", "cryptography")
SERVE = ("pytriton", "nvidia.dali", "onnxruntime", "numba", "ai_edge_litert", "tritonclient", "psutil")
THIN = ("insync.client", "insync.client.probe", "insync.cli.main", "insync.cli.embedded")
MAX_FILE_BYTES = 7_500_000  # the encoder is the largest of the weights
MAX_WEIGHTS_BYTES = 16_000_000
PUBLIC = [
    "BadInput",
    "Client",
    "InsyncError",
    "MediaError",
    "MissingExtra",
    "NoAudioTrack",
    "NoVideoTrack",
    "NotFound",
    "Overloaded",
    "ProtocolError",
    "ServerError",
    "ServerTimeout",
    "ServerUnavailable",
    "StageClock",
    "Stages",
    "SyncedFrame",
    "TimedFrame",
    "TlsOptions",
    "Twin",
    "UnreadableMedia",
    "UnwritableMedia",
]


def _modules(folder: str) -> list[str]:
    package = ROOT / folder / "insync" / folder
    found = sorted(path.relative_to(ROOT / folder).with_suffix("") for path in package.rglob("*.py"))
    # `__main__` runs when it is imported.
    return [".".join(path.parts).removesuffix(".__init__") for path in found if path.name != "__main__"]


def _tracked() -> list[Path]:
    """Return the paths that git tracks, relative to the top; skip the test outside a git checkout."""
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if git.returncode:
        pytest.skip("not a git checkout")
    names = [Path(name) for name in git.stdout.decode().split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


def _pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()


def _import_without(blocked: tuple[str, ...], modules: list[str]) -> subprocess.CompletedProcess[str]:
    """Import `modules` in a new interpreter in which importing a name of `blocked` fails."""
    program = (
        "import importlib, sys, types\n"
        # Only Triton's Python backend has this module. Its names are only looked up here, so any class will do.
        "backend = sys.modules['triton_python_backend_utils'] = types.ModuleType('triton_python_backend_utils')\n"
        "backend.__getattr__ = lambda name: type(name, (Exception,), {})\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("folder", ["client", "ensemble"])
def test_serving_and_client_import_without_torch(folder: str) -> None:
    modules = _modules(folder)
    assert modules
    done = _import_without(HEAVY, modules)
    assert done.returncode == 0, done.stderr


def test_base_install_is_enough_to_stream() -> None:
    """The client without media files, all of core, and the command line import only packages of the base install."""
    client = [name for name in _modules("client") if not name.startswith(("insync.client.media", "insync.client.prov"))]
    modules = [name for name in client if name != "insync.client.dub"]
    done = _import_without((*HEAVY, *SERVE, *MEDIA), [*modules, *_modules("core"), *THIN])
    assert done.returncode == 0, done.stderr


def test_media_install_is_enough_for_files() -> None:
    done = _import_without((*HEAVY, *SERVE), [*_modules("client"), *_modules("core"), *_modules("cli")[1:]])
    assert done.returncode == 0, done.stderr


def test_the_load_test_needs_no_serving_extra() -> None:
    serving = tuple(name for name in SERVE if name != "psutil")  # it brings that one itself
    done = _import_without((*serving, "torch", "onnx"), _modules("loadtest"))
    assert done.returncode == 0, done.stderr


def test_blocking_an_import_works() -> None:
    """Otherwise the tests above would always pass."""
    done = _import_without(("numpy",), ["insync.core.compositing"])
    assert done.returncode != 0
    assert "numpy" in done.stderr


def test_specification_needs_only_the_standard_library() -> None:
    done = _import_without((*BASE, *MEDIA, *HEAVY), ["insync.core.spec"])
    assert done.returncode == 0, done.stderr


def test_numpy_is_older_than_2() -> None:
    """With numpy 2, Triton 2.51's Python stub gives wrong inputs and empty outputs, without an error."""
    assert int(importlib.metadata.version("numpy").partition(".")[0]) < 2
    # Only of the server: an application may have any NumPy.
    wanted = [Requirement(text) for text in importlib.metadata.requires("insync") or []]
    capped = {str(one.marker) for one in wanted if one.name == "numpy" and "2.0" not in one.specifier}
    assert capped == {'python_version < "3.13" and extra == "serve"'}


def test_versions_agree() -> None:
    stated = re.search(r'^version = "(.+)"$', _pyproject(), re.MULTILINE)
    assert stated is not None
    version = stated[1]
    assert importlib.metadata.version("insync") == version
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version in headings or len(headings) == 1  # nothing is released before the first version's heading


def test_public_names_are_those_listed() -> None:
    """Adding a public name of the client, or removing one, is a decision: change this list with it."""
    import insync.client

    names = list(getattr(insync.client, "__all__"))  # noqa: B009 - also where mypy knows no such attribute
    assert sorted(names) == PUBLIC
    assert not [name for name in names if not getattr(insync.client, name).__doc__]


def test_no_tracked_file_is_large() -> None:
    large = {str(name): size for name in _tracked() if (size := (ROOT / name).stat().st_size) > MAX_FILE_BYTES}
    assert not large


def test_weights_fit_their_budget() -> None:
    weights = [
        name for name in _tracked() if name.suffix in {".onnx", ".tflite", ".npz", ".data", ".pt", ".safetensors"}
    ]
    assert sum((ROOT / name).stat().st_size for name in weights) <= MAX_WEIGHTS_BYTES


def test_no_footage_but_the_sample() -> None:
    footage = {name for name in _tracked() if name.suffix in {".mp4", ".mov", ".mpg", ".mkv", ".webm", ".wav", ".flac"}}
    assert footage <= {Path("samples/sample.mp4"), Path("samples/speech.wav")}


def test_no_machine_paths() -> None:
    """A path of the machine that a file was made on works nowhere else, and discloses private information."""
    # Home folders and temporary folders; written in pieces so that this file does not find itself.
    pattern = re.compile(rb"(?<![\w.$}/-])/(?:ro" rb"ot|wo" rb"rk|ho" rb"me|tm" rb"p/\w+/|opt/py" rb"pi)/[\w.]")
    found = []
    for name in _tracked():
        content = (ROOT / name).read_bytes()
        if b"\0" in content[:8192] and name.suffix != ".onnx":
            continue
        found += [f"{name}: {match.group().decode()}" for match in pattern.finditer(content)]
    assert not found
