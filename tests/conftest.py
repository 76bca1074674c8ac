"""Fixtures of all tests: the shipped sample and the model repository. `tests/integration` adds a running server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _has_gpu() -> bool:
    """Return whether the driver has a GPU; PyTorch is not used, as most tests never load it."""
    program = shutil.which("nvidia-smi")
    return program is not None and subprocess.run([program, "-L"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session", autouse=True)
def signing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sign the files that tests dub with a certificate of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSYNC_SIGNING", str(tmp_path_factory.mktemp("signing") / "own"))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a CUDA device if there is none, with that reason."""
    if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu():
        absent = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(absent)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the project's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the committed model repository."""
    return ROOT / "model_repository"


@pytest.fixture(scope="session")
def sample_clip() -> Path:
    """Return the shipped clip: 1280×720, 25 fps, 200 frames, one face, no sound."""
    return ROOT / "samples" / "sample.mp4"


@pytest.fixture(scope="session")
def sample_speech() -> Path:
    """Return the shipped speech: 7.90 s, 24,000 Hz, mono."""
    return ROOT / "samples" / "speech.wav"
