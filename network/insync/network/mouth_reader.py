"""Mouth reader: estimates the lip shape from a picture of a mouth. Trained on real frames, then frozen for the renderer's losses."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.spec import MOUTH
from insync.network.blocks import Residual, activation, conv


class MouthReader(nn.Module):
    """Regresses the pose-free lip shape from mouth pixels.

    Its features also give the perceptual distance (Johnson et al., 2016), instead of a network that would have to be downloaded.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 3 * width, 4 * width)
        self.layers = nn.ModuleList(
            [nn.Sequential(conv(a, b, stride=2), activation(), Residual(b)) for a, b in pairwise(widths)]
        )
        self.out = nn.Linear(4 * width * 4 * 4, MOUTH)

    def forward(self, mouth: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Estimate lip shapes relative to the mean resting mouth.

        Mouth [B, 3, 112, 112] in [0, 1] → lip shape [B, 12], and the features of every layer.
        """
        # At half size, which is enough for the mouth aperture: a training step runs this network three times.
        features, maps = F.avg_pool2d(mouth * 2 - 1, 2), []
        for layer in self.layers:
            features = layer(features)
            maps.append(features)
        return self.out(features.flatten(1)), maps
