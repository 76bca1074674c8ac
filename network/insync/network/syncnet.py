"""SyncNet: do these mouths and this sound belong together? Used in training and evaluation only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from insync.ensemble.spec import MEL_BANDS, MEL_FRAMES
from insync.network.blocks import activation

MOUTH_FRAMES = 5
EMBEDDING = 128


class SyncNet(nn.Module):
    """Two towers onto one sphere (Chung & Zisserman, 2016; contrastive over the batch as in Oord et al., 2018).

    The picture tower sees five consecutive mouths at half size, the sound tower the audio window of the middle one.
    """

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), activation())

        def sound(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv1d(inputs, outputs, 3, stride, 1), nn.BatchNorm1d(outputs), activation())

        self.picture = nn.Sequential(
            layer(3 * MOUTH_FRAMES, 32),
            layer(32, 64),
            layer(64, 96),
            layer(96, 128),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, EMBEDDING),
        )
        self.sound = nn.Sequential(
            sound(MEL_BANDS, 128, 1),
            sound(128, 128, 2),
            sound(128, 128, 2),
            nn.Flatten(),
            nn.Linear(128 * MEL_FRAMES // 4, EMBEDDING),
        )

    def forward(self, mouths: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mouths [B, 15, 56, 56] in [0, 1] (five frames of RGB), log-mel [B, 80, 40] → two unit vectors [B, 128]."""
        return F.normalize(self.picture(mouths * 2 - 1), dim=1), F.normalize(self.sound(mel), dim=1)
