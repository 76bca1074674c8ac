"""The shared library of the running Python, which Triton's Python stub loads and Debian's `python3` lacks.

Two libraries of one name can be of different builds: one with fewer built-in modules than the interpreter does not find them in
this Python's standard library, which ships them built in. So each is asked before it is used, the machine's own ones too.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from insync.core import settings
from insync.core.errors import ServerError

_MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
NAME = f"libpython{_MINOR}.so.1.0"
_TIMEOUT_S = 300.0
_UNKNOWN = ("Unable to locate package", "Can't find a source", "was not found", "Can't select candidate")  # apt's words
# Run in a process of its own: prints what the library says of itself. RTLD_DEEPBIND lets it use its own symbols, not this process's.
_ASK = """
import ctypes, json, os, sys
class Module(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("start", ctypes.c_void_p)]
library = ctypes.CDLL(sys.argv[1], mode=os.RTLD_DEEPBIND)
library.Py_GetVersion.restype = ctypes.c_char_p
table = ctypes.POINTER(Module).in_dll(library, "PyImport_Inittab")
names = []
while table[len(names)].name:
    names.append(table[len(names)].name.decode())
print(json.dumps([library.Py_GetVersion().decode(), names]))
"""


class _NotFetched(Exception):
    """The system's package manager did not bring the library; the text says why."""


def find_library() -> Path:
    """Find the folder of this Python's shared library, and fetch the library first where the machine lacks it.

    Returns:
        A folder for the dynamic linker.

    Raises:
        ServerError: there is none that fits this Python, and it cannot be fetched.
    """
    kept = settings.library_cache() / _build()
    refused = []
    for folder in (*_folders(), kept):
        if (folder / NAME).is_file():
            reason = why_not(folder / NAME)
            if reason is None:
                return folder
            refused.append(f"{folder / NAME} {reason}")
    if ctypes.util.find_library(f"python{_MINOR}"):
        reason = why_not(Path(NAME))
        if reason is None:
            return Path(sys.base_prefix, "lib")  # the linker finds it by itself
        refused.append(f"the linker's {NAME} {reason}")
    package = _owner()
    try:
        _fetch(package, kept)
    except _NotFetched as exc:
        found = "; ".join(dict.fromkeys(refused)) or "there is none here"
        do = (
            f"type 'apt install libpython{_MINOR}' as root"
            if package is not None
            else f"use a Python that has one, as uv's do: 'uv venv --python {_MINOR}'"
        )
        raise ServerError(
            f"Triton's Python backend needs {NAME} of Python {platform.python_version()}: {found}; {exc}: {do}"
        ) from exc
    return kept


def why_not(library: Path) -> str | None:
    """Ask a shared library of Python whether it can stand in for this interpreter.

    Returns:
        None where it can, or what it is instead.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-IS", "-c", _ASK, str(library)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            lines = done.stderr.splitlines()
            return f"cannot be loaded ({lines[-1] if lines else f'exit code {done.returncode}'})"
        version, modules = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        return f"cannot be loaded ({exc})"
    if version == sys.version:
        return None  # of the very same build
    release, own = version.split()[0], sys.version.split()[0]
    if release != own:
        return f"is of Python {release} and must be of {own}"
    missing = sorted(set(sys.builtin_module_names) - set(modules))
    if missing:
        return f"is of another build of Python {own}: it must have {', '.join(missing[:3])} built in"
    return None


def _folders() -> Iterator[Path]:
    """Where this Python's shared library usually is."""
    for folder in (sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")):
        if folder:
            yield Path(folder)
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        yield Path("/usr/lib", multiarch)
        yield Path("/lib", multiarch)


def _build() -> str:
    """Name the running Python's build: one that replaces it asks for a library of its own."""
    return f"python-{platform.python_version()}-{hashlib.sha256(sys.version.encode()).hexdigest()[:12]}"


def _owner() -> str | None:
    """Tell the version of the Debian package that this interpreter came with, None if it came with none."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    try:
        owners = _run(["dpkg-query", "-S", interpreter]).splitlines()
        return _run(["dpkg-query", "-W", "-f", "${Version}", owners[-1].rpartition(":")[0]]).strip() or None
    except (_NotFetched, IndexError):
        return None


def _fetch(package: str | None, kept: Path) -> None:
    """Get the library of the interpreter's own package version from apt, without installing anything and without root."""
    if package is None:
        raise _NotFetched("apt-get is not asked, as this Python came with no Debian or Ubuntu package")
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise _NotFetched(f"there is no {program} to get it with")
    sys.stderr.write(f"insync: this Python has no {NAME}: fetching it with apt-get, once, into {kept}\n")
    sys.stderr.flush()
    reasons = []
    with tempfile.TemporaryDirectory(prefix="insync-libpython-") as name:
        work = Path(name)
        work.chmod(0o755)  # run by root, apt downloads as a user of its own
        plain = ["-oAPT::Cmd::Pattern-Only=true"]  # a name with a dot is no regular expression that finds others
        own = [*plain, f"-oDir::State::Lists={work / 'lists'}", f"-oDir::Cache={work / 'cache'}"]
        own += ["-oAcquire::http::Timeout=20", "-oAcquire::https::Timeout=20", "-oAcquire::Languages=none"]
        for folder in ("lists", "cache/archives"):
            (work / folder / "partial").mkdir(parents=True)
        # The machine's package lists may be missing or old: then our own, and there the release's newest revision too.
        for options, versions in ((plain, (f"={package}",)), (own, (f"={package}", ""))):
            try:
                if options is own:
                    _run(["apt-get", *options, "update"], work)
            except _NotFetched as exc:
                reasons.append(str(exc))
            for version in versions:
                for library in (f"libpython{_MINOR}", f"libpython{_MINOR}t64"):
                    try:
                        _keep(_download(options, library, version, work), kept)
                    except _NotFetched as exc:
                        reasons.append(str(exc))
                    else:
                        return
    # Why a package's name or version is unknown stands before.
    telling = [reason for reason in reasons if not any(text in reason for text in _UNKNOWN)] or reasons
    raise _NotFetched(f"apt-get did not bring it ({telling[-1]})")


def _download(options: Sequence[str], name: str, version: str, work: Path) -> Path:
    """Download one package, and take the library out of it."""
    _run(["apt-get", *options, "download", name + version], work)
    packages = sorted(work.glob(f"{name}_*.deb"))
    if not packages:
        raise _NotFetched(f"apt-get brought no package {name}")
    unpacked = work / packages[0].stem
    _run(["dpkg-deb", "-x", str(packages[0]), str(unpacked)], work)
    packages[0].unlink()
    found = sorted(unpacked.rglob(NAME))
    if not found:
        raise _NotFetched(f"{packages[0].name} has no {NAME}")
    return found[0]


def _keep(library: Path, kept: Path) -> None:
    """Put a fetched library where the next server finds it, if it fits."""
    reason = why_not(library)
    if reason is not None:
        raise _NotFetched(f"the package's library {reason}")
    try:
        kept.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=NAME, dir=kept)
        os.close(handle)
        shutil.copyfile(library, name)
        os.chmod(name, 0o644)
        os.replace(name, kept / NAME)  # whole or not at all: another server may do the same now
    except OSError as exc:
        raise _NotFetched(f"{kept} cannot be written: {exc.strerror}") from exc


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    """Run a program of the package manager, and return its output."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as exc:
        raise _NotFetched(f"{command[0]} took longer than {_TIMEOUT_S:g} s") from exc
    except OSError as exc:
        raise _NotFetched(f"{command[0]} cannot be started: {exc.strerror}") from exc
    # `apt-get update` that reaches no archive warns of it, and exits with 0.
    lines = [line for line in done.stderr.splitlines() if line.startswith(("E: ", "W: Failed to fetch"))]
    if done.returncode != 0 or lines:
        raise _NotFetched((lines or done.stderr.splitlines() or [f"exit code {done.returncode}"])[0].strip())
    return done.stdout
