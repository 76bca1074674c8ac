"""Mapping of gRPC's errors to InSync's error classes."""

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

# The error class of each gRPC status, and whether a retry may help.
STATUSES: dict[grpc.StatusCode, tuple[type[InsyncError], bool]] = {
    grpc.StatusCode.OK: (ProtocolError, False),  # never valid as an error
    grpc.StatusCode.UNAVAILABLE: (ServerUnavailable, True),
    grpc.StatusCode.CANCELLED: (
        ServerUnavailable,
        True,
    ),  # by the server: cancelling on this side raises asyncio's error
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
# Messages of a server while a model's process is dead or being replaced: it recovers within minutes. And of a batch that is
# too long: this client's is not, but Triton batched it with another client's invalid one.
_RECOVERING = re.compile(
    r"is not healthy|has no available versions|is not ready|not (?:yet )?loaded|unloading|batch size \d+ for '\w+', max allowed"
)
# A stopping server unloads its models while it still listens. A missing twin has the same status, but InSync's own message.
_NO_MODEL = re.compile(r"(?:in ensemble '\w+', )?Request for unknown model\b")
_TOO_LARGE = re.compile(
    r"larger than max"
)  # exceeding gRPC's message limit has the same status as an overloaded server


@contextmanager
def mapped_errors(operation: str, server: str) -> Iterator[None]:
    """Convert every gRPC error inside the block to a subclass of `InsyncError`.

    Args:
        operation: the operation, such as "frame 12"; it begins the message.
        server: address for the message.

    Raises:
        InsyncError: the mapped error, `from` the original. asyncio.CancelledError passes through.
    """
    try:
        yield
    except grpc.aio.AioRpcError as exc:
        raise _mapped(exc.code(), exc.details() or "no message", operation, server) from exc
    except grpc.aio.UsageError as exc:  # "Channel is closed": the client was closed during calls
        raise ServerUnavailable(f"{operation}: the connection to {server} is closed", retryable=False) from exc
    except asyncio.TimeoutError as exc:
        raise ServerTimeout(f"{operation}: {server} did not answer in time; it may be overloaded") from exc


def _mapped(code: grpc.StatusCode, message: str, operation: str, server: str) -> InsyncError:
    kind, retryable = STATUSES[code]
    if _TOO_LARGE.search(message) and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return BadInput(f"{operation}: the message is too large: {message}")
    if kind is Overloaded or (kind is ServerUnavailable and is_overload(message)):
        # A Triton model's errors cannot have gRPC's RESOURCE_EXHAUSTED.
        return Overloaded(f"{operation}: {server} is full: {message}", retry_hint_s(message))
    if kind is NotFound and _NO_MODEL.match(message):
        return ServerUnavailable(
            f"{operation}: {server} does not serve this model: it is stopping, or serves other models ({message})"
        )
    if _RECOVERING.search(message) and (kind is ServerError or kind is ServerUnavailable):
        return ServerUnavailable(f"{operation}: {server} is not ready: {message}")
    if kind is ServerUnavailable:
        return kind(
            f"{operation}: no server answers at {server} ({message}); start one with 'insync serve' or check the address"
        )
    if kind is ServerTimeout:
        return kind(f"{operation}: {server} did not answer in time; it may be overloaded ({message})")
    if kind is ServerError:
        return kind(f"{operation}: the server failed with {code.name}: {message}", retryable=retryable)
    return kind(f"{operation}: {message}", retryable=retryable)
