"""The whole network, and the graphs in which it is served."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.network.adaat import adaat
from insync.network.alignment import Alignment
from insync.network.audio_mapping import AudioMapping
from insync.network.audio_projection import AudioProjection
from insync.network.inpainter import Inpainter, to_patch
from insync.network.reference_encoder import ReferenceEncoder
from insync.network.source_encoder import SourceEncoder


class LipSync(nn.Module):
    """Every component that serving needs. Training composes them differently: the renderer learns from codes of real frames."""

    def __init__(self) -> None:
        super().__init__()
        self.source = SourceEncoder()
        self.reference = ReferenceEncoder()
        self.projection = AudioProjection()
        self.mapping = AudioMapping()
        self.alignment = Alignment()
        self.inpainter = Inpainter()

    def render(
        self, crop: Tensor, reference: Tensor, identity: Tensor, code: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Paints mouths for given codes: what the renderer is trained as.

        Args:
            crop: [B, 3, 256, 256] in [0, 1].
            reference: [B, 160, 36, 40].
            identity: [B, 128].
            code: [B, 12].
            hidden: as `SourceEncoder.forward`.

        Returns:
            As `Inpainter.forward`.
        """
        source, pose = self.source(crop, hidden)
        affine, style = self.alignment(pose, identity, code)
        window: tuple[Tensor, Tensor, Tensor] = self.inpainter(source, adaat(reference, affine), style)
        return window

    def code(self, mel: Tensor) -> Tensor:
        """Log-mel [B, 80, 40] → mouth code [B, 12]."""
        code: Tensor = self.mapping(self.projection(mel))
        return code


class EncoderGraph(nn.Module):
    """`lipsync_encoder`: CROP, MEL → SOURCE, POSE, SPEECH."""

    def __init__(self, network: LipSync) -> None:
        super().__init__()
        self.source, self.projection = network.source, network.projection

    def forward(self, crop: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        source, pose = self.source(crop)
        return source, pose, self.projection(mel)


class ReferenceGraph(nn.Module):
    """`lipsync_reference`: CROPS, CODES → REFERENCE, IDENTITY."""

    def __init__(self, network: LipSync) -> None:
        super().__init__()
        self.reference = network.reference

    def forward(self, crops: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.reference(crops, codes)
        return result


class MixerGraph(nn.Module):
    """`lipsync_mixer`: POSE, IDENTITY, SPEECH → AFFINE, STYLE, MOUTH."""

    def __init__(self, network: LipSync) -> None:
        super().__init__()
        self.mapping, self.alignment = network.mapping, network.alignment

    def forward(self, pose: Tensor, identity: Tensor, speech: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.mapping(speech)
        affine, style = self.alignment(pose, identity, code)
        return affine, style, code


class DecoderGraph(nn.Module):
    """`lipsync_decoder`: SOURCE, ALIGNED, STYLE → PATCH, uint8."""

    def __init__(self, network: LipSync) -> None:
        super().__init__()
        self.inpainter = network.inpainter

    def forward(self, source: Tensor, aligned: Tensor, style: Tensor) -> Tensor:
        colours, alpha, _ = self.inpainter(source, aligned, style)
        return to_patch(colours, alpha)


def parameters_mb(network: nn.Module) -> float:
    """Size of the weights in FP32, in megabytes."""
    return sum(parameter.numel() for parameter in network.parameters()) * torch.finfo(torch.float32).bits / 8 / 1e6
