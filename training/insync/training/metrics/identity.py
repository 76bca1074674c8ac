"""Identity preservation of a dub, as a similarity of appearance. It replaces face recognition, whose networks are not included in InSync.

It compares the appearance of the region that the patch covers: features of a frozen copy of the reference encoder's first layers, which
learned to represent the appearance of a person's mouth, averaged over the region and over frames, each divided by its standard deviation
over the training footage. The metric is the cosine of two such descriptors. On takes from the training footage, two halves of one take
reach 0.99 (median), different takes of one clip 0.94, different people -0.07 (a tenth of them 0.54 and more); a take of the same clip is
ranked above a take of another person in 98 of 100 pairs.

It is sensitive to colours, skin, beard, lips and their small-scale shape. It does not recognize people: two people with similar skin, lips
and light look alike to it, one person in other light looks different. It is not comparable with the CSIM of published tables.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.network import mask
from insync.network.reference_encoder import ReferenceEncoder

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

WEIGHTS = Path(__file__).parent / "weights" / "likeness.npz"
PART = 32  # crops at once


class Likeness:
    """A descriptor of a person's appearance around the mouth.

    Args:
        weights: `.npz` file written by `freeze`; by default the one included in InSync, so that results are comparable.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._encoder = ReferenceEncoder().eval().requires_grad_(False)
        with np.load(weights) as data:
            state = {name: torch.from_numpy(data[name].astype(np.float32)) for name in data.files}
        self._mean, self._spread = state.pop("mean").numpy(), state.pop("spread").numpy()
        self._encoder.load_state_dict(state, strict=False)

    def describe(self, crops: Picture) -> Floats:
        """Describe the appearance of one person in crops uint8 [N, 256, 256, 3] by a unit vector float32 [64]."""
        mean = features(self._encoder.stem, self._encoder.body, crops).mean(0)
        centred = (mean - self._mean) / self._spread
        return np.asarray(centred / np.linalg.norm(centred), np.float32)

    def alike(self, a: Picture, b: Picture) -> float:
        """Return the cosine of two descriptors: 1 for equal appearance, about 0 for different people."""
        return float(self.describe(a) @ self.describe(b))


@torch.no_grad()
def features(stem: nn.Module, body: nn.Module, crops: Picture) -> Floats:
    """Compute features float32 [N, 64] of crops uint8 [N, 256, 256, 3], averaged over the region that the patch may cover."""
    weight = F.avg_pool2d(mask.window(mask.feather()), 4)
    parts = []
    for start in range(0, len(crops), PART):
        planes = torch.from_numpy(np.ascontiguousarray(crops[start : start + PART])).permute(0, 3, 1, 2).float() / 255
        maps: Tensor = body(stem(mask.window(planes) * 2 - 1))
        parts.append((maps * weight).sum((2, 3)) / weight.sum())
    return torch.cat(parts).numpy()


def freeze(encoder: ReferenceEncoder, takes: list[Picture], path: Path) -> None:
    """Write the first layers of a reference encoder, and the mean and standard deviation of their features over takes, for `Likeness`."""
    looks = np.stack([features(encoder.stem, encoder.body, take).mean(0) for take in takes])
    layers = {name: value for name, value in encoder.state_dict().items() if name.startswith(("stem.", "body."))}
    np.savez_compressed(
        path,
        mean=looks.mean(0),
        spread=looks.std(0) + 1e-6,
        **{name: value.numpy().astype(np.float16) for name, value in layers.items()},
    )
