"""The whole network, and the graphs that are served."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.network.adaat import adaat
from insync.network.alignment import Alignment
from insync.network.audio_mapping import AudioMapping
from insync.network.audio_projection import AudioProjection
from insync.network.inpainter import Inpainter, Painted, to_patch
from insync.network.placing import Placing
from insync.network.reference_encoder import ReferenceEncoder
from insync.network.source_encoder import SourceEncoder


class LipSync(nn.Module):
    """All components that serving needs. Training combines them differently: the renderer learns from codes of real frames."""

    def __init__(self) -> None:
        super().__init__()
        self.source = SourceEncoder()
        self.reference = ReferenceEncoder()
        self.projection = AudioProjection()
        self.mapping = AudioMapping()
        self.alignment = Alignment()
        self.placing = Placing()
        self.inpainter = Inpainter()

    def render(
        self,
        crop: Tensor,
        reference: Tensor,
        identity: Tensor,
        pixels: Tensor,
        reference_places: Tensor,
        places: Tensor,
        code: Tensor,
        hidden: Tensor | None = None,
    ) -> Painted:
        """Render mouths for given codes, as in the renderer's training.

        Args:
            crop: [B, 3, 256, 256] in [0, 1].
            reference: [B, 160, 36, 40].
            identity: [B, 128].
            pixels: [B, 15, 144, 160] in [0, 1].
            reference_places: [B, 5, 73, 2].
            places: [B, 73, 2].
            code: [B, 12].
            hidden: as `SourceEncoder.forward`.

        Returns:
            As `Inpainter.forward`.
        """
        source, pose = self.source(crop, hidden)
        affine, style = self.alignment(pose, identity, code)
        painted: Painted = self.inpainter(source, adaat(reference, affine), style, pixels, reference_places, places)
        return painted

    def code(self, mel: Tensor) -> Tensor:
        """Predict mouth codes [B, 12] from log-mel windows [B, 80, 40]."""
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
    """`lipsync_mixer`: POSE, IDENTITY, SPEECH, HEAD, NEUTRAL → AFFINE, STYLE, MOUTH, PLACES."""

    def __init__(self, network: LipSync) -> None:
        super().__init__()
        self.mapping, self.alignment, self.placing = network.mapping, network.alignment, network.placing

    def forward(
        self, pose: Tensor, identity: Tensor, speech: Tensor, head: Tensor, neutral: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        code = self.mapping(speech)
        affine, style = self.alignment(pose, identity, code)
        return affine, style, code, self.placing(head, neutral, code)


class DecoderGraph(nn.Module):
    """`lipsync_decoder`: SOURCE, ALIGNED, STYLE, PIXELS, REFERENCE_PLACES, PLACES → PATCH; pixels and patch uint8."""

    def __init__(self, network: LipSync) -> None:
        super().__init__()
        self.inpainter = network.inpainter

    def forward(
        self,
        source: Tensor,
        aligned: Tensor,
        style: Tensor,
        pixels: Tensor,
        reference_places: Tensor,
        places: Tensor,
    ) -> Tensor:
        painted = self.inpainter(source, aligned, style, pixels.float() * (1 / 255), reference_places, places)
        return to_patch(painted.colours, painted.alpha)


def parameters_mb(network: nn.Module) -> float:
    """Return the size of the weights in FP32, in megabytes."""
    return sum(parameter.numel() for parameter in network.parameters()) * torch.finfo(torch.float32).bits / 8 / 1e6
