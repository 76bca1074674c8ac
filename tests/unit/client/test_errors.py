"""Every gRPC error is mapped to one of `insync.core.errors`."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from insync.client import Client
from insync.client.transport.errors import STATUSES, mapped_errors
from insync.core import errors
from insync.core.errors import InsyncError


def failed(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def test_every_status_is_mapped() -> None:
    assert set(STATUSES) == set(grpc.StatusCode)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_each_status_raises_its_error_from_the_original(code: grpc.StatusCode) -> None:
    kind, retryable = STATUSES[code]
    original = failed(code, "FRAME is 3 bytes")
    with pytest.raises(InsyncError) as caught, mapped_errors("frame 12", "host:1"):
        raise original
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable
    assert caught.value.__cause__ is original
    assert "frame 12: " in str(caught.value)
    assert "FRAME is 3 bytes" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_not_an_unknown_twin() -> None:
    """The server is stopping, or serves other models: the request is retried for a while."""
    message = "Request for unknown model: 'lipsync' is not found"
    expected = pytest.raises(errors.ServerUnavailable, match="does not serve this model")
    with expected as caught, mapped_errors("x", "host:1"):
        raise failed(grpc.StatusCode.NOT_FOUND, message)
    assert caught.value.retryable
    with pytest.raises(errors.NotFound), mapped_errors("x", "host:1"):
        raise failed(grpc.StatusCode.NOT_FOUND, f"TWIN is {message!r}")


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(ZeroDivisionError), mapped_errors("x", "host:1"):
        _ = 1 / 0
    with pytest.raises(asyncio.CancelledError), mapped_errors("x", "host:1"):
        raise asyncio.CancelledError


def test_the_docstring_lists_all_errors() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, InsyncError)]
    assert len(classes) > 10
    for kind in classes:
        assert kind.__name__ in (InsyncError.__doc__ or "")
        assert kind.__doc__
        assert kind.__name__ in errors.__all__


async def connect(server: str, **options: Any) -> None:
    async with Client(server, **options):
        pass


def test_no_server_at_the_address() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but not listening
        start = time.perf_counter()
        with pytest.raises(
            errors.ServerUnavailable, match=r"no server answers at 127\.0\.0\.1:.*insync serve"
        ) as caught:
            asyncio.run(connect(f"127.0.0.1:{held.getsockname()[1]}"))
        assert caught.value.retryable
        assert time.perf_counter() - start < 5


def test_a_server_that_does_not_respond() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(errors.ServerUnavailable, match=r"no response from .* within 0\.5 s"):
            asyncio.run(connect(f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout_s=0.5))


def test_a_grpc_server_that_is_not_triton() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(errors.ProtocolError, match="connecting"):
            asyncio.run(connect(f"127.0.0.1:{port}"))
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("server", ["", "localhost", "http://localhost:8001", "host:0", "host:70000", "a b:1", ":8001"])
def test_invalid_addresses(server: str) -> None:
    with pytest.raises(errors.BadInput, match="must be HOST:PORT"):
        Client(server)


def test_not_connected() -> None:
    with pytest.raises(errors.BadInput, match="not connected"):
        Client().stream([], [], twin="x")
