"""Mouth reader: the lip shape that a picture of a mouth shows. Trained on real frames, then frozen as the renderer's judge."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.spec import MOUTH
from insync.network.blocks import Residual, activation, conv


class MouthReader(nn.Module):
    """Regresses the pose-free lip shape from mouth pixels.

    Its features also serve as the perceptual distance (Johnson et al., 2016), in place of a network that would have to be downloaded.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 3 * width, 4 * width)
        self.layers = nn.ModuleList(
            [nn.Sequential(conv(a, b, stride=2), activation(), Residual(b)) for a, b in pairwise(widths)]
        )
        self.out = nn.Linear(4 * width * 4 * 4, MOUTH)

    def forward(self, mouth: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mouth [B, 3, 112, 112] in [0, 1] → lip shape relative to the mean resting mouth [B, 12], and the features of every layer."""
        # At half size: how wide a mouth stands open needs no more, and the judge is asked three times a step.
        features, maps = F.avg_pool2d(mouth * 2 - 1, 2), []
        for layer in self.layers:
            features = layer(features)
            maps.append(features)
        return self.out(features.flatten(1)), maps
