"""SyncNet: measures whether mouths and sound are in sync. Used only in curation, training and evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.spec import MEL_BANDS, MEL_FRAMES
from insync.network.blocks import activation

MOUTH_FRAMES = 5
MOUTH_SIZE = 56  # pixels: the mouth region of the crop (`mask.MOUTH_ROWS`, `mask.MOUTH_COLUMNS`) at half size
FRAME_S = 0.04  # between two of the five mouths
EMBEDDING = 128
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class SyncNet(nn.Module):
    """Two towers with unit embeddings (Chung & Zisserman, 2016; contrastive over the batch as in Oord et al., 2018).

    The picture tower sees five consecutive mouths at half size, the sound tower the audio window of the middle one. Mouths are
    converted to grey and normalised in mean and contrast: skin colour and lighting carry no information about speech.
    """

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), activation())

        def sound(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv1d(inputs, outputs, 3, stride, 1), nn.BatchNorm1d(outputs), activation())

        self.picture = nn.Sequential(
            layer(MOUTH_FRAMES, 32),
            layer(32, 64),
            layer(64, 96),
            layer(96, 128),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128 * 4 * 4, EMBEDDING),
        )
        self.sound = nn.Sequential(
            sound(MEL_BANDS, 128, 1),
            sound(128, 128, 2),
            sound(128, 128, 2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128 * MEL_FRAMES // 4, EMBEDDING),
        )

    def forward(self, mouths: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Embed mouths [B, 15, 56, 56] in [0, 1] (five RGB frames) and log-mel [B, 80, 40] → two unit vectors [B, 128]."""
        return self.seen(grey(mouths)), self.embed_audio(mel)

    def seen(self, mouths: Tensor) -> Tensor:
        """Embed five grey mouths [B, 5, 56, 56] in [0, 1] → unit vectors [B, 128]."""
        level = mouths.mean((1, 2, 3), keepdim=True)
        contrast = mouths.std((1, 2, 3), keepdim=True)
        return F.normalize(self.picture((mouths - level) / (contrast + 0.02)), dim=1)

    def embed_audio(self, mel: Tensor) -> Tensor:
        """Embed log-mel windows [B, 80, 40] → unit vectors [B, 128]."""
        return F.normalize(self.sound(mel), dim=1)


def grey(mouths: Tensor) -> Tensor:
    """Convert RGB frames stacked along the channels to luma: [B, 3 T, H, W] → [B, T, H, W]."""
    frames = mouths.unflatten(1, (-1, 3))
    return torch.einsum("btchw,c->bthw", frames, frames.new_tensor(LUMA))
