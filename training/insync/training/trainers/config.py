"""The settings of a training run in one TOML file, with a table for each stage. `insync train settings` prints all defaults."""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from insync.training.trainers.mouth_reader import ReaderOptions
from insync.training.trainers.occlusion import OcclusionOptions
from insync.training.trainers.renderer import RendererOptions
from insync.training.trainers.speech import SpeechOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "training.toml"  # in a run folder: the settings of that run
_STAGES = ("speech", "reader", "occlusion", "renderer")


@dataclass(frozen=True)
class Shares:
    """Shares of the minutes of `insync train all` for each stage; they must add up to 1.

    Attributes:
        speech: audio projection layer and audio mapping network.
        reader: mouth reader, which is a loss of the renderer.
        occlusion: occlusion branch, which keeps what covers or surrounds the mouth.
        renderer: encoders, alignment network, inpainter.
    """

    speech: float = 0.07
    reader: float = 0.05
    occlusion: float = 0.08
    renderer: float = 0.8

    def __post_init__(self) -> None:
        total = sum(getattr(self, stage) for stage in _STAGES)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}; must add up to 1")


@dataclass(frozen=True)
class Config:
    """All settings of a training run except for its data and its duration.

    Attributes:
        seed: random seed of the initial weights and of all random draws.
    """

    seed: int = 0
    shares: Shares = field(default_factory=Shares)
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    reader: ReaderOptions = field(default_factory=ReaderOptions)
    occlusion: OcclusionOptions = field(default_factory=OcclusionOptions)
    renderer: RendererOptions = field(default_factory=RendererOptions)


def read(path: Path) -> Config:
    """Read a settings file; settings that it omits have their defaults.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not TOML, or has an unknown setting or a value that is not allowed; the message names it.
    """
    try:
        config: Config = _build(Config, tomllib.loads(path.read_text(encoding="utf-8")), "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def write(config: Config, path: Path) -> None:
    """Write all settings, so that a run can be repeated after the defaults have changed."""
    path.write_text(text(config), encoding="utf-8")


def text(config: Config) -> str:
    """Format all settings as TOML, each with its meaning as a comment."""
    lines = ["# Settings of `insync train`. A file may omit any of them; omitted settings have their defaults."]
    lines += _lines(config)
    for name in ("shares", *_STAGES):
        table = getattr(config, name)
        lines += ["", f"# {(inspect.getdoc(table) or '').splitlines()[0]}", f"[{name}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def differences(old: Config, new: Config) -> list[str]:
    """List the settings in which two configurations differ, as "[stage] name = old → new"."""
    found = [f"seed = {old.seed} → {new.seed}"] if old.seed != new.seed else []
    for name in ("shares", *_STAGES):
        before, after = getattr(old, name), getattr(new, name)
        for one in fields(before):
            a, b = getattr(before, one.name), getattr(after, one.name)
            if a != b:
                found.append(f"[{name}] {one.name} = {json.dumps(a)} → {json.dumps(b)}")
    return found


def _lines(table: Any) -> list[str]:
    """Format the settings of one table; their meaning comes from the docstring of its class."""
    explained = dict(re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(table) or "", re.MULTILINE))
    lines = []
    for one in fields(table):
        value = getattr(table, one.name)
        if isinstance(value, (bool, int, float, str, tuple)):  # otherwise it is a table
            meaning = re.sub(r"\s+", " ", explained.get(one.name, ""))
            lines.append(f"{one.name} = {json.dumps(value)}" + (f"  # {meaning}" if meaning else ""))
    return lines


def _build(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    """Create the dataclass `kind` from the values of a TOML table, with every name and value checked."""
    known = {one.name: one for one in fields(kind)}
    hints = get_type_hints(kind)
    given = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{where}{name}: no such setting; must be one of {', '.join(known)}")
        if known[name].default is MISSING:
            if not isinstance(value, dict):
                raise ValueError(f"{name} is {json.dumps(value)}; it must be a table: [{name}]")
            given[name] = _build(hints[name], value, f"[{name}] ")
        else:
            given[name] = _checked(f"{where}{name}", value, known[name].default)
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{where.strip() or 'settings'}: {error}") from error


def _checked(name: str, value: Any, default: Any) -> Any:
    """Return the value if it has the default's type and range: no setting may be negative, and counts must be at least 1."""
    if isinstance(default, tuple):
        if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        raise ValueError(f"{name} is {value!r}; it must be a list of strings, not empty")
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    if isinstance(default, int):
        least = 0 if name == "seed" else 1
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    raise ValueError(f"{name} is {value!r}; it must be a number of at least 0")
