"""Malformed input to the real server: status code, message, and that other requests are not affected."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray

from insync.core.spec import CHANNELS, CROP_SIZE, FEATURE_HEIGHT, FEATURE_WIDTH

pytestmark = pytest.mark.triton

INVALID, MISSING = "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"
ENSEMBLES = ("lipsync_patch", "lipsync")


def octets(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def encoded(image: NDArray[np.uint8], kind: str = ".jpg") -> NDArray[np.uint8]:
    return octets(bytes(cv2.imencode(kind, image)[1]))


def ids(*texts: str) -> NDArray[np.object_]:
    return np.array(texts, np.object_)


@pytest.fixture
def good(photo: NDArray[np.uint8], audio: NDArray[np.float32], twin: NDArray[np.object_]) -> dict[str, Any]:
    return {"FRAME": photo, "AUDIO": audio, "TWIN": twin}


def damaged_png() -> NDArray[np.uint8]:
    """Return a PNG with a valid header and end, whose pixels are noise: only decoding detects it."""
    data = bytearray(bytes(cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[1]))
    data[60:2000] = np.random.default_rng(1).bytes(1940)
    return octets(bytes(data))


BAD_FRAMES = {
    "empty": (octets(b""), r"FRAME is empty \(0 bytes\)"),
    "text": (octets(b"this is not a picture"), "FRAME must be a JPEG or PNG picture"),
    "truncated": (encoded(np.zeros((64, 64, 3), np.uint8))[:-40], "FRAME is truncated"),
    "damaged": (damaged_png(), "FRAME cannot be processed"),
    "33 MB": (octets(b"\xff\xd8\xff" + bytes(33 * 2**20)), "bytes: it must have at most 33,554,432"),
    "20 megapixels": (
        encoded(np.zeros((4000, 5000, 3), np.uint8)),
        r"5000×4000 \(20\.0 megapixels\): it must have at most",
    ),
}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_malformed_frames(raw: Any, good: dict[str, Any], ensemble: str, kind: str) -> None:
    frame, message = BAD_FRAMES[kind]
    with pytest.raises(triton.InferenceServerException, match=message) as caught:
        raw(ensemble, **{**good, "FRAME": frame})
    assert caught.value.status() == INVALID
    raw(ensemble, **good)  # the server still works


@pytest.mark.parametrize("kind", ["33 MB", "20 megapixels"])
def test_the_guard_cannot_be_bypassed(raw: Any, raw_unfused: Any, good: dict[str, Any], kind: str) -> None:
    frame, message = BAD_FRAMES[kind]
    with pytest.raises(triton.InferenceServerException, match=message) as caught:
        raw_unfused("lipsync_preprocess", FRAME=frame, AUDIO=good["AUDIO"])
    assert caught.value.status() == INVALID
    twin = np.frombuffer(good["TWIN"][0], np.uint8)
    with pytest.raises(triton.InferenceServerException, match=message) as caught:
        raw("lipsync_frame", CHECKED_FRAME=frame, CHECKED_AUDIO=good["AUDIO"], CHECKED_TWIN=twin)
    assert caught.value.status() == INVALID


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "AUDIO has 1 samples that are not finite"), (np.inf, "not finite"), (9000.0, "AUDIO reaches 9000")],
)
def test_invalid_samples(raw: Any, good: dict[str, Any], value: float, message: str) -> None:
    audio = good["AUDIO"].copy()
    audio[5] = value
    with pytest.raises(triton.InferenceServerException, match=message) as caught:
        raw("lipsync_patch", **{**good, "AUDIO": audio})
    assert caught.value.status() == INVALID


@pytest.mark.parametrize("length", [0, 1, 6399, 6401])
def test_audio_of_a_wrong_length(raw: Any, good: dict[str, Any], length: int) -> None:
    with pytest.raises(triton.InferenceServerException, match=r"AUDIO") as caught:
        raw("lipsync_patch", **{**good, "AUDIO": np.zeros(length, np.float32)})
    assert caught.value.status() == INVALID


@pytest.mark.parametrize("twin", ["0" * 32, "nobody", "", "../../etc/passwd", "ü" * 3000])
def test_unknown_twins(raw: Any, good: dict[str, Any], twin: str) -> None:
    with pytest.raises(triton.InferenceServerException, match=r"TWIN .*32 hexadecimal digits") as caught:
        raw("lipsync_patch", **{**good, "TWIN": ids(twin)})
    assert caught.value.status() == MISSING


@pytest.mark.parametrize("kind", [".jpg", ".png"])
@pytest.mark.parametrize("content", ["black", "noise"])
def test_a_frame_without_a_face_is_not_changed(raw: Any, good: dict[str, Any], kind: str, content: str) -> None:
    image = np.zeros((360, 480, 3), np.uint8)
    if content == "noise":
        image[:] = np.random.default_rng(3).integers(0, 256, image.shape, np.uint8)
    frame = encoded(image, kind)
    patch = raw("lipsync_patch", **{**good, "FRAME": frame})
    assert patch["CONFIDENCE"] == 0
    assert not patch["FACE"].any()
    assert np.isfinite(patch["TRANSFORM"]).all()
    np.testing.assert_array_equal(raw("lipsync", **{**good, "FRAME": frame})["SYNCED"], frame)


@pytest.mark.parametrize("hint", [(0, 0, 0, 0), (np.nan,) * 4, (5, 5, 5, 5), (-1e9, -1e9, 1e9, 1e9), (np.inf, 0, 0, 0)])
def test_invalid_hints_are_ignored(raw: Any, good: dict[str, Any], hint: tuple[float, ...]) -> None:
    without = raw("lipsync_patch", **good)
    answer = raw("lipsync_patch", **good, FACE_HINT=np.array(hint, np.float32))
    assert answer["CONFIDENCE"] > 0.7
    np.testing.assert_allclose(answer["FACE"], without["FACE"], atol=0.05 * np.ptp(without["FACE"]))


def test_other_requests_of_a_batch_succeed(raw: Any, good: dict[str, Any]) -> None:
    nan = np.full_like(good["AUDIO"], np.nan)
    requests = [
        good,
        {**good, "TWIN": ids("0" * 32)},
        good,
        {**good, "AUDIO": nan},
        {**good, "FRAME": BAD_FRAMES["damaged"][0]},
        good,
        {**good, "FRAME": BAD_FRAMES["truncated"][0]},
        good,
    ]
    answers = raw.together("lipsync_patch", requests * 2)
    expected = raw("lipsync_patch", **good)["PATCH"].astype(int)
    for request, answer in zip(requests * 2, answers, strict=True):
        if request is good:
            assert not isinstance(answer, Exception), answer
            assert np.abs(answer["PATCH"] - expected).max() <= 1
        else:
            assert answer.status() in (INVALID, MISSING)


def test_an_affine_that_is_not_finite_fails_alone(raw_unfused: Any) -> None:
    reference = np.random.default_rng(0).standard_normal((CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH)).astype(np.float32)
    affine = np.tile(np.array([1, 0, 0, 0], np.float32), (CHANNELS, 1))
    bad = affine.copy()
    bad[3, 1] = np.nan
    answers = raw_unfused.together(
        "lipsync_adaat", [{"REFERENCE": reference, "AFFINE": bad if k == 2 else affine} for k in range(6)]
    )
    assert "AFFINE holds numbers that are not finite" in answers[2].message()
    assert answers[2].status() == INVALID
    for k in (0, 1, 3, 4, 5):
        np.testing.assert_allclose(answers[k]["ALIGNED"], reference, atol=1e-4)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "FRAMES"),
        ([b""], r"FRAMES\[0\] is empty"),
        ([b"\xff\xfe binary that is not text \x00\x80"], r"FRAMES\[0\] must be a JPEG or PNG picture"),
        ([bytes(cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1])] * 2, "no face in any of its 2 frames"),
        ([b"x"] * 301, "holds 301 frames, must hold 1 to 300"),
    ],
    ids=["none", "empty", "binary", "black", "too many"],
)
def test_invalid_registrations(raw: Any, frames: list[bytes], message: str) -> None:
    with pytest.raises(triton.InferenceServerException, match=message) as caught:
        raw("lipsync_twin", FRAMES=np.array(frames, np.object_))
    assert caught.value.status() == INVALID


def test_a_removed_twin_is_deleted(raw: Any, server: Any, good: dict[str, Any], images: Any) -> None:
    from insync.ensemble.models.twin_store import TwinStore

    answer = raw("lipsync_twin", FRAMES=np.array([bytes(good["FRAME"])], np.object_))
    twin = answer["TWIN"].tobytes().decode()
    raw("lipsync_patch", **{**good, "TWIN": ids(twin)})
    TwinStore(server.twin_store).remove(twin)
    with pytest.raises(triton.InferenceServerException, match="not in the twin store") as caught:
        raw("lipsync_patch", **{**good, "TWIN": ids(twin)})
    assert caught.value.status() == MISSING


def test_a_well_formed_request(raw: Any, good: dict[str, Any]) -> None:
    """Otherwise the tests above would also pass with a server that refuses everything."""
    answer = raw("lipsync_patch", **good)
    assert answer["PATCH"].shape == (CROP_SIZE, CROP_SIZE, 4)
    assert answer["PATCH"].dtype == np.uint8
    assert answer["CONFIDENCE"] > 0.7
    synced = raw("lipsync", **good)["SYNCED"]
    image, source = (cv2.imdecode(data, cv2.IMREAD_COLOR).astype(int) for data in (synced, good["FRAME"]))
    assert image.shape == source.shape
    x0, y0, x1, y1 = (int(v) for v in answer["FACE"])
    outside = np.abs(image - source)
    outside[y0 : y1 + 40, x0 - 40 : x1 + 40] = 0
    assert outside.mean() < 1.5  # one more JPEG generation, and nothing else
