"""Python's shared library: which one is taken, what is refused, and how apt-get is asked for it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from insync.core import settings
from insync.core.errors import ServerError
from insync.ensemble.server import libpython

ROOT = Path(settings.__file__).resolve().parents[3]
DEBIAN = Path("/usr/bin/python3")
RELEASE = sys.version.split()[0]
FETCHING = f"insync: this Python has no {libpython.NAME}: fetching it with apt-get, once, into "
# A library that says of itself what a test wants; it is asked as every other one is.
SOURCE = """
struct module {{ const char *name; void *start; }};
static struct module table[] = {{ {modules} {{0, 0}} }};
struct module *PyImport_Inittab = table;
const char *Py_GetVersion(void) {{ return {version}; }}
"""
APT_GET = """#!/bin/sh
echo "$@" >> "$ASKED"
case "$*" in *update) exit 0;; esac
[ -e "$PACKAGE" ] || {{ echo "{error}" >&2; exit 100; }}
for name; do :; done
cp "$PACKAGE" "${{name%%=*}}_1_amd64.deb"
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/usr/lib" && cp "$2" "$3/usr/lib/{name}"
"""


def c_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def compiled(file: Path, version: str, modules: Sequence[str] = sys.builtin_module_names) -> Path:
    """A shared library that says that it is this version's, with these modules built in."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    file.parent.mkdir(parents=True, exist_ok=True)
    table = "".join(f"{{{c_string(module)}, 0}}, " for module in modules)
    source = SOURCE.format(modules=table, version=c_string(version))
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", file], input=source, text=True, check=True)
    return file


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which this Python has no shared library, and nothing is fetched yet; the folder where it would be."""
    folder = tmp_path / "machine"
    folder.mkdir()
    monkeypatch.setattr(libpython, "_folders", lambda: iter([folder]))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: Path) -> Path:
    """A package manager that owns this Python and has what lies at the returned path as the library's package."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        "apt-get": APT_GET.format(error="E: Unable to reach anything"),
        "dpkg-deb": DPKG_DEB.format(name=libpython.NAME),
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.setenv("PACKAGE", str(tmp_path / "package"))
    monkeypatch.setattr(libpython, "_owner", lambda: "3.1-2")
    return tmp_path / "package"


def asked(tmp_path: Path) -> list[str]:
    """What apt-get was asked, without options."""
    lines = (tmp_path / "asked").read_text().splitlines()
    return [" ".join(word for word in line.split() if not word.startswith("-o")) for line in lines]


def test_this_python_is_served() -> None:
    """Of the Python that runs the tests, where it has one."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python has no shared library")
    folder = libpython.find_library()
    assert (folder / libpython.NAME).is_file()
    assert libpython.why_not(folder / libpython.NAME) is None


def test_a_library_of_the_same_build_is_taken(lacking: Path) -> None:
    compiled(lacking / libpython.NAME, sys.version, ())
    assert libpython.find_library() == lacking


def test_one_of_another_build_is_taken_where_it_has_what_the_interpreter_has_built_in(lacking: Path) -> None:
    compiled(lacking / libpython.NAME, f"{RELEASE} (main, Jan  1 2000, 00:00:00) [cc]")
    assert libpython.find_library() == lacking


@pytest.mark.parametrize(
    ("version", "modules", "reason"),
    [
        ("3.1.4 (main)", sys.builtin_module_names, f"is of Python 3.1.4 and must be of {RELEASE}"),
        (f"{RELEASE} (x)", sys.builtin_module_names[1:], f"is of another build of Python {RELEASE}: it must have "),
    ],
)
def test_one_that_does_not_fit_is_refused(
    version: str, modules: tuple[str, ...], reason: str, lacking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compiled(lacking / libpython.NAME, version, modules)
    monkeypatch.setattr(libpython, "_owner", lambda: None)
    said = libpython.why_not(library)
    assert said is not None
    assert said.startswith(reason)
    with pytest.raises(ServerError) as caught:
        libpython.find_library()
    assert f"{library} {reason}" in str(caught.value)


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / libpython.NAME).write_text("text")
    said = libpython.why_not(tmp_path / libpython.NAME)
    assert said is not None
    assert said.startswith("cannot be loaded (")
    assert "\n" not in said


def test_it_is_fetched_once(apt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled(apt, sys.version)
    kept = libpython.find_library()
    assert kept.parent == settings.library_cache() == tmp_path / "cache" / "insync"
    assert [file.name for file in kept.iterdir()] == [libpython.NAME]
    assert capsys.readouterr().err == f"{FETCHING}{kept}\n"
    assert libpython.find_library() == kept
    assert capsys.readouterr().err == ""
    assert asked(tmp_path) == [f"download libpython{libpython._MINOR}=3.1-2"]


def test_a_package_that_does_not_fit_is_not_kept(apt: Path, tmp_path: Path) -> None:
    compiled(apt, "3.1.4 (main)")
    with pytest.raises(ServerError, match=rf"the package's library is of Python 3\.1\.4 and must be of {RELEASE}"):
        libpython.find_library()
    assert not settings.library_cache().exists()


def test_a_refused_fetch_says_what_to_type(apt: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError) as caught:
        libpython.find_library()
    minor = libpython._MINOR
    assert str(caught.value) == (
        f"Triton's Python backend needs {libpython.NAME} of Python {RELEASE}: there is none here; apt-get did not bring it "
        f"(E: Unable to reach anything): type 'apt install libpython{minor}' as root"
    )
    names = (f"libpython{minor}", f"libpython{minor}t64")
    exact, newest = ([f"download {name}{end}" for name in names] for end in ("=3.1-2", ""))
    assert asked(tmp_path) == [*exact, "update", *exact, *newest]  # nothing is ever installed


def test_a_python_of_no_package_asks_nobody(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libpython, "_owner", lambda: None)
    with pytest.raises(ServerError) as caught:
        libpython.find_library()
    assert str(caught.value) == (
        f"Triton's Python backend needs {libpython.NAME} of Python {RELEASE}: there is none here; apt-get is not asked, as "
        "this Python came with no Debian or Ubuntu package: use a Python that has one, as uv's do: "
        f"'uv venv --python {libpython._MINOR}'"
    )
    assert not (tmp_path / "asked").exists()


def test_a_cache_that_cannot_be_written(apt: Path, tmp_path: Path) -> None:
    compiled(apt, sys.version)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ServerError, match=r"cache/insync/python-\S+ cannot be written: Not a directory"):
        libpython.find_library()


def test_debians_python_gets_its_own_from_a_package(tmp_path: Path) -> None:
    """Real apt-get and dpkg, on an archive in a folder: what a bare Debian does, without a network."""
    if not all(map(shutil.which, ("apt-get", "dpkg-deb", "dpkg-query"))) or not DEBIAN.exists():
        pytest.skip("this is no Debian with Python")
    python = DEBIAN.resolve().name
    package = f"lib{python}"
    query = ["dpkg-query", "-W", "-f", "${Version} ${Architecture} ${Status}", package]
    found = subprocess.run(query, capture_output=True, text=True)
    files = subprocess.run(["dpkg-query", "-L", package], capture_output=True, text=True).stdout.split()
    library = [file for file in files if file.endswith(f"{package}.so.1.0")]
    if found.returncode != 0 or not found.stdout.endswith(" installed") or not library:
        pytest.skip("Debian's Python has no shared library here to make a package of")
    version, architecture, *_ = found.stdout.split()

    built = tmp_path / "built"
    (built / "DEBIAN").mkdir(parents=True)
    control = (
        f"Package: {package}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: InSync\nDescription: x\n"
    )
    (built / "DEBIAN" / "control").write_text(control)
    (built / "usr" / "lib").mkdir(parents=True)
    shutil.copy(library[0], built / "usr" / "lib" / f"{package}.so.1.0")
    archive = tmp_path / "archive"
    archive.mkdir()
    subprocess.run(["dpkg-deb", "-Znone", "--build", built, archive / "x.deb"], check=True, capture_output=True)
    content = (archive / "x.deb").read_bytes()
    listed = f"{control}Filename: ./x.deb\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    (archive / "Packages").write_text(listed)
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{archive} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "/dev/null"; '
        "#clear APT::Update;\n"  # the machine's own hooks
        'APT::Sandbox::User "root";\n'  # who may read this test's folder
    )
    code = (
        "import ctypes.util; from insync.ensemble.server import libpython; libpython._folders = lambda: iter(()); "
        "ctypes.util.find_library = lambda name: None; print(libpython.find_library())"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(ROOT / "ensemble")]),
        "XDG_CACHE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
    }
    environment["APT_CONFIG"] = str(tmp_path / "apt.conf")
    done = subprocess.run([DEBIAN, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "fetching it with apt-get, once, into " in done.stderr
    kept = Path(done.stdout.strip()) / f"{package}.so.1.0"
    assert kept.is_relative_to(tmp_path / "insync")
    assert kept.read_bytes() == Path(library[0]).read_bytes()
