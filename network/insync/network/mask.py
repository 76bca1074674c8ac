"""The mouth region of the crop: the area hidden from the encoder, the patch's window, and the patch's feathered edge."""

from __future__ import annotations

import torch
from torch import Tensor

from insync.core.spec import CROP_SIZE, WINDOW_COLUMNS, WINDOW_ROWS

# An ellipse from the base of the nose to below the chin of an open mouth, within the cheeks of a turned head; in crop pixels.
CENTRE = (127.5, 186.0)
RADII = (67.0, 64.0)
FEATHER = 16.0  # pixels inside the edge over which alpha rises from 0 to 1
ROWS, COLUMNS = WINDOW_ROWS, WINDOW_COLUMNS  # the patch's window: the only part of the crop that the decoder computes
# The input of the local discriminator and of the mouth reader.
MOUTH_ROWS = (128, 240)
MOUTH_COLUMNS = (72, 184)


def distance() -> Tensor:
    """Return the approximate signed distance to the ellipse's edge in pixels, positive inside: float32 [256, 256]."""
    y, x = torch.meshgrid(torch.arange(CROP_SIZE), torch.arange(CROP_SIZE), indexing="ij")
    u, v = (x - CENTRE[0]) / RADII[0], (y - CENTRE[1]) / RADII[1]
    radius = torch.sqrt(u**2 + v**2)
    slope = torch.sqrt((u / RADII[0]) ** 2 + (v / RADII[1]) ** 2) / radius.clamp(min=1e-3)
    return ((1 - radius) / slope.clamp(min=1e-6)).float()


def hole() -> Tensor:
    """Return a mask, 1 in the area hidden from the encoder: float32 [1, 1, 256, 256]."""
    return (distance() > 0).float()[None, None]


def feather() -> Tensor:
    """Return the maximum alpha of a patch: 0 outside the hole, rising smoothly to 1 inside; float32 [1, 1, 256, 256]."""
    t = (distance() / FEATHER).clamp(0, 1)
    return (t * t * (3 - 2 * t))[None, None]


def window(picture: Tensor) -> Tensor:
    """Cut the patch's window, [..., 144, 160], out of a crop-sized tensor, [..., 256, 256]."""
    return picture[..., ROWS[0] : ROWS[1], COLUMNS[0] : COLUMNS[1]]


def feature_window(features: Tensor) -> Tensor:
    """Cut out the same window at a quarter of the resolution: [..., 64, 64] → [..., 36, 40]."""
    return features[..., ROWS[0] // 4 : ROWS[1] // 4, COLUMNS[0] // 4 : COLUMNS[1] // 4]
