"""Building blocks shared by several components. No normalisation layers: they would cost more than the convolutions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from itertools import pairwise
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

SLOPE = 0.1  # of leaky rectifiers


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Return a padded convolution, initialised for leaky rectifiers (He et al., 2015)."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def activation() -> nn.Module:
    """Return the rectifier used everywhere."""
    return nn.LeakyReLU(SLOPE)


class Residual(nn.Module):
    """Two convolutions with a skip connection (He et al., 2016).

    Initialised as the identity, which replaces normalisation (Zhang et al., 2019).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), activation(), conv(channels, channels))
        nn.init.zeros_(self.body[2].weight)  # type: ignore[arg-type]
        self.act = activation()

    def forward(self, features: Tensor) -> Tensor:
        """Transform features [B, C, H, W] → [B, C, H, W]."""
        result: Tensor = self.act(features + self.body(features))
        return result


class StyledResidual(nn.Module):
    """A residual block whose channels are scaled and shifted by a style vector (FiLM; Perez et al., 2018)."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels), conv(channels, channels)
        self.film = nn.Linear(style, 2 * channels)
        nn.init.normal_(self.film.weight, std=0.02)
        nn.init.zeros_(self.film.bias)
        nn.init.normal_(self.second.weight, std=0.01)
        self.act = activation()

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Transform features [B, C, H, W] with a style [B, S] → [B, C, H, W]."""
        scale, shift = self.film(style)[:, :, None, None].chunk(2, dim=1)
        inner = self.act(self.first(features) * (1 + scale) + shift)
        result: Tensor = self.act(features + self.second(inner))
        return result


M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
R = TypeVar("R")


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Keep products of positions and of pixels in float32 when training uses mixed precision.

    In bfloat16 a landmark is off by up to half a pixel, and the spreads of landmarks, by which the flow divides, round to 0.
    """

    @wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
        if not devices:  # always so in exports, where an autocast region would be written into the graph
            return function(*args, **kwargs)
        with ExitStack() as regions:
            for device in devices:
                regions.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return computed


def channels_last(module: M) -> M:
    """Convert a module's weights to channels-last layout: several times faster in bfloat16 on a CPU."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths with rectifiers between them."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Linear(inputs, outputs)] + ([activation()] if i < len(widths) - 2 else [])
    return nn.Sequential(*layers)


def pool(features: Tensor) -> Tensor:
    """Average over space, [B, C, H, W] → [B, C]."""
    return torch.mean(features, dim=(2, 3))
