"""The settings of a training, in one TOML file: a table for each stage. `insync train settings` prints it with every default."""

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

FILE = "training.toml"  # in a run folder: what it was trained with
_STAGES = ("speech", "reader", "occlusion", "renderer")


@dataclass(frozen=True)
class Shares:
    """How `insync train all` divides its minutes; they add up to 1.

    Attributes:
        speech: audio projection layer and audio mapping network.
        reader: the mouth reader that judges the renderer.
        occlusion: what lies over or beside the mouth and must stay.
        renderer: encoders, alignment network, inpainter.
    """

    speech: float = 0.07
    reader: float = 0.05
    occlusion: float = 0.08
    renderer: float = 0.8

    def __post_init__(self) -> None:
        total = sum(getattr(self, stage) for stage in _STAGES)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"they add up to {total:g}; they must add up to 1")


@dataclass(frozen=True)
class Config:
    """Everything about a training but its data and its time.

    Attributes:
        seed: of weights at the beginning and of all draws.
    """

    seed: int = 0
    shares: Shares = field(default_factory=Shares)
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    reader: ReaderOptions = field(default_factory=ReaderOptions)
    occlusion: OcclusionOptions = field(default_factory=OcclusionOptions)
    renderer: RendererOptions = field(default_factory=RendererOptions)


def read(path: Path) -> Config:
    """Reads a file of settings; what it leaves out has its default.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no TOML, or has a setting that does not exist or a value that is not allowed; the message names it.
    """
    try:
        config: Config = _build(Config, tomllib.loads(path.read_text(encoding="utf-8")), "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def write(config: Config, path: Path) -> None:
    """Writes all settings, so that a run can be repeated when defaults have changed."""
    path.write_text(text(config), encoding="utf-8")


def text(config: Config) -> str:
    """All settings as TOML, with what each means."""
    lines = ["# Settings of `insync train`, each with its default unless changed; a file may leave any of them out."]
    lines += _lines(config)
    for name in ("shares", *_STAGES):
        table = getattr(config, name)
        lines += ["", f"# {(inspect.getdoc(table) or '').splitlines()[0]}", f"[{name}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def differences(old: Config, new: Config) -> list[str]:
    """The lines of settings in which two differ: "[stage] name = old → new"."""
    found = [f"seed = {old.seed} → {new.seed}"] if old.seed != new.seed else []
    for name in ("shares", *_STAGES):
        before, after = getattr(old, name), getattr(new, name)
        for one in fields(before):
            a, b = getattr(before, one.name), getattr(after, one.name)
            if a != b:
                found.append(f"[{name}] {one.name} = {json.dumps(a)} → {json.dumps(b)}")
    return found


def _lines(table: Any) -> list[str]:
    explained = dict(re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(table) or "", re.MULTILINE))
    lines = []
    for one in fields(table):
        value = getattr(table, one.name)
        if isinstance(value, (bool, int, float, str, tuple)):  # else a table
            meaning = re.sub(r"\s+", " ", explained.get(one.name, ""))
            lines.append(f"{one.name} = {json.dumps(value)}" + (f"  # {meaning}" if meaning else ""))
    return lines


def _build(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    known = {one.name: one for one in fields(kind)}
    hints = get_type_hints(kind)
    given = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{where}{name}: no such setting; there are {', '.join(known)}")
        if known[name].default is MISSING:
            if not isinstance(value, dict):
                raise ValueError(f"{name} is {json.dumps(value)}; it is a table: [{name}]")
            given[name] = _build(hints[name], value, f"[{name}] ")
        else:
            given[name] = _checked(f"{where}{name}", value, known[name].default)
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{where.strip() or 'settings'}: {error}") from error


def _checked(name: str, value: Any, default: Any) -> Any:
    """A value of its default's type and range: none of the settings can be negative, and what is counted is at least 1."""
    if isinstance(default, tuple):
        if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        raise ValueError(f"{name} is {value!r}; it must be a list of texts")
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
    raise ValueError(f"{name} is {value!r}; it must be a number, 0 or more")
