"""Alignment network: how each reference channel must be moved so that it fits the head's pose and the mouth to be spoken."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.ensemble.spec import CHANNELS, IDENTITY, MOUTH, POSE, STYLE
from insync.network.blocks import activation, mlp

SCALE_RANGE = 0.35  # of the logarithm
ROTATION_RANGE = 0.5  # radians
SHIFT_RANGE = 0.4  # of half the crop


class Alignment(nn.Module):
    """Predicts AdaAT's per-channel similarity (Zhang et al., 2023) and the decoder's style from pose, identity and mouth code."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(mlp(POSE + IDENTITY + MOUTH, 256, 256), activation())
        self.affine = nn.Linear(256, 4 * CHANNELS)
        nn.init.normal_(self.affine.weight, std=0.01)
        nn.init.zeros_(self.affine.bias)
        self.style = nn.Linear(256, STYLE)

    def forward(self, pose: Tensor, identity: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Pose [B, 32], identity [B, 128], mouth code [B, 12] → affine [B, 96, 4] (scale, rotation, tx, ty), style [B, 128]."""
        hidden = self.body(torch.cat([pose, identity, code], dim=1))
        raw = torch.tanh(self.affine(hidden)).reshape(-1, CHANNELS, 4)
        scale, rotation, shift = raw[..., :1], raw[..., 1:2], raw[..., 2:]
        affine = torch.cat([torch.exp(SCALE_RANGE * scale), ROTATION_RANGE * rotation, SHIFT_RANGE * shift], dim=2)
        return affine, self.style(hidden)
