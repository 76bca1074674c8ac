"""Imports go one way, between packages and inside them, and there are no import cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each may import packages of earlier lines only.
PACKAGES = (
    ("core",),
    ("client", "network"),
    ("ensemble",),
    ("training", "cli", "model_repository"),
    ("export", "loadtest"),
    ("benchmarks",),
)
INSIDE = {
    "ensemble": (("models",), ("inference",), ("triton",), ("repository",), ("server",)),
    "training": (("data",), ("metrics",), ("curation", "trainers"), ("evaluation",), ("cli",)),
    "client": (("transport",), ("streaming",), ("provenance",), ("media",)),
}
MAX_FILES = 16  # of a package; a larger one should be split. The network has one for each component
MAX_LINES = 500  # of a file


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if "insync" in parts[:2]:
        parts = parts[parts.index("insync") :]
    return ".".join(parts).removesuffix(".__init__")


def sources() -> dict[str, Path]:
    """Return every module of the project except tests, samples and examples: name → file."""
    folders = [folder for line in PACKAGES for folder in line]
    return {module_of(path): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


SOURCES = sources()


def imported(path: Path) -> Iterator[str]:
    """Return the project's modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SOURCES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in within if name in SOURCES)
            if node.module in SOURCES and not all(name in SOURCES for name in within):
                yield node.module


GRAPH = {name: set(imported(path)) - {name} for name, path in SOURCES.items()}


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "insync" else parts[0]


def upward(lines: tuple[tuple[str, ...], ...], edges: Iterator[tuple[str, str, str, str]]) -> list[str]:
    """Return the imports that do not go to an earlier line: edges are (importer, its part, imported, its part)."""
    order = {part: at for at, line in enumerate(lines) for part in line}
    return [
        f"{one} imports {other}"
        for one, part, other, theirs in edges
        if part in order and theirs in order and part != theirs and order[theirs] >= order[part]
    ]


def test_packages_import_one_way() -> None:
    edges = (
        (one, package_of(one), other, package_of(other)) for one, others in sorted(GRAPH.items()) for other in others
    )
    assert upward(PACKAGES, edges) == []


@pytest.mark.parametrize("package", INSIDE)
def test_inside_a_package_imports_go_one_way(package: str) -> None:
    def part(module: str) -> str:
        names = module.split(".")
        return names[2] if names[:2] == ["insync", package] and len(names) > 3 else ""

    edges = ((one, part(one), other, part(other)) for one, others in sorted(GRAPH.items()) for other in others)
    assert upward(INSIDE[package], edges) == []


def test_no_import_cycle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as exc:
        pytest.fail(" → ".join(exc.args[1]))


def test_the_check_detects_a_wrong_import() -> None:
    """Otherwise the tests above would also pass if they found no imports."""
    assert "insync.core.spec" in GRAPH["insync.client.client"]
    assert sum(map(len, GRAPH.values())) > 300
    edge = ("insync.core.spec", "core", "insync.client.dub", "client")
    assert upward(PACKAGES, iter([edge])) == ["insync.core.spec imports insync.client.dub"]


def test_packages_and_files_stay_small() -> None:
    folders: dict[Path, int] = {}
    for path in SOURCES.values():
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {str(folder.relative_to(ROOT)): n for folder, n in folders.items() if n > MAX_FILES} == {}
    lines = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


def test_packages_below_the_first_level_are_empty() -> None:
    """A process that imports one module of a package must not import its others: the process of `lipsync_frame` has no gRPC."""
    inner = [path for path in SOURCES.values() if path.name == "__init__.py" and "insync" in path.parts]
    full = [path for path in inner if path.parent.parent.name != "insync" and ast.parse(path.read_text()).body[1:]]
    assert full == []
