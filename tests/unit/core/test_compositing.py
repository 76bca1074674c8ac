"""Compositing: where the patch is placed, which pixels it does not change, which input it refuses."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.core import compositing, images
from insync.core.compositing import blend, place, visibility
from insync.core.spec import CROP_SIZE


def similarity(scale: float, angle: float, x: float, y: float) -> NDArray[np.float32]:
    """Return a transform from frame to crop that maps the frame's point (x, y) to the crop's centre."""
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    half = (CROP_SIZE - 1) / 2
    return np.array([[cos, -sin, half - cos * x + sin * y], [sin, cos, half - sin * x - cos * y]], np.float32)


def patch_of(alpha: NDArray[np.uint8], colour: tuple[int, int, int] = (200, 40, 90)) -> NDArray[np.uint8]:
    patch = np.empty((CROP_SIZE, CROP_SIZE, 4), np.uint8)
    patch[..., :3] = colour
    patch[..., 3] = alpha
    return patch


def disc(radius: float) -> NDArray[np.uint8]:
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE] - (CROP_SIZE - 1) / 2
    alpha: NDArray[np.uint8] = (np.clip(radius - np.hypot(x, y), 0, 8) / 8 * 255).astype(np.uint8)
    return alpha


@pytest.fixture(params=["OpenCV", "NumPy"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with OpenCV, and as if it were not installed."""
    if request.param == "NumPy":
        monkeypatch.setattr(compositing, "opencv", lambda: None)
        monkeypatch.setattr(images, "opencv", lambda: None)
    return str(request.param)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (360, 480, 3), np.uint8)


def test_visibility_is_a_monotone_ramp() -> None:
    assert visibility(0.0) == visibility(0.3) == visibility(math.nan) == 0.0
    assert visibility(0.7) == visibility(1.0) == 1.0
    assert visibility(0.5) == pytest.approx(0.5)
    values = [visibility(c / 100) for c in range(101)]
    assert values == sorted(values)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_the_patch_is_placed_by_the_transform(image: NDArray[np.uint8], scale: float, angle: float) -> None:
    source = image.copy()
    placed = place(patch_of(disc(80)), similarity(scale, angle, 230.25, 170.75), 1.0, 480, 360)
    assert placed is not None
    blend(image, placed)
    y, x = np.mgrid[:360, :480]
    distance = np.hypot(x - 230.25, y - 170.75)
    # Inside the disc the patch's colour, outside the frame's own pixels; between them a feathered edge.
    inner, outer = distance < 70 / scale - 2, distance > 82 / scale + 2
    assert np.abs(image[inner].astype(int) - (200, 40, 90)).max() <= 1
    np.testing.assert_array_equal(image[outer], source[outer])
    weight = np.zeros((360, 480))
    weight[placed.y0 : placed.y1, placed.x0 : placed.x1] = placed.alpha
    assert (weight * x).sum() / weight.sum() == pytest.approx(230.25, abs=0.15)
    assert (weight * y).sum() / weight.sum() == pytest.approx(170.75, abs=0.15)


def test_equals_a_whole_frame_warp_and_a_float_blend(image: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(1)
    patch = cv2.GaussianBlur(rng.integers(0, 256, (CROP_SIZE, CROP_SIZE, 4), np.uint8), (0, 0), 3)
    patch[..., 3] = disc(100)
    matrix = similarity(0.7, -0.2, 250, 180)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    rgb = cv2.warpAffine(patch[..., :3], matrix, (480, 360), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(patch[..., 3].astype(np.float32), matrix, (480, 360), flags=flags)[..., None] / 255
    expected = rgb * alpha + image * (1 - alpha)
    placed = place(patch, matrix, 1.0, 480, 360)
    assert placed is not None
    blend(image, placed)
    assert np.abs(image - expected).max() <= 1.6  # alpha and colour are rounded once each
    assert np.abs(image - expected).mean() < 0.3


def test_pixels_with_alpha_zero_are_the_sources(image: NDArray[np.uint8]) -> None:
    source = image.copy()
    alpha = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    alpha[10:20, 10:20] = alpha[200:240, 90:200] = 255  # two islands: most of the box must not change
    placed = place(patch_of(alpha), similarity(1.0, 0.0, 240, 180), 0.6, 480, 360)
    assert placed is not None
    blend(image, placed)
    stays = np.ones((360, 480), bool)
    stays[placed.y0 : placed.y1, placed.x0 : placed.x1] = placed.alpha == 0
    np.testing.assert_array_equal(image[stays], source[stays])
    assert (image[~stays] != source[~stays]).any()


def test_half_visibility_blends_half() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    placed = place(patch_of(np.full((256, 256), 255, np.uint8), (200, 100, 50)), np.eye(2, 3), 0.5, 256, 256)
    assert placed is not None
    blend(image, placed)
    np.testing.assert_allclose(image[128, 128], (100, 50, 25), atol=1)


@pytest.mark.parametrize(
    ("alpha", "confidence", "x"),
    [(0, 1.0, 240.0), (255, 0.0, 240.0), (255, 0.3, 240.0), (255, math.nan, 240.0), (255, 1.0, 5000.0)],
    ids=["transparent", "no face", "hidden", "nan", "outside"],
)
def test_no_patch_is_placed(alpha: int, confidence: float, x: float) -> None:
    patch = patch_of(np.full((CROP_SIZE, CROP_SIZE), alpha, np.uint8))
    assert place(patch, similarity(1.0, 0.0, x, 180), confidence, 480, 360) is None


def test_at_the_border_the_box_stays_inside(image: NDArray[np.uint8]) -> None:
    placed = place(patch_of(disc(120)), similarity(0.5, 0.3, 470, 5), 1.0, 480, 360)
    assert placed is not None
    assert 0 <= placed.x0 < placed.x1 == 480
    assert 0 == placed.y0 < placed.y1 <= 360
    assert placed.rgb.shape == (*placed.alpha.shape, 3) == (placed.y1 - placed.y0, placed.x1 - placed.x0, 3)
    blend(image, placed)


@pytest.mark.parametrize(
    "matrix",
    [np.full((2, 3), np.nan), np.zeros((2, 3)), np.eye(3)],
    ids=["nan", "singular", "shape"],
)
def test_bad_transforms_are_refused(matrix: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="transform"):
        place(patch_of(disc(50)), matrix, 1.0, 480, 360)


def test_bad_patches_and_images_are_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="patch is"):
        place(np.zeros((256, 256, 3), np.uint8), np.eye(2, 3), 1.0, 480, 360)
    placed = place(patch_of(disc(50)), similarity(1.0, 0.0, 300, 200), 1.0, 480, 360)
    assert placed is not None
    with pytest.raises(ValueError, match="smaller"):
        blend(image[:100], placed)
    with pytest.raises(ValueError, match="image is"):
        blend(image.astype(np.float32), placed)


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 1.2, 1.6, 2.9])
@pytest.mark.parametrize("angle", [0.0, 0.37, -1.2])
def test_numpy_blends_as_opencv_does(
    image: NDArray[np.uint8], library: str, scale: float, angle: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They agree within one level of 255 on a patch of noise; a real patch has less contrast from pixel to pixel."""
    patch = np.random.default_rng(3).integers(0, 256, (CROP_SIZE, CROP_SIZE, 4), np.uint8)
    patch[..., 3] = disc(110)
    results = []
    for found in (cv2, None):
        monkeypatch.setattr(compositing, "opencv", lambda found=found: found)
        monkeypatch.setattr(images, "opencv", lambda found=found: found)
        blended = image.copy()
        placed = place(patch, similarity(scale, angle, 231.3, 177.8), 0.9, 480, 360)
        assert placed is not None
        blend(blended, placed)
        results.append(blended.astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1
    assert (results[0] != image).any()
