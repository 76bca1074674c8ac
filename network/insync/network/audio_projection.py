"""Audio projection layer: from log-mel to a speech embedding. It is the student that has learned from the teacher's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.core.spec import MEL_BANDS, MEL_FRAMES, SPEECH
from insync.network.blocks import activation

CHANNELS = 192
STRIDE = 2  # log-mel frames between two embeddings of `sequence`: 20 ms, as between two features of Whisper


class _Block(nn.Module):
    """A convolution over time without padding, added to its input's inner part (He et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(CHANNELS, CHANNELS, 3), nn.BatchNorm1d(CHANNELS)
        self.act = activation()

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.act(features[..., 1:-1] + self.norm(self.conv(features)))
        return result


class AudioProjection(nn.Module):
    """Convolutions over time without any padding, so that the log-mel of a whole recording gives what its windows give, at a fraction of the cost.

    A window of 40 frames is exactly what one embedding depends on. Training runs on sequences, serving on windows.
    """

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, kernel: int, stride: int) -> list[nn.Module]:
            return [nn.Conv1d(inputs, CHANNELS, kernel, stride), nn.BatchNorm1d(CHANNELS), activation()]

        self.front = nn.Sequential(*layer(MEL_BANDS, 3, 1), *layer(CHANNELS, 4, STRIDE))
        self.blocks = nn.Sequential(*[_Block() for _ in range(7)])
        left = (MEL_FRAMES - 4) // STRIDE - 2 * len(self.blocks)  # frames that the blocks leave of a window
        self.out = nn.Sequential(nn.Dropout(0.1), nn.Conv1d(CHANNELS, SPEECH, left), activation())

    def sequence(self, mel: Tensor) -> Tensor:
        """Encode log-mel [B, 80, 40 + 2 (N - 1)], silence at -1, as embeddings [B, N, 256] of its windows, which begin 20 ms apart."""
        embeddings: Tensor = self.out(self.blocks(self.front(mel)))
        return embeddings.transpose(1, 2)

    def forward(self, mel: Tensor) -> Tensor:
        """Encode log-mel windows [B, 80, 40] as speech embeddings [B, 256]."""
        return torch.flatten(self.out(self.blocks(self.front(mel))), 1)
