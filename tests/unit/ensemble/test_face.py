"""Face detection: on the shipped sample, without a face, rotated, and with a hint."""

from __future__ import annotations

import math
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from insync.core.errors import BadInput
from insync.ensemble.models.face import (
    TEMPLATE,
    FaceFinder,
    centred_transform,
    face_transform,
    invert,
    is_hint,
    similarity,
    take_crop,
)

ROOT = Path(__file__).resolve().parents[3]
Image = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder(ROOT / "model_repository" / "lipsync_face" / "1")


@pytest.fixture(scope="module")
def image() -> Image:
    with av.open(str(ROOT / "samples" / "sample.mp4")) as container:
        return np.asarray(next(iter(container.decode(video=0))).to_ndarray(format="rgb24"), np.uint8)


def test_similarity_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    source, weights = rng.normal(0, 50, (12, 2)).astype(np.float32), rng.random(12).astype(np.float32) + 0.1
    target = source @ np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32) * 1.7 + np.array([3, -9], np.float32)
    target += rng.normal(0, 2, target.shape).astype(np.float32)
    # The oracle solves for (a, b, tx, ty) of x' = a x - b y + tx, y' = b x + a y + ty.
    rows, right = [], []
    for (x, y), (u, v), w in zip(source, target, np.sqrt(weights), strict=True):
        rows += [[w * x, -w * y, w, 0], [w * y, w * x, 0, w]]
        right += [w * u, w * v]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    np.testing.assert_allclose(similarity(source, target, weights), [[a, -b, tx], [b, a, ty]], atol=1e-3)


def test_face_is_found_where_it_is(finder: FaceFinder, image: Image) -> None:
    face = finder.find(image)
    assert face is not None
    assert face.confidence > 0.9
    assert face.landmarks.shape == (468, 3)
    x0, y0, x1, y1 = face.box
    assert 0 <= x0 < x1 <= image.shape[1]
    assert 0 <= y0 < y1 <= image.shape[0]
    nose = face.transform @ np.array([*face.landmarks[2, :2], 1])
    assert np.abs(nose - TEMPLATE[-1]).max() < 8  # the base of the nose lies where the template has it


def test_hint_leads_to_the_same_face(finder: FaceFinder, image: Image) -> None:
    face = finder.find(image)
    assert face is not None
    again = finder.find(image, face.box)
    assert again is not None
    assert np.abs(again.landmarks[:, :2] - face.landmarks[:, :2]).mean() < 3
    moved = finder.find(image, face.box + 15)
    assert moved is not None
    assert np.abs(moved.landmarks[:, :2] - face.landmarks[:, :2]).mean() < 3


@pytest.mark.parametrize("shift", [(60, 0), (-60, 20), (0, 70), (40, -50)])
def test_hint_from_frames_ago_does_not_drag_the_landmarks(
    finder: FaceFinder, image: Image, shift: tuple[int, int]
) -> None:
    face = finder.find(image)
    assert face is not None
    late = finder.find(image, face.box + np.array([*shift, *shift], np.float32))
    assert late is not None
    assert np.abs(late.landmarks[:, :2] - face.landmarks[:, :2]).mean() < 4


def test_hint_to_nowhere_falls_back_to_the_whole_frame(finder: FaceFinder, image: Image) -> None:
    face, lost = finder.find(image), finder.find(image, np.array([0, 0, 60, 60], np.float32))
    assert face is not None
    assert lost is not None
    assert np.abs(lost.box - face.box).max() < 5


def test_hint_chooses_the_speaker(finder: FaceFinder, image: Image) -> None:
    pair = np.concatenate([image, image[:, ::-1]], axis=1)
    single = finder.find(image)
    assert single is not None
    width = image.shape[1]
    right_box = np.array(
        [2 * width - single.box[2], single.box[1], 2 * width - single.box[0], single.box[3]], np.float32
    )
    for hint, low, high in ((single.box, 0, width), (right_box, width, 2 * width)):
        face = finder.find(pair, hint)
        assert face is not None
        assert low < (face.box[0] + face.box[2]) / 2 < high


@pytest.mark.parametrize("angle", [-35, 20, 60])
def test_turned_face_is_aligned_upright(finder: FaceFinder, image: Image, angle: float) -> None:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 0.8)
    face = finder.find(np.asarray(cv2.warpAffine(image, matrix, (width, height)), np.uint8))
    assert face is not None
    turned = math.degrees(math.atan2(face.transform[1, 0], face.transform[0, 0]))
    upright = finder.find(image)
    assert upright is not None
    base = math.degrees(math.atan2(upright.transform[1, 0], upright.transform[0, 0]))
    assert abs(turned - base - angle) < 5


def test_no_face_in_nothing(finder: FaceFinder) -> None:
    rng = np.random.default_rng(0)
    for picture in (
        np.zeros((360, 640, 3), np.uint8),
        np.full((64, 64, 3), 255, np.uint8),
        rng.integers(0, 255, (240, 320, 3), np.uint8).astype(np.uint8),
    ):
        assert finder.find(picture) is None
        assert finder.find(picture, np.array([10, 10, 50, 50], np.float32)) is None


def test_hints_that_mean_nothing() -> None:
    for box in ([0, 0, 0, 0], [np.nan, 0, 9, 9], [50, 50, 10, 10], [0, 0, np.inf, 50]):
        assert not is_hint(np.array(box, np.float32))
    assert not is_hint(None)
    assert is_hint(np.array([0, 0, 50, 50], np.float32))


def test_invert_and_centred_transform() -> None:
    transform = centred_transform(1280, 720)
    corner = transform @ np.array([0, 360 - 0.5, 1])
    assert np.abs(corner - [-0.4, 127.5]).max() < 0.01
    both = np.vstack([invert(transform), [0, 0, 1]]) @ np.vstack([transform, [0, 0, 1]])
    np.testing.assert_allclose(both, np.eye(3), atol=1e-4)


@pytest.mark.parametrize(
    ("size", "message"), [((0, 9), "has no pixels"), ((9, 32_001), "sides must be at most 32,000 pixels")]
)
def test_no_picture_to_find_a_face_in(size: tuple[int, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        centred_transform(*size)


def test_a_face_is_looked_for_in_the_longest_picture(repository: Path) -> None:
    """OpenCV cannot sample a longer one."""
    finder = FaceFinder(repository / "lipsync_face" / "1")
    assert finder.find(np.full((16, 32_000, 3), 90, np.uint8)) is None


def test_crop_of_the_template_itself_is_the_identity() -> None:
    landmarks = np.zeros((468, 3), np.float32)
    landmarks[[33, 133, 362, 263, 168, 6, 197, 195, 5, 98, 327, 2], :2] = TEMPLATE
    np.testing.assert_allclose(face_transform(landmarks), [[1, 0, 0], [0, 1, 0]], atol=1e-3)
    picture = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    np.testing.assert_array_equal(take_crop(picture, np.array([[1, 0, 0], [0, 1, 0]], np.float32)), picture)


def test_missing_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"face_landmark\.tflite"):
        FaceFinder(tmp_path)
