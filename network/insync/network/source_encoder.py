"""Non-facial feature encoder: the surroundings of the mouth, the head's pose, and occluders of the mouth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.spec import POSE, SEEN_CHANNELS
from insync.network import mask
from insync.network.blocks import Residual, activation, conv

MARGIN = 3  # of the 64 x 64 map


class SourceEncoder(nn.Module):
    """Encodes the crop with the speaking part of the face masked out, as the source branch of DINet does (Zhang et al., 2023).

    A second, narrow branch sees the whole crop and predicts where the mouth region is bare: neither occluded (hands, microphones) nor
    outside the face (hair, background). That map drives the patch's alpha and the mask. Nothing else of the branch reaches the
    colours, otherwise the decoder could copy the mouth that it must replace.
    """

    hole: Tensor

    def __init__(self) -> None:
        super().__init__()
        seen = SEEN_CHANNELS
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
        self.occluder_stem = nn.Sequential(conv(3, 16, stride=2), activation(), conv(16, 32, stride=2), activation())
        self.occluder_wide = nn.Sequential(
            conv(32, 48, stride=2), activation(), conv(48, 64, stride=2), activation(), Residual(64), conv(64, 64, stride=2),
            activation(), Residual(64), nn.Upsample(scale_factor=2.0), conv(64, 32), activation(),
        )  # fmt: skip
        self.occluder_head = nn.Sequential(conv(32 + 32, 32, kernel=1), activation(), conv(32, 1))
        nn.init.constant_(self.occluder_head[2].bias, 2.0)  # type: ignore[arg-type]  # most mouths are bare
        self.rise = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)

    def forward(self, crop: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode a crop.

        Args:
            crop: [B, 3, 256, 256] in [0, 1].
            hidden: [B, 1, 256, 256], 1 where the speaking face must be hidden; by default where `occluders` finds it bare.

        Returns:
            Source features of the window [B, 49, 36, 40], the last of them the logit that the mouth is bare; pose descriptor [B, 32].
        """
        bare = self.occluders(crop)
        if hidden is None:
            # Slightly more than the bare area, so that no edge of the original mouth stays visible.
            wide = F.max_pool2d(torch.sigmoid(bare), MARGIN, stride=1, padding=MARGIN // 2)
            hidden = self.rise((2 * wide).clamp(max=1))
        hole = self.hole * hidden
        near = self.stem(torch.cat([(crop * 2 - 1) * (1 - hole), hole], dim=1))
        pose = self.pose_head(self.pose(near).flatten(1))
        seen = self.body(mask.feature_window(near))
        return torch.cat([seen, mask.feature_window(bare)], dim=1), pose

    def occluders(self, crop: Tensor) -> Tensor:
        """Predict where the mouth region is bare: crop [B, 3, 256, 256] in [0, 1] → logits [B, 1, 64, 64]."""
        near = self.occluder_stem(crop * 2 - 1)
        result: Tensor = self.occluder_head(torch.cat([near, self.rise(self.occluder_wide(near))], dim=1))
        return result
