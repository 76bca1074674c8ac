"""The interface of every runtime's session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_DTYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "UINT8": np.uint8}


Arrays = dict[str, NDArray[Any]]


class Session(Protocol):
    """One loaded graph.

    Attributes:
        inputs, outputs: names of its tensors.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """Compute these outputs of one batch."""
