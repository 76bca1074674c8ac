"""Audio mapping network: from a speech embedding to a mouth code."""

from __future__ import annotations

from torch import Tensor, nn

from insync.core.spec import MOUTH, SPEECH
from insync.network.blocks import activation


class AudioMapping(nn.Module):
    """A small perceptron, trained on landmarks of real speech (cf. the audio-to-landmark stage of MakeItTalk, Zhou et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(SPEECH, 128), activation(), nn.Dropout(0.2), nn.Linear(128, MOUTH))

    def forward(self, speech: Tensor) -> Tensor:
        """Map speech embeddings [B, 256] to mouth codes [B, 12], in standard deviations from the resting mouth."""
        code: Tensor = self.body(speech)
        return code
