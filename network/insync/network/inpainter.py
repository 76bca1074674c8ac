"""The inpainter: paints the mouth region from what surrounds it, the aligned references and the style."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.ensemble.spec import CHANNELS, CROP_SIZE, OCCLUSION_CHANNELS, SOURCE_CHANNELS, STYLE
from insync.network import mask
from insync.network.blocks import Residual, StyledResidual, activation, conv

FINE = 96  # channels at a quarter of the crop's resolution
COARSE = 112  # at an eighth


class Inpainter(nn.Module):
    """A styled U-Net over the patch's window of the crop (decoder of DINet, Zhang et al., 2023, with FiLM instead of its plain blocks).

    Nothing is computed outside the window: alpha is 0 there.
    """

    feather: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "feather",
            mask.feather()[..., mask.ROWS[0] : mask.ROWS[1], mask.COLUMNS[0] : mask.COLUMNS[1]],
            persistent=False,
        )
        self.join = conv(SOURCE_CHANNELS - OCCLUSION_CHANNELS + CHANNELS, FINE)
        self.fine = StyledResidual(FINE, STYLE)
        self.down = conv(FINE, COARSE, stride=2)
        self.coarse = nn.ModuleList([StyledResidual(COARSE, STYLE), StyledResidual(COARSE, STYLE)])
        self.up = conv(COARSE, FINE)
        self.merged = StyledResidual(FINE, STYLE)
        self.to_half = nn.Sequential(conv(FINE, 4 * 48), nn.PixelShuffle(2), activation())
        self.half_body = Residual(48)
        self.to_full = nn.Sequential(
            conv(48, 4 * 16), nn.PixelShuffle(2), activation(), conv(16, 16), activation(), conv(16, 3)
        )
        self.alpha = nn.Sequential(conv(OCCLUSION_CHANNELS, 16), activation(), conv(16, 1))
        nn.init.constant_(self.alpha[2].bias, 3.0)  # type: ignore[arg-type]  # mouths are bare, mostly
        self.act = activation()

    def forward(self, source: Tensor, aligned: Tensor, style: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Paints the window of the crop given by `mask.ROWS` and `mask.COLUMNS`.

        Args:
            source: [B, 64, 64, 64].
            aligned: [B, 96, 64, 64].
            style: [B, 128].

        Returns:
            Colours [B, 3, 144, 192] in [0, 1]; alpha [B, 1, 144, 192] in [0, 1]; logits [B, 1, 144, 192] that the mouth is bare.
        """
        rows, columns = slice(mask.ROWS[0] // 4, mask.ROWS[1] // 4), slice(mask.COLUMNS[0] // 4, mask.COLUMNS[1] // 4)
        seen = SOURCE_CHANNELS - OCCLUSION_CHANNELS
        source, aligned = source[:, :, rows, columns], aligned[:, :, rows, columns]
        fine = self.fine(self.act(self.join(torch.cat([source[:, :seen], aligned], dim=1))), style)
        coarse = self.act(self.down(fine))
        for block in self.coarse:
            coarse = block(coarse, style)
        risen = F.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest")
        merged = self.merged(self.act(fine + risen), style)
        colours = torch.sigmoid(self.to_full(self.half_body(self.to_half(merged))))
        bare = F.interpolate(self.alpha(source[:, seen:]), scale_factor=4.0, mode="bilinear", align_corners=False)
        return colours, torch.sigmoid(bare) * self.feather, bare


def to_patch(colours: Tensor, alpha: Tensor) -> Tensor:
    """The window as a patch of the whole crop: uint8 [B, 256, 256, 4], RGBA, alpha straight."""
    window = torch.cat([colours, alpha], dim=1)
    pad = (mask.COLUMNS[0], CROP_SIZE - mask.COLUMNS[1], mask.ROWS[0], CROP_SIZE - mask.ROWS[1])
    whole = F.pad(window, pad)
    return torch.round(whole * 255).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
