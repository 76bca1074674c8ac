"""A frame's steps, as the process that runs them joined gets them. Only the standard library is imported: see `insync.ensemble.repository.fused`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of a frame.

    Attributes:
        model: its name.
        backend: Triton's name for what runs it.
        folder: of the model.
        config: the model's, as Triton gives it to a Python backend.
        inputs: the model's tensor → the ensemble's.
        outputs: the ensemble's tensor → the model's.
    """

    model: str
    backend: str
    folder: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]


def needed(steps: Sequence[Step], wanted: Collection[str]) -> list[Step]:
    """Of these steps, in their order, those that these tensors depend on."""
    tensors, found = set(wanted), []
    for step in reversed(steps):
        if tensors & step.outputs.keys():
            found.append(step)
            tensors |= set(step.inputs.values())
    return found[::-1]
