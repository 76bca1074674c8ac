"""FID and FVD: the distance between the distributions of dubbed and filmed pictures, or clips.

Both are the Fréchet distance between two Gaussians fitted to features (Heusel et al., 2017; Unterthiner et al., 2019). The features
are those of published networks, which are not included in InSync and never downloaded: the user gives their files. These must be
the TorchScript files that the evaluations of StyleGAN and StyleGAN-V use, or others with the same signature:

    FID: Inception,   uint8 [N, 3, H, W], return_features=True → float32 [N, F]
    FVD: I3D,         float32 [N, 3, T, H, W] in [0, 255], rescale=True, resize=True, return_features=True → float32 [N, F]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import sqrtm

Picture = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]

CLIP_FRAMES = 16  # length of a clip for FVD
BATCH = 16
MIN_SAMPLES = 2
MISSING = (
    "FID and FVD are not measured: their published feature networks are not included in InSync and not downloaded. If you have them, "
    "give their files: --fid-network inception-2015-12-05.pt --fvd-network i3d_torchscript.pt (TorchScript)."
)


def frechet_distance(a: Doubles, b: Doubles) -> float:
    """Compute the Fréchet distance of the Gaussians fitted to features float64 [N, F] and [M, F]; NaN for fewer than two of either."""
    if min(len(a), len(b)) < MIN_SAMPLES:
        return float("nan")
    covariances = [np.atleast_2d(np.cov(one, rowvar=False)) for one in (a, b)]
    # With few samples the product is singular; the added term is far below the reported precision.
    root = sqrtm(covariances[0] @ covariances[1] + 1e-9 * np.eye(a.shape[1]))
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))
    return float(max(distance, 0.0))


class FeatureNetwork:
    """A published feature network.

    Args:
        path: TorchScript file.
        of_clips: whether it is for FVD, which takes 16 frames at once, or for FID.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not TorchScript.
    """

    def __init__(self, path: Path, of_clips: bool) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path.name}: no such feature network")
        try:
            self._network: Any = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"{path.name} is not a TorchScript file: {str(error).splitlines()[0]}") from error
        self._of_clips = of_clips

    @torch.no_grad()
    def features(self, takes: Iterable[Picture]) -> Doubles:
        """Compute features float64 [N, F] of takes uint8 [T, H, W, 3]: of each frame, or of each complete group of 16 frames."""
        found = []
        for take in takes:
            planes = torch.from_numpy(np.ascontiguousarray(take.transpose(0, 3, 1, 2)))
            if self._of_clips:
                whole = len(planes) // CLIP_FRAMES * CLIP_FRAMES
                clips = planes[:whole].unflatten(0, (-1, CLIP_FRAMES)).transpose(1, 2).float() if whole else planes[:0]
                found += [
                    self._network(part, rescale=True, resize=True, return_features=True)
                    for part in (clips.split(1) if whole else ())
                ]
            else:
                found += [self._network(part, return_features=True) for part in planes.split(BATCH)]
        if not found:
            return np.zeros((0, 1))
        return np.asarray(torch.cat([one.flatten(1) for one in found]).double().numpy())


@dataclass(frozen=True)
class Networks:
    """The files of published feature networks for FID and FVD."""

    fid: Path | None = None
    fvd: Path | None = None

    def load(self) -> dict[str, FeatureNetwork]:
        """Load the networks that are given, by name."""
        return {
            name: FeatureNetwork(path, of_clips=name == "fvd")
            for name, path in (("fid", self.fid), ("fvd", self.fvd))
            if path is not None
        }


def distances(conditions: dict[str, list[Picture]], real: list[Picture], network: FeatureNetwork) -> dict[str, float]:
    """Compute the Fréchet distance of every condition from what was filmed, over all clips together.

    Args:
        conditions: results of each condition, uint8 [T, 256, 256, 3] each.
        real: the filmed crops.
        network: feature network of FID or FVD.
    """
    truth = network.features(real)
    return {condition: frechet_distance(network.features(results), truth) for condition, results in conditions.items()}
