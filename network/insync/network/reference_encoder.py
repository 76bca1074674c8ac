"""Reference encoder: features of a person's mouth, from five crops with known mouth shapes. Runs once for each twin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.core.spec import IDENTITY, MOUTH, REFERENCE_CHANNELS, REFERENCES
from insync.network import mask
from insync.network.blocks import Residual, activation, conv, mlp, pool


class ReferenceEncoder(nn.Module):
    """Encodes reference crops as in DINet (Zhang et al., 2023), but each into separate channels.

    So the mixer can weight the references by the target mouth, and the most similar one is copied instead of averaged.
    The identity descriptor begins with the references' mouth codes, which the alignment network compares with its target.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, stride=2), activation(), conv(32, 64, stride=2), activation())
        self.body = Residual(64)
        self.out = conv(64, REFERENCE_CHANNELS)
        self.look = mlp(64 + REFERENCES * MOUTH, 128, IDENTITY - REFERENCES * MOUTH)

    def forward(self, crops: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a twin.

        Args:
            crops: [B, 5, 3, 256, 256] in [0, 1].
            codes: [B, 5, 12], their mouth codes.

        Returns:
            Reference features of the window [B, 160, 36, 40], 32 channels of each crop in turn; identity descriptor [B, 128].
        """
        batch = crops.shape[0]
        features = self.body(self.stem(mask.window(crops).flatten(0, 1) * 2 - 1))
        reference = self.out(features)
        flat = codes.flatten(1)
        seen = pool(features).reshape(batch, REFERENCES, -1).mean(1)
        look = self.look(torch.cat([seen, flat], dim=1))
        return reference.reshape(batch, -1, *reference.shape[2:]), torch.cat([flat, look], dim=1)
