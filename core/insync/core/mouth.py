"""Mouth codes: lip shapes independent of head pose and of the person, from landmarks.

A shape is the lips and chin in coordinates that are fixed to the skull: the landmarks are rotated and scaled in space so that the points
that speech does not move best fit those of the mean face (Umeyama, 1991). A code is the shape minus the person's resting shape, in
the principal components of such differences over the training footage, each divided by its standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# FaceMesh indices.
RIGID = (33, 133, 362, 263, 168, 6, 197, 195, 5, 98, 327, 2, 10, 151, 9, 8, 54, 284, 127, 356, 234, 454)
OUTER_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
INNER_LIPS = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
CHIN = (152, 148, 377, 199)
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
POINTS = OUTER_LIPS + INNER_LIPS + CHIN
_UPPER, _LOWER = POINTS.index(13), POINTS.index(14)
RESTING_SHARE = 0.15  # share of the frames, those with the smallest aperture, whose median is the neutral mouth


@dataclass(frozen=True)
class MouthBasis:
    """The basis that maps landmarks to mouth codes and back.

    Attributes:
        rigid: float32 [R, 3], the mean face's rigid points, outer eye corners one unit apart.
        rest: float32 [L, 2], the mean resting shape.
        components: float32 [MOUTH, 2 L], orthonormal rows.
        deviation: float32 [MOUTH], each component's standard deviation over the training footage.
    """

    rigid: Floats
    rest: Floats
    components: Floats
    deviation: Floats

    @classmethod
    def load(cls, path: Path) -> MouthBasis:
        """Read a basis from an .npz file."""
        with np.load(path) as data:
            return cls(**{name: data[name].astype(np.float32) for name in ("rigid", "rest", "components", "deviation")})

    def save(self, path: Path) -> None:
        """Write the basis to an .npz file."""
        np.savez(path, rigid=self.rigid, rest=self.rest, components=self.components, deviation=self.deviation)

    def shape(self, landmarks: Floats) -> Floats:
        """Return lips and chin without head pose, float32 [L, 2], outer eye corners one unit apart, from landmarks float32 [468, 3]."""
        return skull_fixed(landmarks, self.rigid)[list(POINTS), :2]

    def neutral(self, shapes: Floats) -> Floats:
        """Return the resting shape, float32 [L, 2], of a person with shapes float32 [N, L, 2].

        It is the median of the shapes with the smallest apertures. If even those are open (a single photo of a smile), the
        aperture is reduced to that of the mean resting shape.
        """
        apertures = np.array([aperture(shape) for shape in shapes])
        count = max(1, round(RESTING_SHARE * len(shapes)))
        resting: Floats = np.median(shapes[np.argsort(apertures, kind="stable")[:count]], axis=0).astype(np.float32)
        excess = aperture(resting) - max(0.04, aperture(self.rest))
        if excess > 0:
            lower = [POINTS.index(i) for i in POINTS if self._moves_with_jaw(i)]
            resting[lower, 1] -= excess
        return resting

    def _moves_with_jaw(self, index: int) -> bool:
        """Return whether a landmark moves with the jaw: it lies below the line between the mean resting lips."""
        line = (self.rest[_UPPER, 1] + self.rest[_LOWER, 1]) / 2
        return bool(self.rest[POINTS.index(index), 1] > line)

    def code(self, shape: Floats, neutral: Floats) -> Floats:
        """Return the mouth code float32 [MOUTH] of a shape relative to a neutral one, both float32 [L, 2]."""
        return np.asarray(self.components @ (shape - neutral).reshape(-1) / self.deviation, np.float32)

    def decode(self, code: Floats, neutral: Floats) -> Floats:
        """Return the shape float32 [L, 2] of a code float32 [MOUTH] on a face with this neutral shape."""
        return np.asarray(neutral + ((code * self.deviation) @ self.components).reshape(neutral.shape), np.float32)

    @property
    def aperture_row(self) -> Floats:
        """float32 [MOUTH]. Its product with a code is the aperture minus the resting one, in distances of the outer eye corners."""
        row = self.components[:, 2 * _LOWER + 1] - self.components[:, 2 * _UPPER + 1]
        return np.asarray(row * self.deviation, np.float32)


def aperture(shape: Floats) -> float:
    """Return the mouth aperture: the height of the gap between the inner lips of a shape float32 [L, 2], in distances of the outer eye corners."""
    return float(shape[_LOWER, 1] - shape[_UPPER, 1])


def skull_fixed(landmarks: Floats, rigid: Floats) -> Floats:
    """Rotate, scale and move landmarks float32 [468, 3] so that their rigid points best fit rigid, float32 [R, 3]."""
    turn, shift = skull_fit(landmarks, rigid)
    return np.asarray(landmarks @ turn.T + shift, np.float32)


def skull_fit(landmarks: Floats, rigid: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the similarity transform of `skull_fixed`: rotation times scale [3, 3], and shift [3]."""
    points = landmarks.astype(np.float64)
    source, target = points[list(RIGID)], rigid.astype(np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1.0, 1.0, float(np.sign(np.linalg.det(u @ vt)))])
    scale = float((s * np.diag(sign)).sum() / max(float((a**2).sum()), 1e-12))
    turn = scale * u @ sign @ vt
    return turn, target_mean - turn @ source_mean
