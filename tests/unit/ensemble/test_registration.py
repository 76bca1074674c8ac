"""Registration of a person, on frames of the sample clip and on synthetic faces."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.core.errors import BadInput
from insync.core.mouth import MouthBasis
from insync.core.spec import CROP_SIZE, MAX_REGISTRATION_FRAMES, MOUTH, PLACES, REFERENCES
from insync.ensemble.models.face import FaceFinder
from insync.ensemble.models.registration import _choose, _Seen, contact_sheet, head_pose, register
from insync.ensemble.models.twin_store import TwinStore

ROOT = Path(__file__).parents[3]
Image = NDArray[np.uint8]


def jpeg(image: Image) -> bytes:
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 95))[1])


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder(ROOT / "model_repository" / "lipsync_face" / "1")


@pytest.fixture(scope="module")
def basis() -> MouthBasis:
    return MouthBasis.load(ROOT / "model_repository" / "lipsync_twin" / "1" / "mouth_basis.npz")


@pytest.fixture(scope="module")
def images() -> list[Image]:
    """Frames of the sample clip, twelve of them spread over it."""
    with av.open(str(ROOT / "samples" / "sample.mp4")) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    return frames[:: max(1, len(frames) // 12)][:12]


def test_a_clip_gives_a_whole_record(
    images: list[Image], finder: FaceFinder, basis: MouthBasis, tmp_path: Path
) -> None:
    record = register([jpeg(image) for image in images], finder, basis)
    assert record.crops.shape == (REFERENCES, CROP_SIZE, CROP_SIZE, 3)
    assert record.codes.shape == (REFERENCES, MOUTH)
    assert np.isfinite(record.codes).all()
    report = record.report
    assert report["frames"] == report["faces"] == len(images)
    assert len(report["references"]) == REFERENCES
    # The crop is face-aligned: a face is found again in it, upright and in the middle.
    for crop in record.crops:
        face = finder.find(crop)
        assert face is not None
        assert abs(head_pose(face.landmarks)[2]) < 0.1
    store = TwinStore(tmp_path)
    sheet = contact_sheet(store.load(store.save(record)))
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[:CROP_SIZE, CROP_SIZE : 2 * CROP_SIZE], record.crops[1])
    assert sheet[CROP_SIZE:].max() > 200  # the text below the crops


def test_one_photo_is_enough_but_warned_of(images: list[Image], finder: FaceFinder, basis: MouthBasis) -> None:
    record = register([jpeg(images[0])], finder, basis)
    assert [note["frame"] for note in record.report["references"]] == [0] * REFERENCES
    for crop in record.crops[1:]:
        np.testing.assert_array_equal(crop, record.crops[0])
    assert any("only 1 different" in warning for warning in record.report["warnings"])


def test_frames_without_a_face_are_passed_over(images: list[Image], finder: FaceFinder, basis: MouthBasis) -> None:
    black = np.zeros_like(images[0])
    record = register([jpeg(black), jpeg(images[0]), jpeg(black), jpeg(images[5])], finder, basis)
    assert record.report["faces"] == 2
    assert {note["frame"] for note in record.report["references"]} <= {1, 3}
    assert "no face in 2 of 4 frames" in record.report["warnings"]


def test_the_largest_face_is_taken_and_followed(images: list[Image], finder: FaceFinder, basis: MouthBasis) -> None:
    face = finder.find(images[0])
    assert face is not None
    x0, y0, x1, y1 = (int(v) for v in face.box)
    side = int(0.6 * max(x1 - x0, y1 - y0))
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    cut = images[0][max(0, y - side) : y + side, max(0, x - side) : x + side]
    big = cv2.resize(cut, (600, 600), interpolation=cv2.INTER_AREA)
    small = cv2.resize(np.ascontiguousarray(cut[:, ::-1]), (260, 260))  # mirrored, to be told from the large one
    canvas = np.full((640, 1000, 3), 90, np.uint8)
    canvas[20:620, 380:980] = big
    canvas[200:460, 60:320] = small
    record = register([jpeg(canvas), jpeg(canvas)], finder, basis)
    differences = []
    for rows, columns in ((slice(20, 620), slice(380, 980)), (slice(200, 460), slice(60, 320))):
        alone = np.full_like(canvas, 90)
        alone[rows, columns] = canvas[rows, columns]
        crop = register([jpeg(alone)], finder, basis).crops[0]
        differences.append(np.abs(record.crops[0].astype(int) - crop).mean())
    assert differences[0] < 0.6 * differences[1]


def test_a_small_face_is_warned_of(images: list[Image], finder: FaceFinder, basis: MouthBasis) -> None:
    small = cv2.resize(images[0], None, fx=0.18, fy=0.18, interpolation=cv2.INTER_AREA)
    report = register([jpeg(np.asarray(small, np.uint8))], finder, basis).report
    assert any("pixels wide" in warning for warning in report["warnings"])


@pytest.mark.parametrize("count", [0, MAX_REGISTRATION_FRAMES + 1])
def test_too_few_and_too_many_frames(finder: FaceFinder, basis: MouthBasis, count: int) -> None:
    with pytest.raises(BadInput, match=rf"holds {count} frames, must hold 1 to {MAX_REGISTRATION_FRAMES}"):
        register([b""] * count, finder, basis)


def test_no_face_anywhere(finder: FaceFinder, basis: MouthBasis) -> None:
    grey = np.full((240, 320, 3), 128, np.uint8)
    with pytest.raises(BadInput, match="no face in any of its 3 frames"):
        register([jpeg(grey)] * 3, finder, basis)


def test_the_bad_frame_is_named(images: list[Image], finder: FaceFinder, basis: MouthBasis) -> None:
    good = jpeg(images[0])
    with pytest.raises(BadInput, match=r"FRAMES\[2\] is truncated"):
        register([good, good, good[: len(good) // 2]], finder, basis)
    with pytest.raises(BadInput, match=r"FRAMES\[1\] is empty"):
        register([good, b""], finder, basis)
    # All chunks are there, and what is in them is no picture.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    png = bytearray(bytes(cv2.imencode(".png", noise)[1]))
    assert len(png) > 4000
    png[60:2000] = bytes(1940)
    with pytest.raises(BadInput, match=r"FRAMES\[0\] cannot be decoded"):
        register([bytes(png)], finder, basis)


def seen(frame: int, mouth_aperture: float, yaw: float, sharpness: float) -> _Seen:
    """A frame whose mouth is one number: every lip point moves down by it."""
    shape = np.full((44, 2), mouth_aperture, np.float32)
    crop = np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    places = np.zeros(PLACES.shape, np.float32)
    return _Seen(frame, crop, shape, places, np.array([yaw, 0, 0], np.float32), sharpness, 200.0)


def test_the_sampler_takes_the_extremes_first_and_the_resting_face_as_a_start() -> None:
    frames = [seen(k, mouth_aperture, 0.0, 100.0) for k, mouth_aperture in enumerate(np.linspace(0, 0.2, 41))]
    chosen, distinct = _choose(frames, np.zeros((44, 2), np.float32))
    assert distinct == REFERENCES
    assert chosen[0].frame == 0
    assert chosen[1].frame == 40


def test_the_sampler_takes_other_poses_of_a_mouth_that_does_not_move() -> None:
    frames = [seen(k, 0.0, yaw, 100.0) for k, yaw in enumerate(np.linspace(-0.25, 0.25, 21))]
    chosen, _ = _choose(frames, np.zeros((44, 2), np.float32))
    assert chosen[0].frame == 10  # faces forward
    assert {0, 20} <= {one.frame for one in chosen}


def test_the_sampler_leaves_blurred_frames_out() -> None:
    frames = [seen(k, mouth_aperture, 0.0, 100.0) for k, mouth_aperture in enumerate(np.linspace(0, 0.1, 20))]
    blurred = [seen(100 + k, 0.3, 0.0, 5.0) for k in range(5)]
    chosen, _ = _choose(frames + blurred, np.zeros((44, 2), np.float32))
    assert max(one.frame for one in chosen) < 100


def test_the_sampler_repeats_rather_than_take_the_same_twice() -> None:
    frames = [seen(k, 0.0, 0.0, 100.0) for k in range(10)] + [seen(10, 0.2, 0.0, 100.0)]
    chosen, distinct = _choose(frames, np.zeros((44, 2), np.float32))
    assert distinct == 2
    assert [one.frame for one in chosen] == [chosen[0].frame, 10, chosen[0].frame, 10, chosen[0].frame]
