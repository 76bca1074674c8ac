"""Audio projection layer: from a log-mel window to a speech embedding."""

from __future__ import annotations

from torch import Tensor, nn

from insync.core.spec import MEL_BANDS, MEL_FRAMES, SPEECH
from insync.network.blocks import activation


class AudioProjection(nn.Module):
    """Convolutions over time with all bands as channels, then over the whole window (cf. the audio encoder of Wav2Lip, Prajwal et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv1d(inputs, outputs, 3, stride, 1), nn.BatchNorm1d(outputs), activation())

        self.body = nn.Sequential(
            layer(MEL_BANDS, 128, 1),
            layer(128, 128, 2),
            layer(128, 128, 1),
            layer(128, 160, 2),
            layer(160, 160, 1),
            nn.Dropout(0.2),
        )
        self.out = nn.Sequential(nn.Linear(160 * MEL_FRAMES // 4, SPEECH), activation())

    def forward(self, mel: Tensor) -> Tensor:
        """Encode log-mel windows [B, 80, 40], silence at -1, as speech embeddings [B, 256]."""
        embedding: Tensor = self.out(self.body(mel).flatten(1))
        return embedding
