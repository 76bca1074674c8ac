"""README.md and the other documents are correct: their links, commands, options, modules, diagrams and code exist."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from insync.core import spec

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
MAX_README_LINES = 135
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / f"{folder}/README.md" for folder in ("examples", "samples")),
        *(ROOT / "docs").glob("*.md"),
    ]
)
# The changelog also names what existed in the past.
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
SUBCOMMANDS = ("twin", "export", "train")
README_COMMANDS = ("dub", "twin", "serve", "probe", "verify", "loadtest", "curate", "make demo", "make test")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """Return the content of a document's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def code(path: Path) -> tuple[str, ...]:
    """Return all code of a document: its inline code, and the lines of its shell blocks without comments."""
    inline = re.findall(r"`([^`\n]+)`", prose(path))
    lines = "\n".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    return (*inline, *(re.sub(r"(^|\s)#.*", "", line) for line in lines))


@cache
def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def parser_of(command: str) -> str:
    """Return what `insync COMMAND --help` prints; empty if there is no such command."""
    done = subprocess.run(
        [sys.executable, "-m", "insync.cli", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    usage = f"usage: insync {command}".rstrip()
    return done.stdout if done.returncode == 0 and done.stdout.startswith(usage) else ""


@cache
def python_sources() -> dict[str, Path]:
    """Return the modules of the namespace package `insync`: name → file."""
    found = {}
    for path in ROOT.glob("*/insync/**/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts[1:]
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Return the `insync` commands that a document names, each with the options that stand after it."""
    for text in code(path):
        for part in re.split(r"[;&|]", text):
            # At the start, after a variable, in `.venv/bin`, or after the container's image; not Helm's `insync`.
            found = re.search(
                r"(?:^|^[A-Z_]+=\S+ |bin/|insync:[\w.]+\s+)insync ([a-z]+)(?: ([a-z]+)\b)?(.*)", part.strip()
            )
            if found:
                sub = found[2] if found[1] in SUBCOMMANDS and found[2] else ""
                yield f"{found[1]} {sub}".rstrip(), re.findall(r"\s(--[a-z][a-z-]*)", found[3])


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_link_targets_exist(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)) if "://" not in link]
    broken = []
    for link in links:
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken
    assert links or path.parent != ROOT / "docs"


def test_every_page_is_linked_from_the_readme() -> None:
    links = set(re.findall(r"\]\(([^)#\s]+)", prose(README)))
    pages = {name_of(path) for path in DOCUMENTS if path != README}
    assert pages <= links


def test_tree_is_the_checkout() -> None:
    (tree,) = blocks(ROOT / "docs" / "architecture.md", "text")
    named = {line.split("/")[0] for line in tree.splitlines()}
    assert not [name for name in named if not (ROOT / name).is_dir()]
    tracked = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/insync")} <= named
    assert {"docker", "benchmarks", "samples", "examples", "packaging", "tests"} & tracked <= named


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {
        target for text in code(path) for target in re.findall(r"(?:^|\s)make (?:[A-Z_]+=\S+ )*([a-z][a-z-]*)", text)
    }
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_benchmark_modules_exist(path: Path) -> None:
    modules = {module for text in code(path) for module in re.findall(r"-m (benchmarks(?:\.\w+)+)", text)}
    for module in modules:
        source = ROOT / f"{module.replace('.', '/')}.py"
        assert source.is_file(), module
        assert '__name__ == "__main__"' in source.read_text(), module


def test_every_benchmark_is_documented() -> None:
    named = {module for text in code(ROOT / "docs/benchmarks.md") for module in re.findall(r"-m ([\w.]+)", text)}
    programs = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "benchmarks").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert programs <= named
    tables = {f"../{name_of(path)}" for path in (ROOT / "benchmarks/results").rglob("*.md")}
    assert tables <= set(re.findall(r"\]\(([^)\s]+)\)", prose(ROOT / "docs/benchmarks.md")))


@pytest.mark.parametrize("path", CURRENT, ids=name_of)
def test_named_modules_exist(path: Path) -> None:
    """`insync.a.b.name` is a module, or a name that its module defines or imports."""
    sources = python_sources()
    missing = []
    for name in {name for text in code(path) for name in re.findall(r"(?<![\w/.])insync(?:\.\w+)+", text)}:
        parts = name.split(".")
        if name in sources or any(module.startswith(f"{name}.") for module in sources):
            continue
        module = sources.get(".".join(parts[:-1]))
        if module is None or not re.search(rf"\b{parts[-1]}\b", module.read_text()):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("path", CURRENT, ids=name_of)
def test_environment_variables_exist(path: Path) -> None:
    known = (ROOT / "core/insync/core/settings.py").read_text() + (ROOT / "docker/compose.yaml").read_text()
    named = set(re.findall(r"\bINSYNC_[A-Z_]+\b", path.read_text()))
    assert not [name for name in named if not re.search(rf"\b{name}\b", known)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_python_code_imports_existing_names(path: Path) -> None:
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("insync"):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@pytest.mark.parametrize("path", CURRENT, ids=name_of)
def test_models_exist(path: Path) -> None:
    models = {name for text in code(path) for name in re.findall(r"(?<![\w/])(lipsync(?:_\w+)?)(?![\w…])", text)}
    assert models <= set(spec.ALL_MODELS)


@pytest.mark.parametrize("path", CURRENT, ids=name_of)
def test_commands_and_options_exist(path: Path) -> None:
    wrong = []
    for command, options in commands(path):
        text = parser_of(command)
        if not text:
            wrong.append(f"insync {command}")
        # `insync export --repository` comes before the subcommand.
        known = text + (parser_of(command.split()[0]) if " " in command else "")
        wrong += [f"insync {command} {option}" for option in options if not re.search(rf"{option}\b(?!-)", known)]
    assert not wrong


def test_every_command_is_documented() -> None:
    everything = set(re.findall(r"^    ([a-z]+)  ", parser_of(""), re.MULTILINE))
    assert len(everything) > 8
    assert everything <= {command.split()[0] for command, _ in commands(ROOT / "docs/cli.md")}
    for group in ("twin", "export"):
        actions = set(re.findall(r"^    ([a-z]+)  ", parser_of(group), re.MULTILINE))
        assert len(actions) > 3
        assert {f"{group} {action}" for action in actions} <= {command for command, _ in commands(ROOT / "docs/cli.md")}


def test_option_tables_name_existing_options() -> None:
    """An option that stands by itself in docs/cli.md is one of a command that its section names."""
    page = (ROOT / "docs/cli.md").read_text()
    checked, wrong = 0, []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        named = re.findall(r"\binsync ((?:twin |export |train )?[a-z]+)", section)
        known = "".join(parser_of(command) for command in dict.fromkeys(named))
        for option in re.findall(r"`(--?[a-z][a-z-]*)", section):
            checked += 1
            if not re.search(rf"{option}\b(?!-)", known):
                wrong.append(f"{section.splitlines()[0]}: {option}")
    assert checked > 30
    assert not wrong


def test_readme_names_the_commands() -> None:
    text = README.read_text()
    for command in README_COMMANDS:
        assert (command if command.startswith("make ") else f"insync {command}") in text
    assert "make demo" in blocks(README, "sh")[0]


def edges(diagram: str) -> Iterator[tuple[str, str, str]]:
    """Return the arrows of a flowchart: source, label, target; nodes are the models' names where they show one."""
    aliases = dict(re.findall(r"(\w+)\[(lipsync_\w+)", diagram))
    for line in diagram.splitlines():
        ends = re.split(r"\s*(--(?: [^>]+? --)?>)\s*", line.strip())
        for at in range(0, len(ends) - 2, 2):
            nodes = [str(ends[index]).partition("[")[0].partition("(")[0] for index in (at, at + 2)]
            one, other = (aliases.get(node, node) for node in nodes)
            yield one, str(ends[at + 1]).strip("-> "), other


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_diagram_shows_the_ensembles_steps(page: str) -> None:
    (diagram,) = blocks(ROOT / page, "mermaid")
    shown = set(re.findall(r"\blipsync_\w+", diagram))
    assert shown == set(spec.MODELS["lipsync"].steps)


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_diagrams_arrows_are_tensors(page: str) -> None:
    """An arrow between two models carries tensors that the first returns and the second takes."""
    (diagram,) = blocks(ROOT / page, "mermaid")
    between = [edge for edge in edges(diagram) if {edge[0], edge[2]} <= set(spec.MODELS)]
    assert len(between) > 8
    for one, label, other in between:
        given = {tensor.name: tensor.name.removeprefix("CHECKED_") for tensor in spec.MODELS[one].outputs}
        taken = {tensor.name for tensor in spec.MODELS[other].inputs}
        tensors = label.split(", ") if label else [name for name, plain in given.items() if plain in taken]
        assert tensors, f"{one} --> {other}"
        for name in tensors:
            assert name in given, f"{one} does not return {name}"
            assert given[name] in taken, f"{other} does not take {name}"
