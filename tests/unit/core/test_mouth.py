"""Mouth codes: independent of pose and person, and reversible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from insync.core.mouth import POINTS, RIGID, MouthBasis, aperture, skull_fixed
from insync.core.spec import MOUTH

ROOT = Path(__file__).resolve().parents[3]
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def basis() -> MouthBasis:
    return MouthBasis.load(ROOT / "model_repository" / "lipsync_twin" / "1" / "mouth_basis.npz")


def _turn(yaw: float, pitch: float, roll: float) -> Floats:
    turns = []
    for angle, (i, j) in ((yaw, (0, 2)), (pitch, (1, 2)), (roll, (0, 1))):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        turns.append(turn)
    return np.asarray(turns[0] @ turns[1] @ turns[2], np.float32)


def _landmarks(basis: MouthBasis) -> Floats:
    landmarks = np.random.default_rng(0).normal(0, 0.5, (468, 3)).astype(np.float32)
    landmarks[list(RIGID)] = basis.rigid
    landmarks[list(POINTS), :2] = basis.rest
    return landmarks


def test_head_pose_does_not_change_the_shape(basis: MouthBasis) -> None:
    landmarks = _landmarks(basis)
    straight = basis.shape(landmarks)
    for yaw, pitch, roll in ((0.5, 0, 0), (0, 0.4, 0), (0.3, -0.2, 1.0)):
        moved = landmarks @ _turn(yaw, pitch, roll).T * 173 + np.array([400, 250, -30], np.float32)
        np.testing.assert_allclose(basis.shape(moved.astype(np.float32)), straight, atol=1e-3)


def test_skull_fixed_does_not_mirror(basis: MouthBasis) -> None:
    landmarks = _landmarks(basis)
    mirrored = landmarks * np.array([-1, 1, 1], np.float32)
    left, right = skull_fixed(mirrored, basis.rigid)[[33, 263], 0]
    assert np.isfinite([left, right]).all()
    np.testing.assert_allclose(skull_fixed(landmarks, basis.rigid), landmarks, atol=1e-4)


def test_code_and_decode_are_inverse_on_the_basis(basis: MouthBasis) -> None:
    code = np.random.default_rng(1).normal(0, 1, MOUTH).astype(np.float32)
    np.testing.assert_allclose(basis.code(basis.decode(code, basis.rest), basis.rest), code, atol=1e-3)
    np.testing.assert_allclose(basis.code(basis.rest, basis.rest), np.zeros(MOUTH), atol=1e-6)


def test_first_component_opens_the_mouth(basis: MouthBasis) -> None:
    code = np.zeros(MOUTH, np.float32)
    code[0] = 2
    assert aperture(basis.decode(code, basis.rest)) > aperture(basis.rest) + 0.08


def test_neutral_is_the_resting_mouth_of_a_speaking_person(basis: MouthBasis) -> None:
    code, rng = np.zeros(MOUTH, np.float32), np.random.default_rng(2)
    shapes = []
    for amount in rng.permutation(np.concatenate([np.zeros(40), rng.uniform(0.5, 3, 100)])):
        code[0] = amount
        shapes.append(basis.decode(code, basis.rest))
    np.testing.assert_allclose(basis.neutral(np.stack(shapes)), basis.rest, atol=1e-3)


def test_neutral_of_one_photo_with_an_open_mouth_is_closed(basis: MouthBasis) -> None:
    code = np.zeros(MOUTH, np.float32)
    code[0] = 2.5
    photo = basis.decode(code, basis.rest)
    neutral = basis.neutral(photo[None])
    assert aperture(neutral) < 0.5 * aperture(photo)


def test_aperture_row_is_the_derivative_of_the_aperture(basis: MouthBasis) -> None:
    code = np.random.default_rng(3).normal(0, 1, MOUTH).astype(np.float32)
    gap = aperture(basis.decode(code, basis.rest)) - aperture(basis.rest)
    assert float(basis.aperture_row @ code) == pytest.approx(gap, abs=1e-5)
