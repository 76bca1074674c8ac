"""The inpainter: paints the mouth region from what surrounds it, the aligned references and the style."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.ensemble.spec import (
    CHANNELS,
    CROP_SIZE,
    REFERENCE_CHANNELS,
    REFERENCES,
    SEEN_CHANNELS,
    STYLE,
)
from insync.network import mask
from insync.network.blocks import Residual, StyledResidual, activation, conv

FINE = 80  # channels at a quarter of the crop's resolution
COARSE = 112  # at an eighth
HALF = 48  # at half
ALL = 48  # channels that carry what all references have in common


class Inpainter(nn.Module):
    """A styled U-Net over the patch's window of the crop (decoder of DINet, Zhang et al., 2023, with FiLM instead of its plain blocks).

    The weighted reference comes in twice: at the beginning, and, past the U-Net, where its detail only has to be enlarged.
    """

    feather: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("feather", mask.window(mask.feather()), persistent=False)
        self.everything = conv(CHANNELS, ALL, kernel=1)
        self.join = conv(SEEN_CHANNELS + ALL + REFERENCE_CHANNELS, FINE)
        self.fine = StyledResidual(FINE, STYLE)
        self.down = conv(FINE, COARSE, stride=2)
        self.coarse = nn.ModuleList([StyledResidual(COARSE, STYLE), StyledResidual(COARSE, STYLE)])
        self.up = conv(COARSE, FINE)
        self.merged = StyledResidual(FINE, STYLE)
        # Sub-pixel convolutions (Shi et al., 2016), none at full size: a quarter of the work for the same picture.
        self.to_half = nn.Sequential(
            conv(FINE + REFERENCE_CHANNELS, 4 * HALF, kernel=1), nn.PixelShuffle(2), activation()
        )
        self.half_body = Residual(HALF)
        self.to_full = nn.Sequential(conv(HALF, 4 * 3), nn.PixelShuffle(2))
        nn.init.normal_(self.to_full[0].weight, std=0.02)  # type: ignore[arg-type]
        self.act = activation()

    def forward(self, source: Tensor, aligned: Tensor, style: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Paints the window of the crop.

        Args:
            source: [B, 49, 36, 40].
            aligned: [B, 160, 36, 40].
            style: [B, 128]; its first 5 entries weigh the references.

        Returns:
            Colours [B, 3, 144, 160] in [0, 1]; alpha [B, 1, 144, 160] in [0, 1]; logits [B, 1, 144, 160] that the mouth is bare.
        """
        batch, _, height, width = aligned.shape
        each = aligned.reshape(batch, REFERENCES, REFERENCE_CHANNELS, height, width)
        chosen = (each * style[:, :REFERENCES, None, None, None]).sum(1)
        common = self.act(self.everything(aligned))
        fine = self.fine(self.act(self.join(torch.cat([source[:, :SEEN_CHANNELS], common, chosen], dim=1))), style)
        coarse = self.act(self.down(fine))
        for block in self.coarse:
            coarse = block(coarse, style)
        risen = F.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest")
        merged = self.merged(self.act(fine + risen), style)
        half = self.half_body(self.to_half(torch.cat([merged, chosen], dim=1)))
        colours = torch.sigmoid(self.to_full(half))
        bare = F.interpolate(source[:, SEEN_CHANNELS:], scale_factor=4.0, mode="bilinear", align_corners=False)
        return colours, torch.sigmoid(bare) * self.feather, bare


def to_patch(colours: Tensor, alpha: Tensor) -> Tensor:
    """The window as a patch of the whole crop: uint8 [B, 256, 256, 4], RGBA, alpha straight."""
    window = torch.cat([colours, alpha], dim=1)
    pad = (mask.COLUMNS[0], CROP_SIZE - mask.COLUMNS[1], mask.ROWS[0], CROP_SIZE - mask.ROWS[1])
    whole = F.pad(window, pad)
    return torch.round(whole * 255).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
