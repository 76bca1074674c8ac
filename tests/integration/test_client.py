"""The client against the real server."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.client import BadInput, Client, NotFound, ServerUnavailable, Twin
from insync.client.media.audio_reader import AudioFile
from insync.client.streaming.audio_windows import slices
from insync.client.streaming.stream import SyncedFrame
from insync.core.images import encode_jpeg
from insync.core.spec import CROP_SIZE, SAMPLE_RATE_HZ
from insync.ensemble.server.embedded import EmbeddedServer

pytestmark = pytest.mark.triton

Image = NDArray[np.uint8]
SILENCE = np.zeros(SAMPLE_RATE_HZ, np.float32)


async def collect(address: str, frames: Any, audio: Any, twin: str, **options: Any) -> list[SyncedFrame]:
    async with Client(address) as client:
        return [synced async for synced in client.stream(frames, audio, twin=twin, **options)]


@pytest.fixture(scope="module")
def registered(server: EmbeddedServer, images: list[Image]) -> Twin:
    async def register() -> Twin:
        async with Client(server.grpc_url) as client:
            return await client.register(images[::4])

    return asyncio.run(register())


@pytest.fixture(scope="module")
def speech(root: Path) -> NDArray[np.float32]:
    return np.concatenate(list(AudioFile(root / "samples" / "speech.wav").speech()))


def where_changed(synced: SyncedFrame, source: Image) -> NDArray[np.float64]:
    """Return the crop's coordinates [2, N] of every pixel that differs from the source."""
    rows, columns = np.nonzero((synced.image != source).any(axis=2))
    assert synced.transform is not None
    return np.asarray(synced.transform @ np.stack([columns, rows, np.ones(len(rows))]), np.float64)


def test_registration_gives_an_id_and_a_report(registered: Twin) -> None:
    assert len(registered) == 32
    assert int(registered, 16) >= 0
    assert registered.report


def test_every_frame_gets_a_mouth_and_nothing_else_changes(
    server: EmbeddedServer, images: list[Image], registered: Twin, speech: NDArray[np.float32]
) -> None:
    frames = images[:16]
    synced = asyncio.run(collect(server.grpc_url, frames, slices(speech, SAMPLE_RATE_HZ), registered))
    assert [s.index for s in synced] == list(range(16))
    for one, source in zip(synced, frames, strict=True):
        assert one.confidence > 0.7
        assert one.changed
        assert one.mouth.shape == (12,)
        u, v = where_changed(one, source)
        assert u.min() > 20
        assert u.max() < 236
        assert v.min() > 90  # under the eyes


def test_a_region_gives_the_same_result_as_the_whole_frame(
    server: EmbeddedServer, images: list[Image], registered: Twin, speech: NDArray[np.float32]
) -> None:
    frames = images[:10]
    by_region = asyncio.run(collect(server.grpc_url, frames, speech, registered))
    whole = asyncio.run(collect(server.grpc_url, frames, speech, registered, region=False))
    assert by_region[-1].sent_bytes < 0.5 * whole[-1].sent_bytes
    corners = np.array([[0, 0, 1], [255, 0, 1], [0, 255, 1], [255, 255, 1]])
    distances = []
    for one, other in zip(by_region, whole, strict=True):
        assert one.transform is not None
        assert other.transform is not None
        # Distance of the two crops' corners, as a share of the crop: landmarks jitter with the picture's edges.
        there = np.vstack([other.transform, [0, 0, 1]]) @ np.linalg.inv(np.vstack([one.transform, [0, 0, 1]]))
        distances.append(float(np.abs(corners @ there.T - corners).max()) / CROP_SIZE)
        np.testing.assert_allclose(one.face, other.face, atol=3)
        np.testing.assert_allclose(one.mouth, other.mouth, atol=0.15 * max(1.0, float(np.abs(other.mouth).max())))
    assert np.median(distances) < 0.015
    assert max(distances) < 0.04


def test_a_large_frame_is_sent_small(server: EmbeddedServer, images: list[Image], registered: Twin) -> None:
    large = cv2.resize(images[0], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    (synced,) = asyncio.run(collect(server.grpc_url, [np.asarray(large, np.uint8)], SILENCE, registered))
    assert synced.changed
    (small,) = asyncio.run(collect(server.grpc_url, [images[0]], SILENCE, registered))
    np.testing.assert_allclose(synced.face / 3, small.face, atol=4)


def test_frames_without_a_face_are_not_changed_and_stay_in_order(
    server: EmbeddedServer, images: list[Image], registered: Twin
) -> None:
    black = np.zeros_like(images[0])
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 255, images[0].shape, np.uint8), (0, 0), 4)
    frames = [images[0], black, np.asarray(noise, np.uint8), images[1], black, images[2]]
    synced = asyncio.run(collect(server.grpc_url, frames, SILENCE, registered))
    assert [s.changed for s in synced] == [True, False, False, True, False, True]
    for one, source in zip(synced, frames, strict=True):
        if not one.changed:
            np.testing.assert_array_equal(one.image, source)
            assert one.confidence == 0


def test_the_server_composites_the_same_picture(server: EmbeddedServer, images: list[Image], registered: Twin) -> None:
    frames = [encode_jpeg(image, 95) for image in images[:3]]
    here = asyncio.run(collect(server.grpc_url, frames, SILENCE, registered, region=False))
    there = asyncio.run(collect(server.grpc_url, frames, SILENCE, registered, composite="server"))
    for one, other in zip(here, there, strict=True):
        assert other.encoded is not None
        assert other.image.shape == one.image.shape
        assert np.abs(one.image.astype(int) - other.image).mean() < 3


def test_several_streams_at_once(server: EmbeddedServer, images: list[Image], registered: Twin) -> None:
    async def run() -> list[list[SyncedFrame]]:
        async with Client(server.grpc_url) as client:

            async def one(start: int) -> list[SyncedFrame]:
                stream = client.stream(images[start : start + 6], SILENCE, twin=registered, in_flight=3)
                return [synced async for synced in stream]

            return await asyncio.gather(*(one(start) for start in (0, 8, 16)))

    for start, synced in zip((0, 8, 16), asyncio.run(run()), strict=True):
        assert [s.index for s in synced] == list(range(6))
        for offset, frame in enumerate(synced):
            u, v = where_changed(frame, images[start + offset])
            assert min(u.min(), v.min()) > -2
            assert max(u.max(), v.max()) < 258


def test_malformed_input_is_refused_with_a_clear_error(
    server: EmbeddedServer, images: list[Image], registered: Twin
) -> None:
    url = server.grpc_url
    with pytest.raises(NotFound, match=r"frame 0:.*TWIN"):
        asyncio.run(collect(url, [images[0]], SILENCE, "0" * 32))
    with pytest.raises((NotFound, BadInput), match="TWIN"):
        asyncio.run(collect(url, [images[0]], SILENCE, "../../etc/passwd"))
    with pytest.raises(BadInput, match=r"frame 1 .*cut off"):
        asyncio.run(collect(url, [images[0], encode_jpeg(images[0], 90)[:-900]], SILENCE, registered))
    huge = encode_jpeg(np.full((4_000, 5_000, 3), 90, np.uint8), 80)
    with pytest.raises(BadInput, match=r"FRAME.*5000"):
        asyncio.run(collect(url, [huge], SILENCE, registered, region=False))
    loud = SILENCE.copy()
    loud[3_000] = np.inf
    with pytest.raises(BadInput, match="audio sample 3000 is inf"):
        asyncio.run(collect(url, [images[0]], loud, registered))


def test_a_20_megapixel_frame_is_accepted_when_only_its_face_is_sent(
    server: EmbeddedServer, images: list[Image], registered: Twin
) -> None:
    canvas = np.full((4_000, 5_000, 3), 90, np.uint8)
    canvas[1_000 : 1_000 + 2 * 720, 1_000 : 1_000 + 2 * 1280] = cv2.resize(images[0], None, fx=2, fy=2)
    (synced,) = asyncio.run(collect(server.grpc_url, [canvas], SILENCE, registered))
    assert synced.changed


def test_registering_needs_a_face(server: EmbeddedServer) -> None:
    async def register(frames: Any) -> Twin:
        async with Client(server.grpc_url) as client:
            return await client.register(frames)

    with pytest.raises(BadInput, match=r"registering:.*face"):
        asyncio.run(register([np.zeros((240, 320, 3), np.uint8)] * 3))


def test_leaving_early_does_not_harm_the_server(server: EmbeddedServer, images: list[Image], registered: Twin) -> None:
    async def leave() -> None:
        async with Client(server.grpc_url) as client:
            stream = client.stream((images[k % 32] for k in range(10_000)), SILENCE, twin=registered)
            async for synced in stream:
                if synced.index == 3:
                    break
            await stream.aclose()

    asyncio.run(leave())
    assert len(asyncio.run(collect(server.grpc_url, images[:3], SILENCE, registered))) == 3


def test_a_server_that_dies_in_the_middle(tmp_path: Path, images: list[Image]) -> None:
    async def run(dying: EmbeddedServer) -> None:
        async with Client(dying.grpc_url, retry_s=1) as client:
            twin = await client.register(images[:4])
            async for synced in client.stream((images[k % 32] for k in range(10_000)), SILENCE, twin=twin):
                if synced.index == 4:
                    assert dying.pid is not None
                    os.kill(dying.pid, signal.SIGKILL)

    with (
        EmbeddedServer(twin_store=tmp_path / "twins") as dying,
        pytest.raises(ServerUnavailable, match=r"frame \d+: no server answers at") as caught,
    ):
        asyncio.run(asyncio.wait_for(run(dying), 60))
    assert caught.value.retryable
