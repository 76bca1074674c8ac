"""Local and global discriminators: classify mouths and faces as real or rendered. Used only in training."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.spec import MOUTH
from insync.network import mask
from insync.network.blocks import activation, conv

DETAIL = 8.0  # amplification


class Discriminator(nn.Module):
    """A patch discriminator (Isola et al., 2017), conditioned on the mouth code by projection (Miyato & Koyama, 2018).

    Without the condition a closed mouth is real for any code, and the mouth learns not to open. The picture is input twice, the
    second time only its finest detail, amplified: with the plain picture, discriminators did not detect blur (after 60 steps
    against a fixed renderer their scores of filmed and rendered mouths differed by 0.4, with the detail by 3.0).
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (6, width, 2 * width, 4 * width, 4 * width)
        self.layers = nn.ModuleList([conv(a, b, kernel=4, stride=2) for a, b in pairwise(widths)])
        self.out = conv(widths[-1], 1)
        self.project = nn.Linear(MOUTH, widths[-1])
        self.act = activation()

    def forward(self, picture: Tensor, code: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Score pictures [B, 3, H, W] in [0, 1] with mouth codes [B, 12] → realness [B, 1, h, w], features of every layer."""
        detail = DETAIL * (picture - F.avg_pool2d(picture, 3, 1, 1, count_include_pad=False))
        features, maps = torch.cat([picture * 2 - 1, detail], dim=1), []
        for layer in self.layers:
            features = self.act(layer(features))
            maps.append(features)
        match = (features.mean((2, 3)) * self.project(code)).sum(1)
        return self.out(features) + match[:, None, None, None], maps


def local_view(window: Tensor) -> Tensor:
    """Return the local discriminator's input, the mouth [B, 3, 112, 112] in the decoder's window [B, 3, 144, 160]."""
    top, left = mask.MOUTH_ROWS[0] - mask.ROWS[0], mask.MOUTH_COLUMNS[0] - mask.COLUMNS[0]
    height, width = (r[1] - r[0] for r in (mask.MOUTH_ROWS, mask.MOUTH_COLUMNS))
    return window[..., top : top + height, left : left + width]


def global_view(crop: Tensor, window: Tensor) -> Tensor:
    """Return the global discriminator's input, the crop [B, 3, 256, 256] with the window in it, at half size [B, 3, 128, 128]."""
    whole = torch.cat(
        [
            crop[:, :, : mask.ROWS[0]],
            torch.cat(
                [crop[:, :, mask.ROWS[0] :, : mask.COLUMNS[0]], window, crop[:, :, mask.ROWS[0] :, mask.COLUMNS[1] :]],
                dim=3,
            ),
        ],
        dim=2,
    )
    return F.avg_pool2d(whole, 2)
