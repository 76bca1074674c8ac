"""Copying of pixels from the references: one flow for each, then a blend. Skin and teeth stay as sharp as filmed."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.spec import CROP_SIZE, REFERENCE_CHANNELS, REFERENCES
from insync.network import mask
from insync.network.blocks import activation, conv, exact
from insync.network.placing import Flow, Inside

WIDTH = 32
ENLARGE = float(CROP_SIZE // 64)  # from the features' grid to pixels
FLOW_UNIT = 0.1  # of half the window: displacement for a learned flow of 1
COPIED = 2  # references that are copied from: the most similar ones
LEAST = 1e-4  # minimum weight of each of them
LIGHT = (12, 10)  # cells of the features' grid that share one lighting correction
DECIDED = 3.0  # sharpens the choice between references: averaging several gives blur


class Copied(NamedTuple):
    """The result of `Copying`.

    Attributes:
        colours: [B, 3, 144, 160], in the target's lighting.
        chosen: [B, 2, 5], the references copied from, one-hot in each row.
        origin: [B, 2, 2, 144, 160], each pixel's position in each of them, x and y with the window's outer edges at ±1.
        missing: [B, 1, 144, 160], 1 where the reference's lips are closed and the target's are open: the copy has no mouth
            interior there.
        from_lips: [B, 2, 144, 160], distances from the lips, see `Inside`.
    """

    colours: Tensor
    chosen: Tensor
    origin: Tensor
    missing: Tensor
    from_lips: Tensor


class Copying(nn.Module):
    """Warps the references' pixels to the target mouth and blends them (appearance flow, Zhou et al., 2016).

    Landmarks give the flow to each reference; a learned flow refines it. The choice of reference and its lighting are learned.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.landmarks = Flow()
        self.inside = Inside()
        self.flow = nn.Sequential(
            conv(features + REFERENCE_CHANNELS + 2, WIDTH, kernel=1),
            activation(),
            conv(WIDTH, WIDTH),
            activation(),
            conv(WIDTH, 3),
        )
        nn.init.normal_(self.flow[4].weight, std=0.005)  # type: ignore[arg-type]
        self.colour = conv(features, 6, kernel=1)
        nn.init.zeros_(self.colour.weight)

    def forward(
        self, merged: Tensor, each: Tensor, weights: Tensor, pixels: Tensor, reference_places: Tensor, places: Tensor
    ) -> Copied:
        """Copy pixels of the references.

        Args:
            merged: [B, F, 36, 40], features of the target.
            each: [B, 5, 32, 36, 40], the aligned features of each reference.
            weights: [B, 5], the references' similarity to the target.
            pixels: [B, 15, 144, 160] in [0, 1], the references.
            reference_places: [B, 5, 73, 2], their landmarks.
            places: [B, 73, 2], the target's.
        """
        batch, _, height, width = merged.shape
        chosen, weights = _likest(weights)
        each, pixels, reference_places = (
            taken(chosen, values.reshape(batch, REFERENCES, -1)).reshape(batch, COPIED, *shape)
            for values, shape in (
                (each, each.shape[2:]),
                (pixels, (3, *pixels.shape[2:])),
                (reference_places, reference_places.shape[2:]),
            )
        )
        found = self.landmarks(places, reference_places)
        moved = found - self.landmarks.grid.reshape(height, width, 2).permute(2, 0, 1)
        known = torch.cat([merged[:, None].expand(-1, COPIED, -1, -1, -1), each, moved / FLOW_UNIT], dim=2)
        learned = self.flow(known.flatten(0, 1))
        fetched_from = found.flatten(0, 1) + FLOW_UNIT * learned[:, :2]
        preference = learned[:, 2].reshape(batch, COPIED, height, width)
        preference = DECIDED * (preference + torch.log(weights[:, :, None, None]))
        # A softmax over two, computed from their difference: one map to enlarge instead of two.
        first = torch.sigmoid(_enlarged(preference[:, :1] - preference[:, 1:]))
        fetched_from = _enlarged(fetched_from)
        fetched = sampled(pixels.flatten(0, 1), fetched_from).reshape(pixels.shape)
        # Not torch.lerp, which is exported as seven operators over the whole picture.
        copied = fetched[:, 1] + first * (fetched[:, 0] - fetched[:, 1])
        inside, from_lips, shown = self.inside(places, reference_places)
        missing = inside * (1 - shown[:, 1:] - first * (shown[:, :1] - shown[:, 1:]))
        # Lighting changes slowly over a face: on a finer grid, it would darken teeth instead of lighting the skin.
        light = self.colour(F.avg_pool2d(merged, LIGHT))
        light = F.interpolate(light, size=pixels.shape[3:], mode="bilinear", align_corners=False)
        gain, shift = light.chunk(2, dim=1)
        origin = fetched_from.reshape(batch, COPIED, 2, *pixels.shape[3:])
        return Copied(copied * torch.exp(gain) + shift, chosen, origin, missing, from_lips)


def _likest(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the references to copy, one-hot [B, 2, 5], and their weights [B, 2].

    The next reference's weight is subtracted, so that a reference enters and leaves with weight 0 and none pops up between frames.
    """
    best, index = torch.topk(weights, COPIED + 1, dim=1)
    chosen = (index[:, :COPIED, None] == torch.arange(REFERENCES, device=weights.device)).to(weights.dtype)
    return chosen, best[:, :COPIED] - best[:, COPIED:] + LEAST


@exact
def taken(chosen: Tensor, values: Tensor) -> Tensor:
    """Select the chosen [B, 2, 5] of values [B, 5, N] → [B, 2, N]."""
    return torch.matmul(chosen, values)


def sampled(pixels: Tensor, places: Tensor) -> Tensor:
    """Sample pixels [N, C, H, W] at places [N, 2, h, w] → [N, C, h, w]; edge pixels repeat outside.

    Places are x and y with the outer edges at ±1. They are clamped to the edge first: ONNX Runtime then takes a third of the time
    that it takes with border padding.
    """
    edge = torch.tensor([1 - 1 / pixels.shape[3], 1 - 1 / pixels.shape[2]]).to(places)[:, None, None]
    held = torch.minimum(torch.maximum(places, -edge), edge).permute(0, 2, 3, 1)
    return F.grid_sample(pixels, held, mode="bilinear", padding_mode="zeros", align_corners=False)


def _enlarged(values: Tensor) -> Tensor:
    return F.interpolate(values, scale_factor=ENLARGE, mode="bilinear", align_corners=False)


def pixels_of(crops: Tensor) -> Tensor:
    """Return the pixels to copy, [..., 15, 144, 160], of reference crops [..., 5, 3, 256, 256]."""
    return mask.window(crops).flatten(-4, -3)


__all__ = ["Copied", "Copying", "pixels_of", "sampled", "taken"]
