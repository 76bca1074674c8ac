"""The AdaAT kernel against the plain PyTorch reference, and against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from insync.core.errors import BadInput
from insync.ensemble.models.adaat import adaat

Floats = NDArray[np.float32]


def features(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def constant(batch: int, channels: int, *values: float) -> Floats:
    return np.broadcast_to(np.array(values, np.float32), (batch, channels, 4)).copy()


def test_equals_the_pytorch_reference() -> None:
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    from insync.network.adaat import adaat as reference_adaat

    rng = np.random.default_rng(1)
    for batch, channels, height, width in ((2, 16, 64, 64), (1, 3, 7, 12), (1, 2, 1, 1)):
        reference = features(batch, channels, height, width)
        affine = np.concatenate(
            [
                rng.uniform(-1.8, 1.8, (batch, channels, 1)),
                rng.uniform(-4, 4, (batch, channels, 1)),
                rng.uniform(-1.5, 1.5, (batch, channels, 2)),
            ],
            axis=-1,
        ).astype(np.float32)
        expected = reference_adaat(torch.from_numpy(reference), torch.from_numpy(affine)).numpy()
        np.testing.assert_allclose(adaat(reference, affine), expected, atol=2e-4)


def test_the_identity_changes_nothing() -> None:
    reference = features(2, 5, 16, 16)
    np.testing.assert_allclose(adaat(reference, constant(2, 5, 1, 0, 0, 0)), reference, atol=1e-4)


def test_a_shift_by_whole_pixels_moves_and_fills_with_zeros() -> None:
    reference = features(1, 1, 8, 8)
    moved = adaat(reference, constant(1, 1, 1, 0, 2 * 3 / 8, 0))  # three pixels: the output samples to its right
    np.testing.assert_allclose(moved[..., :5], reference[..., 3:], atol=1e-4)
    np.testing.assert_array_equal(moved[..., 5:], 0)


def test_a_quarter_turn() -> None:
    reference = features(1, 1, 8, 8)
    turned = adaat(reference, constant(1, 1, 1, math.pi / 2, 0, 0))
    # x_in = -y_out, y_in = x_out
    np.testing.assert_allclose(turned[0, 0], reference[0, 0].T[::-1], atol=1e-4)


def test_each_channel_has_its_own_affine_and_threads_do_not_matter() -> None:
    reference = features(3, 8, 16, 16)
    affine = np.random.default_rng(2).uniform(-1, 1, (3, 8, 4)).astype(np.float32)
    whole = adaat(reference, affine, threads=2)
    for b, c in ((0, 0), (1, 7), (2, 3)):
        alone = adaat(reference[b : b + 1, c : c + 1], affine[b : b + 1, c : c + 1])
        np.testing.assert_array_equal(whole[b, c], alone[0, 0])


@pytest.mark.parametrize("value", [1e30, -1e30, 3e38])
def test_absurd_numbers_give_finite_features(value: float) -> None:
    aligned = adaat(features(1, 1, 8, 8), constant(1, 1, value, 0.5, value, -value))
    assert np.isfinite(aligned).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    affine = constant(1, 2, 1, 0, 0, 0)
    affine[0, 1, 2] = value
    with pytest.raises(BadInput, match=r"AFFINE.*not finite"):
        adaat(features(1, 2, 8, 8), affine)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match=r"\[1, 2, 8, 8\].*\[1, 3, 4\]"):
        adaat(features(1, 2, 8, 8), constant(1, 3, 1, 0, 0, 0))
