"""The mapping between a frame and its sent region is exact, and regions move with the face."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from insync.client.streaming.region import Region, RegionTracker

REGIONS = [
    Region(0, 0, 640, 480, 640, 480, whole=True),
    Region(100, 50, 420, 370, 160, 160),
    Region(100, 50, 420, 371, 77, 81),
    Region(2, 4, 301, 207, 299, 100),
]


def apply(matrix: np.ndarray[Any, Any], points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


@pytest.mark.parametrize("region", REGIONS)
def test_a_sent_pixel_lies_in_the_middle_of_the_pixels_that_it_averages(region: Region) -> None:
    # On a ramp, area averaging gives every sent pixel the mean coordinate of the area that it covers.
    ys, xs = np.mgrid[0:480, 0:640].astype(np.float64)
    size = (region.width, region.height)
    box = np.s_[region.y0 : region.y1, region.x0 : region.x1]
    u, v = (cv2.resize(ramp[box], size, interpolation=cv2.INTER_AREA) for ramp in (xs, ys))
    frame = np.stack([u, v], axis=-1).reshape(-1, 2)
    sent = np.stack(np.meshgrid(np.arange(region.width), np.arange(region.height)), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(apply(region.to_sent, frame), sent, atol=0.005)  # OpenCV drops weights under 0.001


@pytest.mark.parametrize("region", REGIONS)
def test_transforms_and_boxes_are_mapped_back_exactly(region: Region) -> None:
    rng = np.random.default_rng(1)
    transform = np.array([[0.8, -0.1, 12.5], [0.1, 0.8, -30.25]])
    points = rng.uniform(0, 400, (50, 2))
    direct = apply(transform, apply(region.to_sent, points))
    np.testing.assert_allclose(apply(region.transform_to_frame(transform), points), direct, atol=1e-9)
    box = np.array([110, 60, 300.5, 333.25], np.float32)
    np.testing.assert_allclose(region.box_to_frame(region.box_to_sent(box)), box, atol=1e-3)
    assert not region.box_to_sent(np.zeros(4)).any()
    assert not region.box_to_frame(np.zeros(4)).any()


def test_the_same_patch_lands_on_the_same_pixels_through_any_region() -> None:
    # A crop taken from a sent region equals one taken from the frame by the mapped transform.
    ys, xs = np.mgrid[0:480, 0:640].astype(np.float32)
    frame = 0.1 * xs + 0.05 * ys
    region = Region(100, 50, 420, 370, 160, 160)
    sent = cv2.resize(frame[50:370, 100:420], (160, 160), interpolation=cv2.INTER_AREA)
    transform = np.array([[1.6, 0.2, 4.0], [-0.2, 1.6, 9.0]])
    flags = cv2.INTER_LINEAR
    of_sent = cv2.warpAffine(sent, transform, (256, 256), flags=flags, borderValue=-1000)
    of_frame = cv2.warpAffine(frame, region.transform_to_frame(transform), (256, 256), flags=flags)
    inside = of_sent > 0
    assert inside.mean() > 0.5
    assert np.abs(of_sent - of_frame)[inside].max() < 0.01


def face_at(x: float, y: float, side: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a face box and the transform of its crop, which is 1.8 times as wide."""
    scale = 256 / (1.8 * side)
    box = np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2], np.float32)
    return box, np.array([[scale, 0, 127.5 - scale * x], [0, scale, 127.5 - scale * y]])


def test_the_first_region_is_the_whole_frame_then_the_face_and_never_enlarged() -> None:
    tracker = RegionTracker()
    first = tracker.propose(1920, 1080)
    assert first.whole
    assert (first.width, first.height) == (1280, 720)
    face, transform = face_at(900, 500, 400)
    tracker.observe(face, transform, 0.9)
    region = tracker.propose(1920, 1080)
    assert not region.whole
    assert (region.x0 % 2, region.y0 % 2, region.x1 % 2, region.y1 % 2) == (0, 0, 0, 0)
    assert region.x0 <= 900 - 200 - 240
    assert region.x1 >= 900 + 200 + 240
    # A crop pixel is as large as a sent pixel: the face is larger than the crop needs.
    assert region.scale == pytest.approx(256 / 720, abs=0.002)
    small, small_transform = face_at(900, 500, 60)
    tracker.observe(small, small_transform, 0.9)
    region = tracker.propose(1920, 1080)
    assert region.scale == 1.0
    assert not tracker.too_coarse(region, small_transform)


def test_a_region_stays_while_the_face_stays_and_moves_with_it() -> None:
    tracker = RegionTracker()
    tracker.propose(1280, 720)
    tracker.observe(*face_at(600, 300, 200), 0.9)
    region = tracker.propose(1280, 720)
    tracker.observe(*face_at(612, 293, 204), 0.9)
    assert tracker.propose(1280, 720) is region
    tracker.observe(*face_at(800, 300, 200), 0.9)
    moved = tracker.propose(1280, 720)
    assert moved.x1 >= 900 + 120
    tracker.observe(*face_at(800, 300, 100), 0.9)
    assert tracker.propose(1280, 720).x1 < moved.x1


def test_a_lost_face_is_searched_in_whole_frames() -> None:
    tracker = RegionTracker()
    tracker.propose(1280, 720)
    tracker.observe(*face_at(600, 300, 200), 0.9)
    assert not tracker.propose(1280, 720).whole
    tracker.observe(np.zeros(4), np.eye(2, 3), 0.0)
    assert tracker.propose(1280, 720).whole
    assert not tracker.hint.any()


def test_a_new_frame_size_resets_the_tracker() -> None:
    tracker = RegionTracker()
    tracker.propose(1280, 720)
    tracker.observe(*face_at(600, 300, 200), 0.9)
    assert tracker.propose(640, 360).whole


def test_responses_that_may_be_wrong_because_of_the_region() -> None:
    tracker = RegionTracker()
    tracker.propose(1280, 720)
    face, transform = face_at(600, 300, 200)
    tracker.observe(face, transform, 0.9)
    region = tracker.propose(1280, 720)
    assert not tracker.doubtful(region, face, transform, 0.9)
    assert tracker.doubtful(region, face, transform, 0.4)
    assert tracker.doubtful(region, np.zeros(4, np.float32), transform, 0.9)
    edge, edge_transform = face_at(region.x1 - 100, 300, 200)
    assert tracker.doubtful(region, edge, edge_transform, 0.9)
    near, near_transform = face_at(region.x1 - 130, 300, 200)  # the face is inside, its crop is not
    assert tracker.doubtful(region, near, near_transform, 0.9)
    whole = RegionTracker().propose(1280, 720)
    assert not tracker.doubtful(whole, np.zeros(4, np.float32), transform, 0.0)


def test_at_the_frames_own_edge_nothing_is_doubtful() -> None:
    tracker = RegionTracker()
    tracker.propose(1280, 720)
    face, transform = face_at(60, 80, 200)
    tracker.observe(face, transform, 0.9)
    region = tracker.propose(1280, 720)
    assert (region.x0, region.y0) == (0, 0)
    assert not tracker.doubtful(region, face, transform, 0.9)


def test_wide_pixels_are_sent_square() -> None:
    region = RegionTracker().propose(720, 576, 64 / 45)
    assert (region.width, region.height) == (720, 405)


def test_without_regions_whole_frames_are_sent_at_their_own_size() -> None:
    tracker = RegionTracker(enabled=False)
    assert tracker.propose(5000, 4000) == Region(0, 0, 5000, 4000, 5000, 4000, whole=True)
    tracker.observe(*face_at(600, 300, 200), 0.9)
    assert tracker.propose(5000, 4000).width == 5000
