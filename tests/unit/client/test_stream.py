"""The stream against a gRPC server on this machine with Triton's protocol, which takes a bright square for a face."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from tests.support.fake_triton import GREEN, SILENCE, TWIN, Speaker, collect, scene, serving

from insync.client import BadInput, Client, NotFound, ProtocolError, ServerTimeout, ServerUnavailable, TimedFrame
from insync.client.streaming.timings import StageClock
from insync.core import spec
from insync.core.images import encode_jpeg, encode_png


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
def address(speaker: Speaker) -> Iterator[str]:
    with serving(speaker) as (address, _):
        yield address


def green(image: np.ndarray[Any, Any]) -> tuple[float, float, int]:
    """Return centre and number of the patch's pixels."""
    rows, columns = np.nonzero(np.abs(image.astype(int) - GREEN).max(axis=2) < 40)
    return float(columns.mean()), float(rows.mean()), len(rows)


@pytest.mark.parametrize("region", [True, False])
def test_patches_are_pasted_on_the_face_and_nothing_else_changes(address: str, speaker: Speaker, region: bool) -> None:
    frames = [scene(100 + 4 * k) for k in range(12)]
    synced = asyncio.run(collect(address, frames, region=region))
    assert [s.index for s in synced] == list(range(12))
    for k, one in enumerate(synced):
        x, y, pixels = green(one.image)
        # In the crop the disc's centre is (128, 160) and the face's (127.5, 127.5), at 128 crop pixels a face.
        assert x == pytest.approx(100 + 4 * k + 44.5 + 0.5 * 90 / 128, abs=0.7)
        assert y == pytest.approx(120 + 44.5 + 32.5 * 90 / 128, abs=0.7)
        assert pixels == pytest.approx(np.pi * (30 * 90 / 128) ** 2, rel=0.15)
        np.testing.assert_allclose(one.face, [100 + 4 * k, 120, 190 + 4 * k, 210], atol=2)
        untouched = np.ones(one.image.shape[:2], bool)
        untouched[140:230, 105 + 4 * k : 185 + 4 * k] = False
        np.testing.assert_array_equal(one.image[untouched], frames[k][untouched])
        assert one.changed
    np.testing.assert_array_equal(frames[0], scene(100))  # the caller's own pixels stay
    sizes = {cv2.imdecode(r["FRAME"][0], 1).shape for r in speaker.requests[1:]}
    assert (sizes == {(360, 640, 3)}) is not region


def test_large_faces_are_sent_small_and_still_pasted_exactly(address: str, speaker: Speaker) -> None:
    frames = [scene(700, 300, 500, (1920, 1080)) for _ in range(4)]
    synced = asyncio.run(collect(address, frames))
    for one in synced:
        x, y, _ = green(one.image)
        assert x == pytest.approx(700 + 249.5 + 0.5 * 500 / 128, abs=4)
        assert y == pytest.approx(300 + 249.5 + 32.5 * 500 / 128, abs=4)
    assert max(cv2.imdecode(r["FRAME"][0], 1).shape[1] for r in speaker.requests[1:]) < 400


def test_a_small_face_in_a_large_frame_is_sent_again_at_full_resolution(address: str, speaker: Speaker) -> None:
    synced = asyncio.run(collect(address, [scene(2000, 1200, 100, (3840, 2160))]))
    assert [cv2.imdecode(r["FRAME"][0], 1).shape[1] < 500 for r in speaker.requests] == [False, True]
    assert speaker.requests[1]["FACE_HINT"].any()
    x, y, _ = green(synced[0].image)
    assert x == pytest.approx(2000 + 49.5 + 0.5 * 100 / 128, abs=0.7)
    assert y == pytest.approx(1200 + 49.5 + 32.5 * 100 / 128, abs=0.7)


def test_a_face_that_jumps_out_of_its_region_is_found_again_in_order(address: str, speaker: Speaker) -> None:
    frames = [scene(60)] * 6 + [scene(500)] * 6
    synced = asyncio.run(collect(address, frames))
    assert [s.index for s in synced] == list(range(12))
    assert [green(s.image)[0] > 400 for s in synced] == [False] * 6 + [True] * 6
    assert len(speaker.requests) > 12


def test_frames_without_a_face_are_not_changed(address: str) -> None:
    frames = [scene(100), scene(0, side=0), scene(100)]
    synced = asyncio.run(collect(address, frames))
    assert [s.changed for s in synced] == [True, False, True]
    assert synced[1].confidence == 0
    assert not synced[1].face.any()
    np.testing.assert_array_equal(synced[1].image, frames[1])


def test_the_hint_is_the_face_of_the_last_response(address: str, speaker: Speaker) -> None:
    asyncio.run(collect(address, [scene(100 + k) for k in range(6)], region=False, in_flight=1))
    hints = [request["FACE_HINT"][0] for request in speaker.requests]
    assert not hints[0].any()
    for k in range(1, 6):
        np.testing.assert_allclose(hints[k], [99 + k, 120, 189 + k, 210], atol=2)


@pytest.mark.parametrize("kind", ["list", "array", "generator", "async", "jpeg", "png", "timed"])
def test_any_iterable_and_any_frame(address: str, kind: str) -> None:
    images = [scene(100 + 10 * k) for k in range(4)]

    async def live() -> AsyncIterator[np.ndarray[Any, Any]]:
        for image in images:
            await asyncio.sleep(0.001)
            yield image

    frames: Any = {
        "list": images,
        "array": np.stack(images),
        "generator": (image for image in images),
        "async": live(),
        "jpeg": [encode_jpeg(image, 95) for image in images],
        "png": iter([encode_png(image) for image in images]),
        "timed": [TimedFrame(image, 0.1 * k) for k, image in enumerate(images)],
    }[kind]
    synced = asyncio.run(collect(address, frames))
    assert [round((s.face[0] - 100) / 10) for s in synced] == [0, 1, 2, 3]
    assert [s.time_s for s in synced] == pytest.approx([(0.1 if kind == "timed" else 0.04) * k for k in range(4)])


def test_every_frame_has_its_own_audio_window_and_silence_after_the_end(address: str) -> None:
    audio = np.linspace(-1, 1, 16_000, dtype=np.float32)

    async def pieces() -> AsyncIterator[np.ndarray[Any, Any]]:
        for start in range(0, 16_000, 777):
            yield audio[start : start + 777]

    synced = asyncio.run(collect(address, [scene(100)] * 40, pieces()))
    padded = np.concatenate([np.zeros(4480), audio, np.zeros(32_000)])
    for k, one in enumerate(synced):
        assert one.mouth[0] == pytest.approx(padded[640 * k : 640 * k + 6400].mean(), abs=1e-5)
    assert synced[-1].mouth[0] == 0


def test_frames_in_flight_are_bounded_and_a_slow_consumer_pauses_the_reading(address: str, speaker: Speaker) -> None:
    read = 0

    def frames() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal read
        for _ in range(60):
            read += 1
            yield scene(100)

    async def slow() -> int:
        most = 0
        async with Client(address) as client:
            async for synced in client.stream(frames(), SILENCE, twin=TWIN, in_flight=4):
                await asyncio.sleep(0.02)
                most = max(most, read - synced.index)
        return most

    assert asyncio.run(slow()) <= 6
    assert read == 60
    assert speaker.most_busy <= 4


def test_requests_overlap_and_order_is_kept(address: str, speaker: Speaker) -> None:
    speaker.before = lambda number: time.sleep(0.05 if number % 3 else 0.12)
    synced = asyncio.run(collect(address, [scene(100)] * 24))
    assert [s.index for s in synced] == list(range(24))
    assert speaker.most_busy > 4


def test_a_live_source_gets_each_frame_as_soon_as_it_is_ready(address: str) -> None:
    async def run() -> int:
        shown = asyncio.Semaphore(0)

        async def camera() -> AsyncIterator[np.ndarray[Any, Any]]:
            for _ in range(10):
                yield scene(100)
                # The next frame is only filmed after this one is returned: a client that waits for more frames hangs here.
                await asyncio.wait_for(shown.acquire(), 60)

        count = 0
        async with Client(address) as client:
            async for _ in client.stream(camera(), SILENCE, twin=TWIN):
                count += 1
                shown.release()
        return count

    assert asyncio.run(run()) == 10


def test_leaving_early_cancels_requests_in_flight(address: str, speaker: Speaker) -> None:
    closed = threading.Event()
    speaker.before = lambda number: time.sleep(0.5 if number > 2 else 0)

    def frames() -> Iterator[np.ndarray[Any, Any]]:
        try:
            while True:
                yield scene(100)
        finally:
            closed.set()

    async def leave() -> float:
        async with Client(address) as client:
            async with aclosing(client.stream(frames(), SILENCE, twin=TWIN)) as stream:
                async for synced in stream:
                    if synced.index == 2:
                        break
                start = time.perf_counter()
            took = time.perf_counter() - start
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others
        return took

    assert asyncio.run(leave()) < 0.4
    assert closed.is_set()
    deadline = time.monotonic() + 3
    while speaker.cancelled < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert speaker.cancelled >= 1


def test_cancelling_the_consumer_ends_the_stream(address: str, speaker: Speaker) -> None:
    speaker.before = lambda number: time.sleep(0.2)

    async def run() -> None:
        task = asyncio.create_task(collect(address, [scene(100)] * 100))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gc.collect()
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    assert len(speaker.requests) < 30


def test_a_server_that_dies_is_an_error_and_does_not_hang() -> None:
    speaker = Speaker()
    with serving(speaker) as (address, server):

        async def run() -> None:
            seen = 0
            async with Client(address, retry_s=0.5) as client:
                async for _ in client.stream((scene(100) for _ in range(10_000)), SILENCE, twin=TWIN):
                    seen += 1
                    if seen == 5:
                        server.stop(None)

        start = time.perf_counter()
        with pytest.raises(ServerUnavailable, match=r"frame \d+: no server answers at") as caught:
            asyncio.run(run())
        assert caught.value.retryable
        assert time.perf_counter() - start < 5


def test_a_server_that_hangs_is_a_timeout(address: str, speaker: Speaker) -> None:
    release = threading.Event()

    def hang(number: int) -> None:
        if number >= 3:
            release.wait(10)

    speaker.before = hang

    async def run() -> None:
        async with Client(address, request_timeout_s=0.3, retry_s=0) as client:
            async for _ in client.stream([scene(100)] * 9, SILENCE, twin=TWIN):
                pass

    with pytest.raises(ServerTimeout, match="did not answer in time"):
        asyncio.run(run())
    release.set()


def test_frames_before_a_failing_one_are_returned_first(address: str) -> None:
    seen = []

    async def run() -> None:
        frames = [scene(100)] * 5 + [np.zeros((3, 3), np.uint8)]
        async with Client(address) as client:
            async for synced in client.stream(frames, SILENCE, twin=TWIN):
                seen.append(synced.index)

    with pytest.raises(BadInput, match=r"frame 5 is uint8 \[3, 3\]"):
        asyncio.run(run())
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"", r"0 bytes that begin with b''"),
        (b"GIF89a", "it must be a JPEG or PNG"),
        (encode_jpeg(scene(100), 90)[:-500], "cut off: the JPEG's end is missing"),
        (encode_png(scene(100))[:-500], "cut off: the PNG's end is missing"),
        (np.zeros((64, 64, 3), np.float32), r"float32 \[64, 64, 3\]; it must be uint8"),
        (np.zeros((64, 64, 4), np.uint8), r"uint8 \[64, 64, 4\]"),
        (np.zeros((4, 64, 3), np.uint8), "at least 16×16"),
        ("frame.jpg", "is a str"),
        (None, "is a NoneType"),
    ],
)
def test_invalid_frames(address: str, frame: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        asyncio.run(collect(address, [frame]))


def test_audio_that_is_not_finite(address: str) -> None:
    audio = np.zeros(16_000, np.float32)
    audio[9_000] = np.nan
    with pytest.raises(BadInput, match="audio sample 9000 is nan"):
        asyncio.run(collect(address, [scene(100)] * 30, audio))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"in_flight": 0}, "in_flight is 0"),
        ({"composite": "cloud"}, "it must be 'client' or 'server'"),
        ({"audio_rate_hz": 5}, "audio rate is 5 Hz"),
    ],
)
def test_invalid_options(address: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        asyncio.run(collect(address, [], **options))


def test_invalid_sources(address: str) -> None:
    with pytest.raises(BadInput, match="frames is one str"):
        asyncio.run(collect(address, "clip.mp4"))
    with pytest.raises(BadInput, match="audio is a int"):
        asyncio.run(collect(address, [], 5))
    with pytest.raises(BadInput, match=r"frame 1 has time 0\.0000 s, before"):
        asyncio.run(collect(address, [TimedFrame(scene(100), 1), TimedFrame(scene(100), 0)]))


def test_an_unknown_twin(address: str, speaker: Speaker) -> None:
    speaker.code = grpc.StatusCode.NOT_FOUND
    with pytest.raises(NotFound, match="frame 0: twin is unknown"):
        asyncio.run(collect(address, [scene(100)]))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PATCH", np.zeros((1, 128, 128, 4), np.uint8), r"PATCH is uint8 \[128, 128, 4\], expected"),
        ("PATCH", None, "PATCH is missing"),
        ("FACE", np.zeros((1, 4), np.uint8), "FACE is uint8"),
        ("TRANSFORM", np.full((1, 2, 3), np.nan, np.float32), "TRANSFORM or CONFIDENCE is invalid"),
        ("TRANSFORM", np.zeros((1, 2, 3), np.float32), "TRANSFORM or CONFIDENCE is invalid"),
    ],
)
def test_malformed_responses(address: str, speaker: Speaker, name: str, value: Any, text: str) -> None:
    def change(outputs: dict[str, np.ndarray[Any, Any]]) -> None:
        outputs.pop(name)
        if value is not None:
            outputs[name] = value

    speaker.change = change
    with pytest.raises(ProtocolError, match=text):
        asyncio.run(collect(address, [scene(100)]))


def test_compositing_by_the_server(address: str, speaker: Speaker) -> None:
    frames = [encode_jpeg(scene(100), 90), scene(100)]
    synced = asyncio.run(collect(address, frames, composite="server"))
    assert {request["model"] for request in speaker.requests} == {"lipsync"}
    assert synced[0].encoded == frames[0]
    assert not synced[0].changed
    assert synced[0].transform is None
    assert synced[1].image.shape == (360, 640, 3)


def test_registration_samples_evenly_and_bounded(address: str, speaker: Speaker) -> None:
    image = np.full((900, 1600, 3), 90, np.uint8)

    async def run(count: int) -> Any:
        async with Client(address) as client:
            return await client.register(image for _ in range(count))

    twin = asyncio.run(run(250))
    assert twin == TWIN
    assert 32 <= twin.report["frames"] <= 64
    first = speaker.requests[0]["FRAMES"]
    length = int.from_bytes(first[:4], "little")
    assert cv2.imdecode(np.frombuffer(first[4 : 4 + length], np.uint8), 1).shape == (720, 1280, 3)
    with pytest.raises(BadInput, match="must be at least one frame"):
        asyncio.run(run(0))


def test_stages_are_timed(address: str) -> None:
    clock = StageClock()
    asyncio.run(collect(address, [scene(100)] * 10, clock=clock))
    stages = clock.stages(10)
    assert stages.requests == 10
    assert stages.fps > 0
    assert stages.sent_bytes > 10_000
    assert min(stages.prepare_ms, stages.server_ms, stages.paste_ms) > 0
    assert stages.totals_s["server"] == pytest.approx(stages.server_ms / 100)


def test_closing_the_client_ends_its_streams(address: str) -> None:
    async def run() -> None:
        client = Client(address)
        await client.connect()
        stream = client.stream((scene(100) for _ in range(1000)), SILENCE, twin=TWIN)
        assert (await anext(stream)).index == 0
        await client.close()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_the_client_sends_the_inputs_of_the_models() -> None:
    assert {tensor.name for tensor in spec.MODELS["lipsync_patch"].inputs} == {
        *("FRAME", "AUDIO", "TWIN", "FACE_HINT", "STREAM", "RATE")
    }
