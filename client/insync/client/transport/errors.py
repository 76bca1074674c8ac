"""Turn every error of gRPC into one of our own tree."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from insync.core.errors import (
    BadInput,
    InsyncError,
    NotFound,
    Overloaded,
    ProtocolError,
    ServerError,
    ServerTimeout,
    ServerUnavailable,
    is_overload,
    retry_hint_s,
)

__all__ = ["STATUSES", "mapped_errors"]

# What each gRPC status means to the caller, and whether trying again may help.
STATUSES: dict[grpc.StatusCode, tuple[type[InsyncError], bool]] = {
    grpc.StatusCode.OK: (ProtocolError, False),  # raised as an error, it makes no sense
    grpc.StatusCode.UNAVAILABLE: (ServerUnavailable, True),
    grpc.StatusCode.CANCELLED: (ServerUnavailable, True),  # by the server: our own cancelling is asyncio's error
    grpc.StatusCode.DEADLINE_EXCEEDED: (ServerTimeout, True),
    grpc.StatusCode.INVALID_ARGUMENT: (BadInput, False),
    grpc.StatusCode.OUT_OF_RANGE: (BadInput, False),
    grpc.StatusCode.NOT_FOUND: (NotFound, False),
    grpc.StatusCode.UNIMPLEMENTED: (ProtocolError, False),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Overloaded, True),
    grpc.StatusCode.ABORTED: (ServerError, True),
    grpc.StatusCode.INTERNAL: (ServerError, False),
    grpc.StatusCode.UNKNOWN: (ServerError, False),
    grpc.StatusCode.DATA_LOSS: (ServerError, False),
    grpc.StatusCode.ALREADY_EXISTS: (ServerError, False),
    grpc.StatusCode.FAILED_PRECONDITION: (ServerError, False),
    grpc.StatusCode.PERMISSION_DENIED: (ServerError, False),
    grpc.StatusCode.UNAUTHENTICATED: (ServerError, False),
}
# What a server says while a model's process is dead, or is being replaced: minutes later at most all is well. And of a batch
# that is too long: ours is never, somebody else's false one was put together with it.
_RECOVERING = re.compile(
    r"is not healthy|has no available versions|is not ready|not (?:yet )?loaded|unloading|batch size \d+ for '\w+', max allowed"
)
# A server that stops takes its models out of service while it still listens; of a twin, it is our own words that say so.
_NO_MODEL = re.compile(r"(?:in ensemble '\w+', )?Request for unknown model\b")
_TOO_LARGE = re.compile(r"larger than max")  # gRPC's limit of a message has the same status as a full server


@contextmanager
def mapped_errors(operation: str, server: str) -> Iterator[None]:
    """Turn every error of gRPC inside the block into one of `InsyncError`'s tree.

    Args:
        operation: what was tried, as in "frame 12"; begins the message.
        server: the address, for the message.

    Raises:
        InsyncError: the mapped error, `from` the original. asyncio.CancelledError passes through.
    """
    try:
        yield
    except grpc.aio.AioRpcError as exc:
        raise _mapped(exc.code(), exc.details() or "no message", operation, server) from exc
    except grpc.aio.UsageError as exc:  # "Channel is closed": the client was closed while calls were made
        raise ServerUnavailable(f"{operation}: the connection to {server} is closed", retryable=False) from exc
    except asyncio.TimeoutError as exc:
        raise ServerTimeout(f"{operation}: {server} did not answer in time; is it overloaded?") from exc


def _mapped(code: grpc.StatusCode, message: str, operation: str, server: str) -> InsyncError:
    kind, retryable = STATUSES[code]
    if _TOO_LARGE.search(message) and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return BadInput(f"{operation}: the message is too large: {message}")
    if kind is Overloaded or (kind is ServerUnavailable and is_overload(message)):
        # Triton's own errors have no code for it.
        return Overloaded(f"{operation}: {server} is full: {message}", retry_hint_s(message))
    if kind is NotFound and _NO_MODEL.match(message):
        return ServerUnavailable(
            f"{operation}: {server} does not serve this model: it is stopping, or serves others ({message})"
        )
    if _RECOVERING.search(message) and (kind is ServerError or kind is ServerUnavailable):
        return ServerUnavailable(f"{operation}: {server} is not ready: {message}")
    if kind is ServerUnavailable:
        return kind(
            f"{operation}: no server answers at {server} ({message}); start one with 'insync serve' or check the address"
        )
    if kind is ServerTimeout:
        return kind(f"{operation}: {server} did not answer in time; is it overloaded? ({message})")
    if kind is ServerError:
        return kind(f"{operation}: the server failed with {code.name}: {message}", retryable=retryable)
    return kind(f"{operation}: {message}", retryable=retryable)
