"""AdaAT, the adaptive affine transformation of DINet (Zhang et al., 2023): the PyTorch reference of the CPU and CUDA kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adaat(reference: Tensor, affine: Tensor) -> Tensor:
    """Warp every channel of a feature map by its own similarity, bilinearly, with zeros beyond the edges.

    Args:
        reference: [B, C, H, W].
        affine: [B, C, 4]: scale, rotation in radians, x and y shift in half widths and half heights. The map goes from output to
            input coordinates, both in [-1, 1] with the outermost pixels' outer edges at ±1 (`align_corners=False`).

    Returns:
        [B, C, H, W].
    """
    batch, channels, height, width = reference.shape
    scale, rotation, tx, ty = affine.reshape(-1, 4).unbind(1)
    cos, sin = scale * torch.cos(rotation), scale * torch.sin(rotation)
    aspect = height / width  # rotation is in pixel space, also in non-square maps
    theta = torch.stack([torch.stack([cos, -sin * aspect, tx], 1), torch.stack([sin / aspect, cos, ty], 1)], 1)
    grid = F.affine_grid(theta, [batch * channels, 1, height, width], align_corners=False)
    planes = reference.reshape(batch * channels, 1, height, width)
    warped = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.reshape(batch, channels, height, width)
