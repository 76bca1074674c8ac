"""README and docs are true: links lead somewhere; commands, modules, targets and code exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from insync.core import spec

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("[se]*/README.md")]
)
COMMANDS = {"dub", "twin", "serve", "verify", "probe", "export", "evaluate", "loadtest", "curate", "train"}
TWIN_ACTIONS = ("create", "list", "show", "rm")


def blocks(language: str) -> list[str]:
    """Return the content of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_link_targets_exist(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_modules_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    commands = set(re.findall(r"(?:`|bin/|^)insync ([a-z]+)", text, re.MULTILINE))
    assert commands <= COMMANDS
    modules = set(re.findall(r"python3? -m ((?:benchmarks|insync)[\w.]*)", text))
    assert not [name for name in modules if importlib.util.find_spec(name.rstrip(".")) is None]
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_every_page_is_linked() -> None:
    everything = "".join(page.read_text() for page in PAGES)
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in everything]


def test_the_architecture_page_names_every_folder_with_code() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/insync")}
    assert len(folders) == 8
    others = {"model_repository", "docker", "samples", "examples", "benchmarks", "tests", "packaging"}
    assert not [folder for folder in folders | others if f"\n{folder}/" not in page]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 135


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (demo|[a-z]+)\b(?= |$|`)", "\n".join(blocks("sh")) + "`make bench`"))
    assert {"demo", "test", "bench"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_python_code_imports_existing_names() -> None:
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("insync"):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def test_diagram_shows_the_ensembles_steps() -> None:
    (diagram,) = blocks("mermaid")
    shown = set(re.findall(r"\blipsync_\w+", diagram))
    assert shown == set(spec.MODELS["lipsync"].steps)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(lipsync\w*)`", README))))
def test_models_exist(name: str) -> None:
    assert name in spec.ALL_MODELS


@pytest.mark.parametrize(
    "command", ["dub", "serve", "probe", "export", "loadtest", *(f"twin {action}" for action in TWIN_ACTIONS)]
)
def test_commands_exist(command: str) -> None:
    assert f"`insync {command.split()[0]}" in README
    done = subprocess.run(
        [sys.executable, "-m", "insync.cli.main", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"insync {command}" in done.stdout
