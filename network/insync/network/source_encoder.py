"""Non-facial feature encoder: what surrounds the mouth, how the head is held, and what covers the mouth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.ensemble.spec import OCCLUSION_CHANNELS, POSE, SOURCE_CHANNELS
from insync.network import mask
from insync.network.blocks import Residual, activation, conv


class SourceEncoder(nn.Module):
    """Encodes the crop with the mouth masked out, as the source branch of DINet does (Zhang et al., 2023).

    A second, narrow branch sees the whole crop and tells what lies over the mouth (hands, microphones). Its channels come last in
    SOURCE and reach the alpha alone, never the colours: otherwise the decoder could copy the mouth that it must replace.
    """

    hole: Tensor

    def __init__(self) -> None:
        super().__init__()
        seen = SOURCE_CHANNELS - OCCLUSION_CHANNELS
        self.register_buffer("hole", mask.hole(), persistent=False)
        self.stem = nn.Sequential(conv(4, 24, stride=2), activation(), conv(24, seen, stride=2), activation())
        self.body = Residual(seen)
        self.pose = nn.Sequential(
            conv(seen, 64, stride=2),
            activation(),
            conv(64, 64, stride=2),
            activation(),
            conv(64, 64, stride=2),
            activation(),
        )
        self.pose_head = nn.Linear(64 * 8 * 8, POSE)
        narrow = OCCLUSION_CHANNELS
        self.occluder_stem = nn.Sequential(conv(3, 16, stride=2), activation(), conv(16, 24, stride=2), activation())
        self.occluder_wide = nn.Sequential(
            conv(24, 32, stride=2), activation(), conv(32, 32, stride=2), activation(), conv(32, 32), activation()
        )
        self.occluder_out = conv(24 + 32, narrow)
        self.rise = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """Crop [B, 3, 256, 256] in [0, 1] → source features of the window [B, 64, 36, 40], pose descriptor [B, 32]."""
        hole = self.hole.expand(crop.shape[0], -1, -1, -1)
        centred = crop * 2 - 1
        features = self.body(self.stem(torch.cat([centred * (1 - hole), hole], dim=1)))
        pose = self.pose_head(self.pose(features).flatten(1))
        return mask.feature_window(torch.cat([features, self.occluders(crop)], dim=1)), pose

    def occluders(self, crop: Tensor) -> Tensor:
        """What covers the mouth: crop [B, 3, 256, 256] in [0, 1] → [B, 8, 64, 64]."""
        near = self.occluder_stem(crop * 2 - 1)
        result: Tensor = self.occluder_out(torch.cat([near, self.rise(self.occluder_wide(near))], dim=1))
        return result
