"""Reference encoder: what a person's mouth looks like, from five crops with known mouth shapes. Runs once for each twin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.ensemble.spec import CHANNELS, IDENTITY, MOUTH, REFERENCES
from insync.network.blocks import Residual, StyledResidual, activation, conv, mlp, pool


class ReferenceEncoder(nn.Module):
    """Encodes reference crops as in DINet (Zhang et al., 2023), each together with the mouth code that it shows.

    The identity descriptor begins with the codes themselves, so that the alignment network can compare them with its target.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 24, stride=2), activation(), conv(24, 64, stride=2), activation())
        self.body = StyledResidual(64, MOUTH)
        self.fuse = nn.Sequential(conv(64 * REFERENCES, CHANNELS, kernel=1), activation(), Residual(CHANNELS))
        self.out = conv(CHANNELS, CHANNELS)
        self.down = nn.Sequential(conv(CHANNELS, 64, stride=2), activation(), conv(64, 64, stride=2), activation())
        self.look = mlp(64 + REFERENCES * MOUTH, 128, IDENTITY - REFERENCES * MOUTH)

    def forward(self, crops: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Crops [B, 5, 3, 256, 256] in [0, 1], codes [B, 5, 12] → reference features [B, 96, 64, 64], identity [B, 128]."""
        batch = crops.shape[0]
        features = self.body(self.stem(crops.flatten(0, 1) * 2 - 1), codes.flatten(0, 1))
        fused = self.fuse(features.reshape(batch, -1, features.shape[2], features.shape[3]))
        flat = codes.flatten(1)
        look = self.look(torch.cat([pool(self.down(fused)), flat], dim=1))
        return self.out(fused), torch.cat([flat, look], dim=1)
