"""The inpainter: renders the mouth region from its surroundings, the aligned references and the style."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.spec import (
    CHANNELS,
    CROP_SIZE,
    REFERENCE_CHANNELS,
    REFERENCES,
    SEEN_CHANNELS,
    STYLE,
)
from insync.network import mask
from insync.network.blocks import Residual, StyledResidual, activation, conv
from insync.network.copying import Copying

FINE = 64  # channels at a quarter of the crop's resolution
COARSE = 64  # at an eighth
HALF = 24  # at half
ALL = 48  # channels of the features of all references together


class Painted(NamedTuple):
    """The inpainter's result.

    Attributes:
        colours: [B, 3, 144, 160] in [0, 1].
        alpha: [B, 1, 144, 160] in [0, 1].
        bare: logits [B, 1, 144, 160] that the mouth region is not occluded.
        own: [B, 3, 144, 160] in [0, 1], the generated pixels.
        copied: [B, 3, 144, 160], the pixels copied from the references.
        kept: [B, 1, 144, 160] in [0, 1], the share of the copied pixels in the colours: 1 except in a mouth's inside that no
            reference shows.
        chosen: [B, 2, 5], the references copied from, one-hot in each row.
        places: [B, 2, 2, 144, 160], the position in each that a pixel was copied from.
    """

    colours: Tensor
    alpha: Tensor
    bare: Tensor
    own: Tensor
    copied: Tensor
    kept: Tensor
    chosen: Tensor
    places: Tensor


class Inpainter(nn.Module):
    """A styled U-Net over the patch's window of the crop (decoder of DINet, Zhang et al., 2023, with FiLM instead of its plain blocks).

    It warps the references' pixels to the target mouth (`Copying`), and generates the mouth's inside where no reference shows it.
    Landmarks decide where: a learned choice between the two gained nothing, and smeared photos.
    """

    feather: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("feather", mask.window(mask.feather()), persistent=False)
        self.everything = conv(CHANNELS, ALL, kernel=1)
        self.join = conv(SEEN_CHANNELS + ALL + REFERENCE_CHANNELS, FINE)
        self.fine = StyledResidual(FINE, STYLE)
        self.down = conv(FINE, COARSE, stride=2)
        self.coarse = StyledResidual(COARSE, STYLE)
        self.up = conv(COARSE, FINE)
        self.merged = StyledResidual(FINE, STYLE)
        # Sub-pixel convolutions (Shi et al., 2016), none at full size: the same picture at a quarter of the cost.
        self.to_half = nn.Sequential(
            conv(FINE + REFERENCE_CHANNELS, 4 * HALF, kernel=1), nn.PixelShuffle(2), activation()
        )
        self.copying = Copying(FINE)
        self.unshuffle = nn.PixelUnshuffle(2)
        self.beside = nn.Sequential(conv(HALF + 4 * (3 + 2), HALF), activation())
        self.half_body = Residual(HALF)
        self.to_full = nn.Sequential(conv(HALF, 4 * 3), nn.PixelShuffle(2))
        nn.init.normal_(self.to_full[0].weight, std=0.02)  # type: ignore[arg-type]
        self.act = activation()

    def forward(
        self,
        source: Tensor,
        aligned: Tensor,
        style: Tensor,
        pixels: Tensor,
        reference_places: Tensor,
        places: Tensor,
    ) -> Painted:
        """Render the window of the crop.

        Args:
            source: [B, 49, 36, 40].
            aligned: [B, 160, 36, 40].
            style: [B, 128]; its first 5 entries are the references' weights.
            pixels: [B, 15, 144, 160] in [0, 1], the references in the window.
            reference_places: [B, 5, 73, 2], their landmarks.
            places: [B, 73, 2], the target's landmarks.
        """
        batch, _, height, width = aligned.shape
        each = aligned.reshape(batch, REFERENCES, REFERENCE_CHANNELS, height, width)
        chosen = (each * style[:, :REFERENCES, None, None, None]).sum(1)
        common = self.act(self.everything(aligned))
        fine = self.fine(self.act(self.join(torch.cat([source[:, :SEEN_CHANNELS], common, chosen], dim=1))), style)
        coarse = self.coarse(self.act(self.down(fine)), style)
        risen = F.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest")
        merged = self.merged(self.act(fine + risen), style)
        copied = self.copying(merged, each, style[:, :REFERENCES], pixels, reference_places, places)
        # The lips' exact position is an input, not learned: a misplaced mouth interior shows as a red smear.
        guide = self.unshuffle(torch.cat([copied.colours, copied.from_lips], dim=1))
        half = self.to_half(torch.cat([merged, chosen], dim=1))
        half = self.half_body(self.beside(torch.cat([half, guide], dim=1)))
        own = torch.sigmoid(self.to_full(half))
        colours = (copied.colours + copied.missing * (own - copied.colours)).clamp(0, 1)
        bare = F.interpolate(source[:, SEEN_CHANNELS:], scale_factor=4.0, mode="bilinear", align_corners=False)
        alpha = torch.sigmoid(bare) * self.feather
        return Painted(colours, alpha, bare, own, copied.colours, 1 - copied.missing, copied.chosen, copied.origin)


def to_patch(colours: Tensor, alpha: Tensor) -> Tensor:
    """Pad the window to a patch of the whole crop: uint8 [B, 256, 256, 4], RGBA, straight alpha."""
    window = torch.round(torch.cat([colours, alpha], dim=1) * 255).clamp(0, 255)
    pad = (mask.COLUMNS[0], CROP_SIZE - mask.COLUMNS[1], mask.ROWS[0], CROP_SIZE - mask.ROWS[1])
    return F.pad(window, pad).permute(0, 2, 3, 1).to(torch.uint8)
