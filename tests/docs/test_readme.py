"""README.md is correct: its links, folders, commands and imported names exist."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from insync.core import spec

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TWIN_ACTIONS = ("create", "list", "show", "rm")


def blocks(language: str) -> list[str]:
    """Return the content of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_link_targets_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_tree_is_the_checkout() -> None:
    (tree,) = blocks("text")
    named = {line.split("/")[0] for line in tree.splitlines()}
    assert not [name for name in named if not (ROOT / name).is_dir()]
    python = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/insync")}
    assert python <= named


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
