"""The losses of the renderer, and that of mouth codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from insync.core.mouth import MouthBasis
from insync.network.discriminators import Discriminator
from insync.network.mouth_reader import MouthReader


class MouthReaderLoss:
    """The distance between two mouths in the frozen mouth reader's features and in its predicted lip shape."""

    def __init__(self, reader: MouthReader, basis: MouthBasis) -> None:
        self._reader = reader.eval().requires_grad_(False)
        self._weights = torch.from_numpy(basis.deviation / basis.deviation[0]).sqrt()

    def __call__(self, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance in features and the distance in lip shapes."""
        read, maps = self._reader(fake)
        with torch.no_grad():
            target, target_maps = self._reader(real)
        perceptual = sum(
            (a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-6)
            for a, b in zip(maps, target_maps, strict=True)
        )
        return torch.as_tensor(perceptual), F.smooth_l1_loss(
            read.float() * self._weights, target.float() * self._weights
        )


def _gradients(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbouring rows and of neighbouring columns."""
    return picture[..., 1:, :] - picture[..., :-1, :], picture[..., :, 1:] - picture[..., :, :-1]


def picture_loss(fake: Tensor, real: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the weighted L1 distance of colours at three scales, and of gradients; windows [B, 3, H, W], weight [B, 1, H, W]."""
    colour = torch.zeros(())
    a, b, w = fake, real, weight
    for _ in range(3):
        colour = colour + (w * (a - b).abs()).sum() / (3 * w.sum() + 1e-6)
        a, b, w = (F.avg_pool2d(x, 2) for x in (a, b, w))
    edges = torch.zeros(())
    for fake_edge, real_edge in zip(_gradients(fake), _gradients(real), strict=True):
        inside = weight[..., : fake_edge.shape[-2], : fake_edge.shape[-1]]
        edges = edges + (inside * (fake_edge - real_edge).abs()).sum() / (3 * inside.sum() + 1e-6)
    return colour, edges


def flow_error(places: Tensor, points: Tensor, reference_points: Tensor) -> Tensor:
    """Compute the distance between where the flow copies the target's landmarks from and the references' landmarks.

    Args:
        places: [B, R, 2, H, W], see `Copying`.
        points: [B, P, 2], in the same units.
        reference_points: [B, R, P, 2].

    Returns:
        Mean distance in pixels, of the landmarks that are inside the window on both sides; large distances count less (Huber, 1964).
    """
    count, _, height, width = places.shape[1:]
    where = points[:, None].expand(-1, count, -1, -1).flatten(0, 1)
    fetched = F.grid_sample(
        places.flatten(0, 1), where[:, None], mode="bilinear", padding_mode="border", align_corners=False
    )[:, :, 0].transpose(1, 2)
    target = reference_points.flatten(0, 1)
    inside = ((where.abs() < 1) & (target.abs() < 1)).all(-1).float()
    size = torch.tensor([width / 2, height / 2], device=places.device)
    error = F.smooth_l1_loss(fetched * size, target * size, reduction="none", beta=1.0).sum(-1)
    return (error * inside).sum() / (inside.sum() + 1e-6)


def squared_gradient(critic: Discriminator, view: Tensor, codes: Tensor) -> Tensor:
    """Compute the squared gradient of a discriminator's scores at real pictures, averaged over the batch."""
    view = view.detach().requires_grad_()
    score, _ = critic(view, codes)
    (slope,) = torch.autograd.grad(score.mean((1, 2, 3)).sum(), view, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


def code_loss(predicted: Tensor, real: Tensor, weights: Tensor, aperture: Tensor) -> Tensor:
    """Compute the weighted squared error of mouth codes [N, 12], plus one minus the concordance (Lin, 1989) of the aperture, which penalizes too little movement."""
    error = (weights * (predicted - real) ** 2).sum(1).mean() / weights.sum()
    a, b = predicted @ aperture, real @ aperture
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    concordance = 2 * covariance / (a.var() + b.var() + (a.mean() - b.mean()) ** 2 + 1e-8)
    return error + 0.5 * (1 - concordance)
