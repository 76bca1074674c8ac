"""Alignment network: the transformation of each reference channel to the head's pose and the target mouth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.core.spec import CHANNELS, IDENTITY, MOUTH, POSE, REFERENCES, STYLE
from insync.network.blocks import activation, mlp

SCALE_RANGE = 0.35  # of the logarithm
ROTATION_RANGE = 0.5  # radians
SHIFT_RANGE = 0.4  # of half the window
# Weight of each dimension of the mouth code in the similarity: about the share of its standard deviation in lip movement.
LIKENESS = (1.0, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05)
SHARPNESS = 4.0  # initial sharpness of the choice among references
# Initial extra distance of a reference whose mouth is less open than the target: it does not show the mouth's inside.
STRETCHING = 2.0


class Alignment(nn.Module):
    """Predicts AdaAT's per-channel similarity (Zhang et al., 2023) and the decoder's style from pose, identity and mouth code.

    The style's first five entries are the references' weights: attention (Vaswani et al., 2017) whose keys are the references'
    mouth codes, so that from the first training step on the most similar mouth is copied.
    """

    likeness: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("likeness", torch.tensor(LIKENESS), persistent=False)
        self.sharpness = nn.Parameter(torch.tensor([SHARPNESS]))
        self.stretching = nn.Parameter(torch.tensor([STRETCHING]))
        self.body = nn.Sequential(mlp(POSE + IDENTITY + MOUTH, 256, 256), activation())
        self.affine = nn.Linear(256, 4 * CHANNELS)
        nn.init.normal_(self.affine.weight, std=0.01)
        nn.init.zeros_(self.affine.bias)
        self.preference = nn.Linear(256, REFERENCES)
        nn.init.normal_(self.preference.weight, std=0.01)
        nn.init.zeros_(self.preference.bias)
        self.style = nn.Linear(256, STYLE - REFERENCES)

    def forward(self, pose: Tensor, identity: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Predict transformations and style.

        Pose [B, 32], identity [B, 128], mouth code [B, 12] → affine [B, 160, 4] (scale, rotation, tx, ty), style [B, 128].
        """
        hidden = self.body(torch.cat([pose, identity, code], dim=1))
        raw = torch.tanh(self.affine(hidden)).reshape(-1, CHANNELS, 4)
        scale, rotation, shift = raw[..., :1], raw[..., 1:2], raw[..., 2:]
        affine = torch.cat([torch.exp(SCALE_RANGE * scale), ROTATION_RANGE * rotation, SHIFT_RANGE * shift], dim=2)
        shown = identity[:, : REFERENCES * MOUTH].reshape(-1, REFERENCES, MOUTH)
        apart = shown - code[:, None]
        distance = ((apart * self.likeness) ** 2).sum(2)
        distance = distance + self.stretching * torch.relu(-apart[..., 0]) ** 2
        weights = torch.softmax(self.preference(hidden) - self.sharpness * distance, dim=1)
        return affine, torch.cat([weights, self.style(hidden)], dim=1)
