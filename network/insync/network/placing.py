"""The target landmarks of a speaking mouth, and the flow from them to the references' landmarks. Nothing here is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from insync.core.mouth import INNER_LIPS, OUTER_LIPS, MouthBasis
from insync.core.spec import FEATURE_HEIGHT, FEATURE_WIDTH, LIPS, MOUTH, WINDOW_COLUMNS, WINDOW_ROWS
from insync.network.blocks import exact

REACH = 3.0  # pixels within which the nearest landmark determines the flow
STIFFNESS = 4.0  # square pixels: spread of the landmarks from which on they rotate and stretch the area between them
TOUCHING = 1.0  # pixels between touching inner lips: the accuracy of the landmarks
NEAR = 12.0  # pixels from the lips at which distances are clipped
SHOWN = 0.6  # of the target aperture: a reference that is open this far shows the whole inside
_PAIRS = len(INNER_LIPS) // 2  # inner lips go around from one corner to the other, below, and back above
_LOWER = tuple(len(OUTER_LIPS) + i for i in range(_PAIRS + 1))
_UPPER = tuple(len(OUTER_LIPS) + -i % len(INNER_LIPS) for i in range(_PAIRS + 1))
HALF = ((WINDOW_COLUMNS[1] - WINDOW_COLUMNS[0]) / 2, (WINDOW_ROWS[1] - WINDOW_ROWS[0]) / 2)


class Placing(nn.Module):
    """Computes landmarks' places from a mouth code, on a head in a given pose; see `insync.core.head`."""

    lips: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lips", torch.zeros(MOUTH, 2 * LIPS))

    def follow(self, basis: MouthBasis) -> None:
        """Set the lip shapes of the mouth codes from a basis."""
        self.lips.copy_(torch.from_numpy(basis.components * basis.deviation[:, None]))

    @exact
    def forward(self, head: Tensor, neutral: Tensor, code: Tensor) -> Tensor:
        """Compute places [B, 73, 2] from a head [B, 75, 2], a resting shape [B, 44, 2] and a mouth code [B, 12]."""
        shape = neutral + torch.matmul(code, self.lips).reshape(-1, LIPS, 2)
        lips = head[:, 2 : 2 + LIPS] + torch.matmul(shape, head[:, :2])
        return torch.cat([lips, head[:, 2 + LIPS :]], dim=1)


class Flow(nn.Module):
    """Moving least squares with affine maps (Schaefer et al., 2006): smooth, and exact at the landmarks."""

    grid: Tensor
    extent: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("extent", torch.tensor(HALF), persistent=False)
        y, x = torch.meshgrid(_centres(FEATURE_HEIGHT), _centres(FEATURE_WIDTH), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], dim=-1).reshape(1, -1, 2), persistent=False)

    @exact
    def forward(self, places: Tensor, others: Tensor) -> Tensor:
        """Compute the position from which to fetch each cell of the features' grid.

        Args:
            places: [B, P, 2], the target's landmarks, with the window's outer edges at ±1.
            others: [B, R, P, 2], the same landmarks in the references.

        Returns:
            [B, R, 2, 36, 40], x and y in each of them, with its window's outer edges at ±1.
        """
        batch, count, points, _ = others.shape
        # In pixels around the window's centre.
        here, there, grid = places * self.extent, others * self.extent, self.grid * self.extent
        x, y = here[..., 0], here[..., 1]
        away = (grid[..., 0, None] - x[:, None]) ** 2 + (grid[..., 1, None] - y[:, None]) ** 2
        weights = 1 / (away + REACH**2) ** 2
        weights = weights / weights.sum(2, keepdim=True)
        targets = there.permute(0, 2, 1, 3).reshape(batch, points, 2 * count)
        products = torch.stack([x * x, x * y, y * y], dim=2)
        everything = torch.cat([here, products, targets, x[..., None] * targets, y[..., None] * targets], dim=2)
        means = torch.matmul(weights, everything)
        mean_x, mean_y, xx, xy, yy = means[..., :5].split(1, dim=2)
        mean, with_x, with_y = means[..., 5:].split(2 * count, dim=2)
        xx, xy, yy = xx - mean_x**2 + STIFFNESS, xy - mean_x * mean_y, yy - mean_y**2 + STIFFNESS
        # Without spread there is no rotation: the axes of target and reference are equal.
        with_x = with_x - mean_x * mean + STIFFNESS * torch.tensor([1.0, 0.0]).repeat(count).to(mean)
        with_y = with_y - mean_y * mean + STIFFNESS * torch.tensor([0.0, 1.0]).repeat(count).to(mean)
        right, down = grid[..., :1] - mean_x, grid[..., 1:] - mean_y
        determinant = xx * yy - xy * xy
        along, across = (yy * right - xy * down) / determinant, (xx * down - xy * right) / determinant
        found = (mean + along * with_x + across * with_y).reshape(batch, -1, count, 2) / self.extent
        flow: Tensor = found.permute(0, 2, 3, 1).reshape(batch, count, 2, FEATURE_HEIGHT, FEATURE_WIDTH)
        return flow


class Inside(nn.Module):
    """Computes the area between the inner lips, and how much of it each reference shows. Nothing here is learned."""

    columns: Tensor
    rows: Tensor
    extent: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("extent", torch.tensor(HALF), persistent=False)
        for name, half in (("columns", HALF[0]), ("rows", HALF[1])):
            self.register_buffer(name, (_centres(round(2 * half)) * half)[None, :, None], persistent=False)

    @exact
    def forward(self, places: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the inside of the mouth, column by column.

        Args:
            places: [B, 73, 2], the target's landmarks, with the window's outer edges at ±1.
            others: [B, R, 73, 2], the same landmarks in the references.

        Returns:
            [B, 1, 144, 160], 1 inside; [B, 2, 144, 160], distance below the upper lip and above the lower one, 1 for `NEAR` or
            more, -1 for as far on the other side of it or beside the mouth; [B, R, 1, 160], 1 where the reference's mouth is
            open as far as `SHOWN`, 0 where its lips touch.
        """
        here, there = places * self.extent, others * self.extent
        upper, lower = here[:, list(_UPPER)], here[:, list(_LOWER)]
        aperture = torch.relu(lower[..., 1] - upper[..., 1] - TOUCHING)
        theirs = torch.relu(there[:, :, list(_LOWER), 1] - there[:, :, list(_UPPER), 1] - TOUCHING)
        shown = ((theirs + 0.5) / (SHOWN * aperture + 0.5)[:, None]).clamp(max=1)
        middle = (upper[..., 0] + lower[..., 0]) / 2
        apart = (middle[:, -1:] - middle[:, :1]).abs().clamp(min=1.0) / _PAIRS
        weights = torch.softmax(-(((self.columns - middle[:, None]) / apart[:, None]) ** 2), dim=2)
        curves = torch.cat([torch.stack([upper[..., 1], lower[..., 1]], dim=1), shown], dim=1)
        curves = torch.matmul(curves, weights.transpose(1, 2))[:, :, None]
        across, middle = self.columns.transpose(1, 2), middle[:, None]
        corners = middle[..., :1], middle[..., -1:]
        between = torch.minimum(across - torch.minimum(*corners), torch.maximum(*corners) - across)
        from_lips = torch.stack([self.rows - curves[:, 0], curves[:, 1] - self.rows], dim=1)
        from_lips = torch.minimum(from_lips, between[:, None])
        inside = torch.minimum(from_lips[:, :1], from_lips[:, 1:])
        return inside.clamp(0, 1), (from_lips / NEAR).clamp(-1, 1), curves[:, 2:]


def _centres(count: int) -> Tensor:
    return (2 * torch.arange(count) + 1) / count - 1
