"""The client when servers die, stall, are full or respond late: no frame is lost, returned twice or out of order."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.faults.tcp_proxy import Network
from insync.client import (
    BadInput,
    Client,
    InsyncError,
    NotFound,
    Overloaded,
    ServerError,
    ServerTimeout,
    ServerUnavailable,
)
from insync.client.streaming.stream import SyncedFrame
from insync.client.streaming.timings import StageClock
from insync.core.errors import overload_text

TWIN = "0123456789abcdef" * 2
FULL = overload_text(Overloaded("the server is full", 0.05))
ENDS = np.zeros(1, np.float32).tobytes()  # RATE at a stream's end
PICTURE = np.full((64, 64, 3), 90, np.uint8)
FRAMES = 30
# Each frame has another loudness, so that its mouth code tells which frame a response belongs to.
AUDIO = np.repeat(np.linspace(-1, 1, FRAMES, dtype=np.float32), 640)


class Fake(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Responses like those of `lipsync_patch` to a frame without a face; MOUTH is the loudness at the frame's time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.slow: dict[int, float] = {}  # seconds, by the frame's index
        self.before: Callable[[int, Any], None] = lambda number, context: None

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        given = {t.name: raw for t, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
        with self.lock:
            number = len(self.requests)
            self.requests.append({"model": request.model_name, **given})
        if given.get("RATE") != ENDS:
            self.before(number, context)
        if request.model_name == "lipsync_guard":
            return _response(
                request.model_name,
                CHECKED_FRAME=np.zeros((1, 9), np.uint8),
                CHECKED_AUDIO=np.zeros((1, 6400), np.float32),
                CHECKED_TWIN=np.zeros((1, 32), np.uint8),
            )
        loudness = np.frombuffer(given["AUDIO"], np.float32)[4480 + 320]
        time.sleep(self.slow.get(round((float(loudness) + 1) / 2 * (FRAMES - 1)), 0.0))
        return _response(
            request.model_name,
            PATCH=np.zeros((1, 256, 256, 4), np.uint8),
            TRANSFORM=np.eye(2, 3, dtype=np.float32)[None],
            CONFIDENCE=np.zeros((1, 1), np.float32),
            FACE=np.zeros((1, 4), np.float32),
            MOUTH=np.full((1, 12), loudness, np.float32),
        )

    def frames_requested(self) -> int:
        return sum(request["model"] == "lipsync_patch" for request in self.requests)


def _response(model: str, **outputs: np.ndarray[Any, Any]) -> Any:
    response = service_pb2.ModelInferResponse(model_name=model)
    for name, value in outputs.items():
        tensor = response.outputs.add()
        tensor.name, tensor.datatype = name, {"uint8": "UINT8", "float32": "FP32"}[str(value.dtype)]
        tensor.shape.extend(value.shape)
        response.raw_output_contents.append(value.tobytes())
    return response


@contextmanager
def serving(fake: Fake, port: int = 0) -> Iterator[tuple[str, grpc.Server]]:
    options = [("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(16), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        server.stop(None).wait()


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def address(fake: Fake) -> Iterator[str]:
    with serving(fake) as (address, _):
        yield address


async def collect(server: Any, frames: Any = None, client: dict[str, Any] | None = None, **options: Any) -> Any:
    given = [PICTURE] * FRAMES if frames is None else frames
    async with Client(server, **(client or {})) as connected:
        return [synced async for synced in connected.stream(given, AUDIO, twin=TWIN, **options)]


def whole(synced: list[SyncedFrame]) -> bool:
    """Return whether every frame was received once, in order, each with its own response."""
    loudnesses = [one.mouth[0] for one in synced]
    expected = np.linspace(-1, 1, FRAMES, dtype=np.float32)
    return [one.index for one in synced] == list(range(FRAMES)) and np.array_equal(np.asarray(loudnesses), expected)


async def paced(count: int = FRAMES, fps: float = 50) -> AsyncIterator[np.ndarray[Any, Any]]:
    """Yield frames at their rate, as a camera does."""
    start = time.perf_counter()
    for k in range(count):
        await asyncio.sleep(max(0.0, start + k / fps - time.perf_counter()))
        yield PICTURE


def fails(numbers: Any, code: grpc.StatusCode, text: str) -> Callable[[int, Any], None]:
    def before(number: int, context: Any) -> None:
        if number in numbers:
            context.abort(code, text)

    return before


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
        (grpc.StatusCode.CANCELLED, ""),
        (grpc.StatusCode.INTERNAL, "in ensemble 'lipsync_patch', Stub process 'lipsync_mixer_0_0' is not healthy."),
        (
            grpc.StatusCode.INTERNAL,
            "in ensemble 'lipsync_patch', batch size 33 for 'lipsync_mixer_0_0', max allowed is 8",
        ),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'lipsync_patch' has no available versions"),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'lipsync_patch' is not found"),
        (
            grpc.StatusCode.NOT_FOUND,
            "in ensemble 'lipsync_patch', Request for unknown model: 'lipsync_face' is not found",
        ),
    ],
)
def test_errors_of_a_recovering_server_are_retried(address: str, fake: Fake, code: grpc.StatusCode, text: str) -> None:
    fake.before = fails(range(5, 14), code, text)
    clock = StageClock()
    assert whole(asyncio.run(collect(address, clock=clock)))
    assert clock.resent == 9
    assert clock.moved == 0


def test_a_cancelled_stream_leaves_no_connection_open(address: str) -> None:
    """It does not wait for the garbage collector, which may run much later."""

    async def cut_off() -> None:
        user = asyncio.create_task(collect(address, itertools.repeat(PICTURE)))
        await asyncio.sleep(0.1)
        user.cancel()
        with pytest.raises(asyncio.CancelledError):
            await user

    def connections() -> int:
        return len(psutil.Process().net_connections("tcp"))

    async def run() -> None:
        before = connections()
        for _ in range(5):
            await cut_off()
        if sys.version_info < (3, 11):
            gc.collect()  # there a cancelled task keeps its error's frames, gRPC's own task too
        until_s = time.monotonic() + 10
        while connections() > before and time.monotonic() < until_s:  # the server closes its side a moment later
            await asyncio.sleep(0.05)
        assert connections() <= before

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def test_a_lasting_error_is_raised_at_once(address: str, fake: Fake) -> None:
    fake.before = fails(range(5, 1000), grpc.StatusCode.INTERNAL, "onnx runtime error 6")
    with pytest.raises(ServerError, match="onnx runtime error 6"):
        asyncio.run(collect(address))
    assert fake.frames_requested() < FRAMES


def test_an_unknown_twin_is_raised_at_once(address: str, fake: Fake) -> None:
    fake.before = fails(range(5, 1000), grpc.StatusCode.NOT_FOUND, "in ensemble 'lipsync_patch', no twin has this id")
    with pytest.raises(NotFound, match="no twin has this id"):
        asyncio.run(collect(address))
    assert fake.frames_requested() < FRAMES


def test_a_missing_model_is_raised_after_the_retry_time(address: str, fake: Fake) -> None:
    message = "Request for unknown model: 'lipsync_patch' is not found"
    fake.before = fails(range(100_000), grpc.StatusCode.NOT_FOUND, message)
    with pytest.raises(ServerUnavailable, match=r"frame 0: .* does not serve this model.*'lipsync_patch' is not found"):
        asyncio.run(collect(address, client={"retry_s": 0.5}))
    assert 2 < fake.frames_requested() < 200


def test_streams_of_a_stopping_server_continue_on_another(fake: Fake) -> None:
    other = Fake()
    fake.before = fails(
        range(9, 1000), grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'lipsync_patch' is not found"
    )
    clock = StageClock()
    with serving(fake) as (first, _), serving(other) as (second, _):
        assert whole(asyncio.run(collect([first, second], in_flight=4, clock=clock)))
    assert clock.moved == 1
    assert other.frames_requested() >= FRAMES - 9


def test_an_unavailable_server_is_raised_after_the_retry_time(address: str, fake: Fake) -> None:
    fake.before = fails(range(5, 100_000), grpc.StatusCode.UNAVAILABLE, "Socket closed")
    with pytest.raises(ServerUnavailable, match=r"frame \d+: no server answers"):
        asyncio.run(collect(address, client={"retry_s": 0.5}))
    assert 8 < fake.frames_requested() < 200


def test_a_restarted_server(fake: Fake) -> None:
    with serving(fake) as (address, server):
        port = int(address.rpartition(":")[2])

        async def run() -> list[SyncedFrame]:
            synced = []
            async with Client(address) as client:
                async for one in client.stream([PICTURE] * FRAMES, AUDIO, twin=TWIN, in_flight=4):
                    synced.append(one)
                    if one.index == 8:
                        await asyncio.to_thread(server.stop(None).wait)
                        asyncio.get_running_loop().call_later(0.4, again.__enter__)
            return synced

        again = serving(fake, port)
        try:
            assert whole(asyncio.run(run()))
        finally:
            again.__exit__(None, None, None)


def test_a_stream_continues_on_another_server_when_one_dies(fake: Fake) -> None:
    other = Fake()
    with serving(fake) as (first, dying), serving(other) as (second, _):

        async def run() -> tuple[list[SyncedFrame], StageClock]:
            synced, clock = [], StageClock()
            async with Client(f"{first},{second}") as client:
                async for one in client.stream([PICTURE] * FRAMES, AUDIO, twin=TWIN, in_flight=4, clock=clock):
                    synced.append(one)
                    if one.index == 8:
                        dying.stop(None)
            return synced, clock

        synced, clock = asyncio.run(run())
    assert whole(synced)
    assert clock.moved == 1  # a stream stays with its server while that responds
    assert clock.resent >= 1
    assert fake.frames_requested() + other.frames_requested() <= FRAMES + clock.resent


def test_streams_are_distributed_over_servers(fake: Fake) -> None:
    other = Fake()
    with serving(fake) as (first, _), serving(other) as (second, _):

        async def run() -> list[list[SyncedFrame]]:
            async with Client([first, second]) as client:

                async def one() -> list[SyncedFrame]:
                    return [s async for s in client.stream([PICTURE] * FRAMES, AUDIO, twin=TWIN)]

                return list(await asyncio.gather(*(one() for _ in range(4))))

        assert all(whole(synced) for synced in asyncio.run(run()))
    assert fake.frames_requested() == other.frames_requested() == 2 * FRAMES


def test_one_server_of_several_is_enough_to_start(address: str) -> None:
    assert whole(asyncio.run(collect(f"127.0.0.1:9,{address}")))
    with pytest.raises(BadInput, match="must be HOST:PORT"):
        Client(f"{address},")
    with pytest.raises(BadInput, match="empty sequence"):
        Client([])


def test_a_network_that_is_cut_and_restored(address: str) -> None:
    with Network(address) as network:

        async def run() -> list[SyncedFrame]:
            synced = []
            async with Client(network.address) as client:
                async for one in client.stream([PICTURE] * FRAMES, AUDIO, twin=TWIN, in_flight=4):
                    synced.append(one)
                    if one.index in (5, 15):
                        network.cut()
                        asyncio.get_running_loop().call_later(0.3, network.restore)
            return synced

        assert whole(asyncio.run(run()))
        assert network.connections >= 3


def test_a_network_that_delivers_nothing(address: str) -> None:
    """The kernel would keep such a connection for 15 minutes: after a request's timeout the client opens a new one."""
    with Network(address) as network:

        async def run() -> list[SyncedFrame]:
            synced = []
            async with Client([network.address, address], request_timeout_s=0.5) as client:
                async for one in client.stream([PICTURE] * FRAMES, AUDIO, twin=TWIN, in_flight=4):
                    synced.append(one)
                    if one.index == 5:
                        network.stall()
            return synced

        assert whole(asyncio.run(run()))


def test_a_slow_network_changes_nothing(address: str) -> None:
    with Network(address) as network:
        network.delay_s = 0.02
        assert whole(asyncio.run(collect(network.address)))


def test_a_full_server_refuses_a_live_stream_at_once(address: str, fake: Fake) -> None:
    fake.before = fails(range(1000), grpc.StatusCode.UNAVAILABLE, FULL)
    read: list[int] = []

    def camera() -> Iterator[np.ndarray[Any, Any]]:
        read.append(0)
        yield PICTURE

    with pytest.raises(Overloaded, match=r"claiming capacity: .* is full") as caught:
        asyncio.run(collect(address, camera(), deadline_s=1))
    assert caught.value.retryable
    assert caught.value.retry_after_s == 0.05
    assert not read  # no frame was read
    assert [request["model"] for request in fake.requests] == ["lipsync_guard"]


def test_another_server_has_capacity(fake: Fake) -> None:
    other = Fake()
    fake.before = fails(range(1000), grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    with serving(fake) as (first, _), serving(other) as (second, _):
        assert whole(asyncio.run(collect([first, second], deadline_s=1)))
    assert fake.frames_requested() == 0


def test_a_job_waits_for_capacity(address: str, fake: Fake) -> None:
    fake.before = fails(range(3, 9), grpc.StatusCode.UNAVAILABLE, FULL)
    clock = StageClock()
    assert whole(asyncio.run(collect(address, clock=clock)))
    assert clock.refused == 6
    fake.before = fails(range(1000), grpc.StatusCode.UNAVAILABLE, FULL)
    with pytest.raises(Overloaded):
        asyncio.run(collect(address, client={"overload_s": 0.2}))


def test_a_live_stream_sends_its_name_and_its_end(address: str, fake: Fake) -> None:
    asyncio.run(collect(address, deadline_s=5, fps=12.5))
    claim, *frames, end = fake.requests
    assert claim["model"] == "lipsync_guard"
    assert len({request["STREAM"] for request in fake.requests}) == 1
    assert {float(np.frombuffer(request["RATE"], np.float32)[0]) for request in (claim, *frames)} == {12.5}
    assert end["model"] == "lipsync_guard"
    assert np.frombuffer(end["RATE"], np.float32)[0] == 0
    fake.requests.clear()
    asyncio.run(collect(address))
    assert not any("STREAM" in request for request in fake.requests)


def test_late_frames_with_policy_wait(address: str, fake: Fake) -> None:
    fake.slow = {10: 0.4}
    clock = StageClock()
    synced = asyncio.run(collect(address, paced(), deadline_s=0.2, clock=clock))
    assert whole(synced)
    assert synced[10].late
    assert clock.late == sum(one.late for one in synced) >= 1
    assert clock.skipped == clock.repeated == 0


def test_late_frames_with_policy_skip(address: str, fake: Fake) -> None:
    fake.slow = {10: 0.6, 11: 0.6}
    clock = StageClock()
    synced = asyncio.run(collect(address, paced(), deadline_s=0.2, late="skip", clock=clock))
    missing = set(range(FRAMES)) - {one.index for one in synced}
    assert missing >= {10, 11}
    assert [one.index for one in synced] == sorted(one.index for one in synced)
    assert clock.skipped == len(missing)
    # Frames skipped at the end have no later frame to count them.
    assert sum(one.skipped for one in synced) == len([index for index in missing if index < synced[-1].index])
    after = next(one for one in synced if one.index > 11)
    assert after.skipped >= 2


def test_late_frames_with_policy_repeat(address: str, fake: Fake) -> None:
    fake.slow = {10: 0.6, 11: 0.6}
    clock = StageClock()
    synced = asyncio.run(collect(address, paced(), deadline_s=0.2, late="repeat", clock=clock))
    assert [one.index for one in synced] == list(range(FRAMES))
    assert [one.time_s for one in synced] == pytest.approx([k / 25 for k in range(FRAMES)])
    repeated = [one.index for one in synced if one.repeated]
    assert set(repeated) >= {10, 11}
    assert clock.repeated == len(repeated)
    for index in repeated:
        assert synced[index].late
        assert synced[index].picture is synced[index - 1].picture
    expected = np.linspace(-1, 1, FRAMES, dtype=np.float32)
    assert all(one.mouth[0] == expected[one.index] for one in synced if not one.repeated)


def test_a_live_stream_continues_during_an_outage(fake: Fake) -> None:
    """The last picture is repeated at the stream's rate meanwhile."""
    with serving(fake) as (address, _), Network(address) as network:

        async def run() -> list[SyncedFrame]:
            synced = []
            async with Client(network.address) as client:
                stream = client.stream(paced(1_500), AUDIO, twin=TWIN, deadline_s=0.1, late="repeat", in_flight=16)
                async with aclosing(stream):
                    async for one in stream:
                        synced.append(one)
                        if one.index == 20:
                            network.cut()
                        if one.index == 50:
                            network.restore()
                        if one.index > 50 and not one.repeated:
                            break
            return synced

        synced = asyncio.run(run())
    assert [one.index for one in synced] == list(range(len(synced)))
    assert any(one.repeated for one in synced[21:50])
    assert not synced[-1].repeated


def test_a_live_stream_does_not_repeat_its_last_frame_for_ever(address: str) -> None:
    with Network(address) as network:

        async def run() -> None:
            async with Client(network.address, retry_s=0.6) as client:
                stream = client.stream(paced(10_000), AUDIO, twin=TWIN, deadline_s=0.1, late="repeat")
                async for one in stream:
                    if one.index == 5:
                        network.stall()

        with pytest.raises(InsyncError, match="no response from") as caught:
            asyncio.run(asyncio.wait_for(run(), 20))
        assert isinstance(caught.value, (ServerUnavailable, ServerTimeout))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"deadline_s": 0}, "deadline_s is 0"),
        ({"deadline_s": 1, "late": "never"}, "late is 'never'"),
        ({"late": "skip"}, "late is 'skip' without deadline_s"),
    ],
)
def test_invalid_options(address: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        asyncio.run(collect(address, **options))
