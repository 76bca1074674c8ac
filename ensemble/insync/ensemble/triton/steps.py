"""The steps of the fused pipeline, as its process receives them. Standard library only: see `insync.ensemble.repository.fused`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of the pipeline.

    Attributes:
        model: the model's name.
        backend: name of its Triton backend.
        folder: the model's folder.
        config: the model's config, as Triton passes it to a Python backend.
        inputs: the model's tensor → the ensemble's tensor.
        outputs: the ensemble's tensor → the model's tensor.
    """

    model: str
    backend: str
    folder: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]


def needed(steps: Sequence[Step], wanted: Collection[str]) -> list[Step]:
    """Return the steps that the wanted tensors depend on, in order."""
    tensors, found = set(wanted), []
    for step in reversed(steps):
        if tensors & step.outputs.keys():
            found.append(step)
            tensors |= set(step.inputs.values())
    return found[::-1]
