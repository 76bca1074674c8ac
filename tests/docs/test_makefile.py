"""The Python that the Makefile chooses for `.venv`, with simulated interpreters of other versions on PATH."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "make", "touch", "mkdir", "mv", "chmod")
# The real interpreter with another version, optionally without ensurepip. `-m venv` records the interpreter and its arguments.
INTERPRETER = """#!/bin/sh
if [ "$1" = -m ]; then
    mkdir -p "$3/bin" && echo "$0 $*" > "$3/made" && printf '#!/bin/sh\\n' > "$3/bin/python" && chmod +x "$3/bin/python"; exit
fi
exec {real} -c '
import importlib.util as util, sys
real, sys.version_info = util.find_spec, {version}
util.find_spec = lambda name, *rest: None if name in {hidden} else real(name, *rest)
exec(sys.argv[1])' "$2"
"""
# The Python that uv installs is not on PATH.
UV = """#!/bin/sh
[ "$UV_PYTHON_PREFERENCE" = only-managed ] || exit 3
case "$*" in
    "python find 3.12") [ -x "$HOME/managed/python3.12" ] && echo "$HOME/managed/python3.12";;
    "python install 3.12") mv "$HOME/archive" "$HOME/managed";;
    *) exit 2;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


class Machine:
    """A PATH with only the programs that a test adds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def python(self, name: str, version: tuple[int, int], hidden: tuple[str, ...] = (), where: str = "bin") -> None:
        text = INTERPRETER.format(real=sys.executable, version=(*version, 0), hidden=json.dumps(hidden))
        self.write(self.folder / where / name, text)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        venv = self.folder / "venv"
        return subprocess.run(
            [self.bin / "make", "-f", ROOT / "Makefile", f"VENV={venv}", *arguments, f"{venv}/.python"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def made(self, *arguments: str) -> str:
        """Make the environment; return what made it, without folders."""
        done = self.make(*arguments)
        assert done.returncode == 0, done.stderr
        text = (self.folder / "venv" / "made").read_text().strip()
        return text.replace(f"{self.bin}/", "").replace(f"{self.folder}/", "")

    def refused(self, *arguments: str) -> str:
        """Make no environment; return the first line of the output."""
        done = self.make(*arguments)
        assert done.returncode != 0
        assert done.stdout == ""
        assert not (self.folder / "venv").exists()
        return done.stderr.splitlines()[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_suitable_python3_is_used(machine: Machine) -> None:
    machine.python("python3", (3, 11))
    machine.python("python3.12", (3, 12))
    machine.write(machine.bin / "uv", UV)
    assert machine.made() == "python3 -m venv venv"


@pytest.mark.parametrize("version", [(3, 9), (3, 13), (3, 14)])
def test_an_unsuitable_python3_is_skipped(version: tuple[int, int], machine: Machine) -> None:
    machine.python("python3", version)
    machine.python("python3.11", (3, 11))
    assert machine.made() == "python3.11 -m venv venv"


def test_a_python3_that_does_not_start_is_skipped(machine: Machine) -> None:
    machine.write(machine.bin / "python3", "#!/bin/sh\necho 'no such version is set' >&2; exit 127\n")
    machine.python("python3.10", (3, 10))
    assert machine.made() == "python3.10 -m venv venv"


def test_a_python3_without_venv_is_skipped(machine: Machine) -> None:
    machine.python("python3", (3, 11), hidden=("ensurepip",))
    machine.python("python3.12", (3, 12))
    assert machine.made() == "python3.12 -m venv venv"


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_the_error_of_a_missing_venv_names_the_package(module: str, machine: Machine) -> None:
    machine.python("python3", (3, 11), hidden=(module,))
    assert machine.refused() == (
        "python3 has no venv: apt install python3-venv (Debian, Ubuntu), then the same command again"
    )


@pytest.mark.parametrize("python3", [(3, 13), (3, 11), None])
@pytest.mark.parametrize("place", ["bin", ".local/bin"])
def test_uv_installs_a_python_if_none_is_suitable(
    place: str, python3: tuple[int, int] | None, machine: Machine
) -> None:
    if python3 is not None:
        machine.python("python3", python3, hidden=("ensurepip",))
    machine.python("python3.12", (3, 12), where="archive")
    machine.write(machine.folder / place / "uv", UV)
    assert machine.made() == "managed/python3.12 -m venv venv"


def test_a_python_of_uv_is_not_installed_again(machine: Machine) -> None:
    machine.python("python3", (3, 13))
    machine.python("python3.12", (3, 12), where="managed")
    machine.write(machine.bin / "uv", UV)
    assert machine.made() == "managed/python3.12 -m venv venv"


def test_the_error_of_a_failed_uv_names_the_versions(machine: Machine) -> None:
    machine.python("python3", (3, 13))
    machine.write(machine.bin / "uv", UV)
    done = machine.make()
    assert done.returncode != 0
    assert "uv brought no Python 3.12: install Python 3.10, 3.11 or 3.12, or name it: make PYTHON=…" in done.stderr
    assert not (machine.folder / "venv").exists()


@pytest.mark.parametrize(("version", "found"), [((3, 13), "python3 is 3.13"), (None, "there is none")])
def test_without_a_suitable_python_the_first_line_names_the_versions(
    version: tuple[int, int] | None, found: str, machine: Machine
) -> None:
    if version is not None:
        machine.python("python3", version)
    assert machine.refused() == (
        f"InSync needs Python 3.10, 3.11 or 3.12, and {found}: install uv, which brings one (pipx install uv, "
        "or pip install uv), then the same command again; or name one: make PYTHON=…"
    )


def test_a_named_interpreter_is_used_or_refused_by_name(machine: Machine) -> None:
    machine.python("python3", (3, 11))
    machine.python("mine", (3, 12))
    machine.python("late", (3, 13))
    machine.write(machine.bin / "uv", UV)
    end = "make PYTHON=… names another"
    assert machine.refused("PYTHON=late") == f"InSync needs Python 3.10, 3.11 or 3.12, and late is 3.13: {end}"
    assert machine.refused("PYTHON=none") == f"InSync needs Python 3.10, 3.11 or 3.12, and none does not run: {end}"
    assert machine.made("PYTHON=mine") == "mine -m venv venv"


def test_the_makefile_and_the_package_require_the_same_versions() -> None:
    package = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.10"' in package
    assert "nvidia-pytriton==0.7.0; python_version < '3.13'" in package  # what the commands install
    assert "(3, 10) <= v <= (3, 12)" in (ROOT / "Makefile").read_text()
