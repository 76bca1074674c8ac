"""The common parts of all training stages: a time budget, a CSV log, and checkpoints that survive a kill."""

from __future__ import annotations

import csv
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

Clock = Callable[[], float]  # seconds


class Budget:
    """The time budget of a stage, counted over all its resumed runs.

    Args:
        minutes: total training time.
        spent_s: seconds spent by earlier runs.
        clock: the source of time; `time.process_time` makes budgets comparable on a busy machine.
    """

    def __init__(self, minutes: float, spent_s: float = 0.0, clock: Clock = time.monotonic) -> None:
        self._total_s, self._spent_s, self._clock, self._began = minutes * 60, spent_s, clock, clock()

    @property
    def spent_s(self) -> float:
        """Seconds of training so far, earlier runs included."""
        return self._spent_s + self._clock() - self._began

    @property
    def share(self) -> float:
        """Used share of the budget: 0 at the start, 1 at the end."""
        return min(1.0, self.spent_s / max(self._total_s, 1e-9))

    def steps(self, first: int, description: str) -> Iterator[tuple[int, Any]]:
        """Yield step numbers from `first` on, with the progress bar, until the time is used up."""
        with tqdm(total=round(self._total_s), unit="s", desc=description, mininterval=5) as bar:
            step = first
            while self.share < 1:
                bar.n = round(self.spent_s)
                yield step, bar
                step += 1


class Log:
    """A CSV log of training metrics, and a plot of it. It appends to the log of an earlier run; if that has other columns, it is renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new: bool | None = None

    def write(self, row: dict[str, float]) -> None:
        """Append a row; write the header first if the file is new."""
        if self._new is None:
            self._new = not self._path.exists()
            if not self._new and self._header() != list(row):
                aside = (self._path.with_suffix(f".{n}.csv") for n in itertools.count(1))
                self._path.rename(next(path for path in aside if not path.exists()))
                self._new = True
        with open(self._path, "a", newline="") as sink:
            writer = csv.DictWriter(sink, fieldnames=list(row))
            if self._new:
                writer.writeheader()
                self._new = False
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})

    def draw(self) -> None:
        """Plot all metrics so far into a PNG next to the CSV."""
        from insync.training.trainers.curves import draw  # matplotlib takes a second to load

        if self._path.exists():
            draw(self._path)

    def _header(self) -> list[str]:
        """Read the column names of the file."""
        with open(self._path, newline="") as source:
            return next(csv.reader(source), [])


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16 if the hardware supports it, else a disabled one: emulated, it is seven times slower (measured on AVX2)."""
    native = device.type == "cuda" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint to a temporary file and rename it, so that a kill leaves either the old or the new one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Load the checkpoint at `path`; None if there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Update the exponential moving average of a model's weights; the decay starts lower and grows to `decay`."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)


def cosine(share: float, warm_up: float = 0.02) -> float:
    """Return the learning rate factor: a linear warm-up, then half a cosine down to 2 %."""
    if share < warm_up:
        return share / warm_up + 1e-3
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))
