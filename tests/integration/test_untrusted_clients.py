"""Untrusted clients on one server: none gets another's person or speech, none can manage it or break it for others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tests.integration.conftest import jpeg, octets
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.fuzzing.messages import Kit, Sent, request
from benchmarks.fuzzing.run import CAPACITY_FPS, fuzz
from insync.client import Client, NotFound
from insync.core.settings import CAPACITY_VARIABLE
from insync.core.spec import ALL_MODELS, CANARY, WINDOW_SAMPLES
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.security import admin_headers

pytestmark = pytest.mark.triton

FRAMES = 3
# People who differ in colour: factors of red, green and blue.
PEOPLE = ((1, 1, 1), (1, 0.85, 0.7), (0.75, 0.85, 1), (0.65, 0.65, 0.65), (1, 0.75, 0.85), (0.8, 1, 0.8))

Images = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def footage(images: Images) -> list[Images]:
    """Return a few frames of each person."""
    return [[(image * np.array(tint, np.float32)).astype(np.uint8) for image in images[:FRAMES]] for tint in PEOPLE]


@pytest.fixture(scope="module")
def speech() -> list[NDArray[np.float32]]:
    """Return the speech of each person, with different pitch and loudness."""
    t = np.arange(WINDOW_SAMPLES) / 16_000
    hum = [sum(np.sin(2 * np.pi * h * 90 * 1.5**k * t) / h for h in range(1, 6)) for k in range(len(PEOPLE))]
    return [(0.05 * 1.4**k * wave).astype(np.float32) for k, wave in enumerate(hum)]


@pytest.fixture(scope="module")
def twins(raw: Any, footage: list[Images]) -> list[NDArray[np.object_]]:
    made = [raw("lipsync_twin", FRAMES=np.array([jpeg(one) for one in frames], np.object_)) for frames in footage]
    return [np.array([one["TWIN"].tobytes()], np.object_) for one in made]


def test_responses_do_not_depend_on_other_requests(
    raw: Any, footage: list[Images], speech: list[NDArray[np.float32]], twins: list[NDArray[np.object_]]
) -> None:
    """All requests are sent at once, so that they share batches: each response is the same as for a single request."""
    requests = [
        {"FRAME": octets(jpeg(frames[n])), "AUDIO": speech[k], "TWIN": twins[k]}
        for n in range(FRAMES)
        for k, frames in enumerate(footage)
    ]
    alone = [raw("lipsync_patch", **request) for request in requests]
    for answers in (raw.together("lipsync_patch", requests), raw.together("lipsync_patch", requests[::-1])[::-1]):
        for one, answer in zip(alone, answers, strict=True):
            # Rounding of the last bit depends on the batch size.
            for name, tolerance in (("PATCH", 1), ("MOUTH", 2e-4), ("TRANSFORM", 1e-3), ("FACE", 1e-2)):
                assert np.abs(answer[name].astype(float) - one[name]).max() <= tolerance, name
    # An input of another person would change the response.
    for k, own in enumerate(requests[: len(PEOPLE)]):
        other = requests[(k + 1) % len(PEOPLE)]
        for name, shows in (("FRAME", "PATCH"), ("TWIN", "PATCH"), ("AUDIO", "MOUTH")):
            mixed = raw("lipsync_patch", **{**own, name: other[name]})[shows].astype(float)
            assert np.abs(mixed - alone[k][shows]).max() > (10 if shows == "PATCH" else 2e-3), name


def test_streams_do_not_depend_on_other_streams(
    server: EmbeddedServer,
    footage: list[Images],
    speech: list[NDArray[np.float32]],
    twins: list[NDArray[np.object_]],
) -> None:
    async def one(client: Client, k: int) -> Images:
        stream = client.stream(footage[k], np.tile(speech[k], 3), twin=twins[k][0].decode(), audio_rate_hz=16_000)
        return [synced.image.astype(np.int16) async for synced in stream]

    async def run() -> tuple[list[Images], list[Images]]:
        async with Client(server.grpc_url) as client:
            alone = [await one(client, k) for k in range(len(PEOPLE))]
            return alone, await asyncio.gather(*(one(client, k) for k in range(len(PEOPLE))))

    alone, together = asyncio.run(run())
    for k, frames in enumerate(together):
        assert len(frames) == FRAMES
        for n, frame in enumerate(frames):
            distances = [float(np.abs(frame - other[n]).mean()) for other in alone]
            assert distances.index(min(distances)) == k
            assert distances[k] < 0.1 * sorted(distances)[1]


def test_management_requires_the_admin_key(server: EmbeddedServer) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        register = service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=64)
        for call, message in (
            (stub.RepositoryIndex, service_pb2.RepositoryIndexRequest()),
            (stub.RepositoryModelUnload, service_pb2.RepositoryModelUnloadRequest(model_name="lipsync")),
            (stub.SystemSharedMemoryRegister, register),
            (stub.ModelStatistics, service_pb2.ModelStatisticsRequest()),
            (stub.TraceSetting, service_pb2.TraceSettingRequest()),
            (stub.LogSettings, service_pb2.LogSettingsRequest()),
        ):
            for headers in ({}, admin_headers("0" * 64)):
                with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
                    call(message, metadata=list(headers.items()), timeout=20)
    with triton.InferenceServerClient(server.grpc_url) as client:
        assert client.is_model_ready("lipsync")
        index = client.get_model_repository_index(headers=admin_headers(server.admin_key))
        assert {model.name for model in index.models} == set(ALL_MODELS)


def test_deleting_a_twin_requires_its_id(server: EmbeddedServer, raw: Any, photo: NDArray[np.uint8]) -> None:
    made = raw("lipsync_twin", FRAMES=np.array([bytes(photo)], np.object_))["TWIN"].tobytes().decode()
    folder = Path(server.twin_store) / made
    assert folder.is_dir()

    async def run() -> None:
        async with Client(server.grpc_url) as client:
            for wrong in (made[:-1], made.upper(), "*", ".", f"../{made}", "0" * 32):
                with pytest.raises(NotFound):
                    await client.delete(wrong)
            assert folder.is_dir()
            await client.delete(made)
            for _ in range(2):
                with pytest.raises(NotFound, match="not in the twin store"):
                    await client.delete(made)

    asyncio.run(run())
    assert not list(Path(server.twin_store).glob(f"*{made}*"))
    request = {"FRAME": photo, "AUDIO": np.zeros(WINDOW_SAMPLES, np.float32), "TWIN": np.array([made], np.object_)}
    with pytest.raises(triton.InferenceServerException, match="not in the twin store"):
        raw("lipsync_patch", **request)


def test_twins_cannot_be_listed(raw: Any, twins: list[NDArray[np.object_]]) -> None:
    """Ids that are unknown, invalid, or differ in one digit from a known one all get the same error."""
    errors = set()
    for wrong in ("0" * 32, "*", "", twins[0][0].decode()[:-1], twins[0][0].decode()[:-1] + "g"):
        with pytest.raises(triton.InferenceServerException) as caught:
            raw("lipsync_twin", FORGET=np.array([wrong], np.object_))
        errors.add((caught.value.status(), caught.value.message().replace(repr(wrong), "…")))
    assert len(errors) == 1


def test_requesting_classification_is_harmless(server: EmbeddedServer, photo: NDArray[np.uint8]) -> None:
    """Triton 2.51 divides by the size of an output's elements to classify them: 0 for strings."""
    frames = triton.InferInput("FRAMES", [1], "BYTES")
    frames.set_data_from_numpy(np.array([bytes(photo)], np.object_))
    with triton.InferenceServerClient(server.grpc_url) as client:
        for name in ("TWIN", "REPORT"):
            wanted = [triton.InferRequestedOutput(name, class_count=2)]
            client.infer("lipsync_twin", [frames], outputs=wanted, client_timeout=60)
    server.check()


def test_empty_batches_do_not_affect_other_requests(
    server: EmbeddedServer, raw: Any, images: Images, audio: NDArray[np.float32], twin: NDArray[np.object_]
) -> None:
    """Triton passes them to a model, which would fail all requests of the same batch."""
    kit = Kit(images[0], twin[0].decode(), server.models)
    good = {"FRAME": octets(jpeg(images[0])), "AUDIO": audio, "TWIN": twin}
    expected = raw("lipsync_patch", **good)["MOUTH"]
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        sent = []
        for model in server.models:
            inputs = {n: Sent(t.datatype, (0, *t.shape[1:]), t.data) for n, t in kit.good(model).items()}
            sent += [stub.ModelInfer.future(request(model, inputs), timeout=60) for _ in range(6)]
        for answer in raw.together("lipsync_patch", [good] * 12):
            assert not isinstance(answer, Exception), answer
            np.testing.assert_allclose(answer["MOUTH"], expected, atol=1e-3)
        assert all(future.exception() is None or future.code() for future in sent)  # each has its own response


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Start a server with this capacity."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CAPACITY_VARIABLE, str(CAPACITY_FPS))
        with EmbeddedServer(twin_store=tmp_path_factory.mktemp("limited") / "twins") as running:
            yield running


def test_malformed_and_refused_requests_hold_no_capacity(
    limited: EmbeddedServer, photo: NDArray[np.uint8], audio: NDArray[np.float32]
) -> None:
    nan = np.full_like(audio, np.nan)

    def request_capacity(
        *streams: tuple[str, float],
        frame: NDArray[np.uint8] = photo,
        sound: NDArray[np.float32] = audio,
        twin: str = CANARY,
    ) -> None:
        names, rates = (np.array(column)[:, None] for column in zip(*streams, strict=True))
        values: dict[str, tuple[str, NDArray[Any]]] = {
            "FRAME": ("UINT8", np.stack([frame] * len(streams))),
            "AUDIO": ("FP32", np.stack([sound] * len(streams))),
            "TWIN": ("BYTES", np.full((len(streams), 1), twin, np.object_)),
            "STREAM": ("BYTES", names.astype(np.object_)),
            "RATE": ("FP32", rates.astype(np.float32)),
        }
        inputs = []
        for name, (kind, value) in values.items():
            inputs.append(triton.InferInput(name, list(value.shape), kind))
            inputs[-1].set_data_from_numpy(value)
        client.infer("lipsync_guard", inputs, client_timeout=60)

    with triton.InferenceServerClient(limited.grpc_url) as client:
        with pytest.raises(triton.InferenceServerException, match="FRAME is truncated"):
            request_capacity(("a", 5), frame=photo[:-9])
        with pytest.raises(triton.InferenceServerException, match="not finite"):
            request_capacity(("a", 5), sound=nan)
        with pytest.raises(triton.InferenceServerException, match="not in the twin store"):
            request_capacity(("a", 5), twin="0" * 32)
        with pytest.raises(triton.InferenceServerException, match="the server is full"):
            request_capacity(("a", 5), ("b", CAPACITY_FPS))
        with pytest.raises(triton.InferenceServerException, match=r"RATE is 0\.5"):
            request_capacity(("a", 5), ("b", 0.5))
        request_capacity(("all", CAPACITY_FPS))  # only admitted if no other stream holds capacity
        with pytest.raises(triton.InferenceServerException, match="the server is full"):
            request_capacity(("a", 1))
        request_capacity(("all", 0))
        request_capacity(("a", 1))
        request_capacity(("a", 0))


def test_malformed_requests(limited: EmbeddedServer, images: Images) -> None:
    """Send a few of each class of `benchmarks.fuzzing.run`, which sends ten thousand."""
    result = fuzz(limited, images[0], count=220, seed=20, senders=4, capacity_fps=CAPACITY_FPS)
    assert not result.died
    assert result.capacity is not None
    assert result.capacity.whole, str(result.capacity)
    assert not [(name, number, outcome) for name, number, outcome in result.wrong]
    assert not result.damaged
    assert result.all_alive
    assert result.sent >= 200
