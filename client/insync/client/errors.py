"""Everything that can go wrong, as one tree; each error says what was received, what is allowed and what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from tritonclient.utils import InferenceServerException

__all__ = [
    "BadInput",
    "InsyncError",
    "MediaError",
    "MissingExtra",
    "NoAudioTrack",
    "NoVideoTrack",
    "NotFound",
    "Overloaded",
    "ProtocolError",
    "ServerError",
    "ServerTimeout",
    "ServerUnavailable",
    "UnreadableMedia",
    "UnwritableMedia",
    "mapped_errors",
    "retry_hint_s",
]


class InsyncError(Exception):
    """The root of all errors that InSync's client raises on purpose.

    ::

        InsyncError
        ├── ServerUnavailable    nobody answers at the address, or the server died          retryable
        ├── ServerTimeout        the answer did not come within the deadline                retryable
        ├── Overloaded           the server is full; says when to ask again                 retryable
        ├── ServerError          the server answered that it failed                         depends
        ├── ProtocolError        the answer is not what this client's version expects
        ├── NotFound             no twin with this id
        ├── BadInput             a frame, audio or option outside of what is allowed
        │   └── MediaError       a media file that cannot be used
        │       ├── UnreadableMedia   missing, empty, damaged or of no known format
        │       ├── NoVideoTrack
        │       ├── NoAudioTrack      none, or one of length 0
        │       └── UnwritableMedia   the output's folder, extension or codec
        └── MissingExtra         a part of InSync that is not installed

    Attributes:
        retryable: whether the same call may succeed a little later without any change.
    """

    retryable: bool = False

    def __init__(self, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable


class ServerUnavailable(InsyncError, ConnectionError):
    """Nobody answers at the server's address, or the connection broke."""

    retryable = True


class ServerTimeout(InsyncError, TimeoutError):
    """The server did not answer within the deadline."""

    retryable = True


class Overloaded(InsyncError):
    """The server has no room for this stream or frame now.

    Attributes:
        retry_after_s: when asking again may help, as the server says; None where it does not say.
    """

    retryable = True
    retry_after_s: float | None = None


class ServerError(InsyncError):
    """The server answered that it failed."""


class ProtocolError(InsyncError):
    """The server is not one that this client's version can talk to, or its answer is malformed."""


class NotFound(InsyncError, LookupError):
    """There is no twin with this id."""


class BadInput(InsyncError, ValueError):
    """A frame, audio or option is outside of what is allowed."""


class MediaError(BadInput):
    """A media file cannot be used."""


class UnreadableMedia(MediaError):
    """A media file is missing, empty, damaged, or of no known format."""


class NoVideoTrack(MediaError):
    """A file has no video track and is no picture."""


class NoAudioTrack(MediaError):
    """A file has no audio track, or one of length 0."""


class UnwritableMedia(MediaError):
    """The output cannot be written: its folder, extension or codec."""


class MissingExtra(InsyncError):
    """A part of InSync that this command needs is not installed."""


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
_HINT = re.compile(r"retry after (\d+(?:\.\d+)?) s\b")
_BY_NAME = {str(code): code for code in grpc.StatusCode}


@contextmanager
def mapped_errors(doing: str, server: str) -> Iterator[None]:
    """Turns every error of tritonclient and gRPC inside the block into one of `InsyncError`'s tree.

    Args:
        doing: what was tried, as in "frame 12"; begins the message.
        server: the address, for the message.

    Raises:
        InsyncError: the mapped error, `from` the original. asyncio.CancelledError passes through.
    """
    try:
        yield
    except InferenceServerException as exc:
        code = _BY_NAME.get(exc.status() or "")
        raise _mapped(code, exc.message() or "no message", doing, server) from exc
    except grpc.RpcError as exc:
        code = exc.code() if isinstance(exc, grpc.Call) else None
        raise _mapped(code, str(exc), doing, server) from exc
    except grpc.aio.UsageError as exc:  # "Channel is closed": the client was closed while calls were made
        raise ServerUnavailable(f"{doing}: the connection to {server} is closed", retryable=False) from exc
    except asyncio.TimeoutError as exc:
        raise ServerTimeout(f"{doing}: {server} did not answer in time; is it overloaded?") from exc


def retry_hint_s(message: str) -> float | None:
    """Seconds after which a full server says that asking again may help, or None where it does not say."""
    found = _HINT.search(message)
    return float(found[1]) if found else None


def _mapped(code: grpc.StatusCode | None, message: str, doing: str, server: str) -> InsyncError:
    if code is None:  # tritonclient's own complaint about what it was given
        return ProtocolError(f"{doing}: {message}")
    kind, retryable = STATUSES[code]
    if _TOO_LARGE.search(message) and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return BadInput(f"{doing}: the message is too large: {message}")
    if kind is Overloaded or (kind is ServerUnavailable and "RESOURCE_EXHAUSTED: " in message):
        # Triton's own errors have no code for it.
        full = Overloaded(f"{doing}: {server} is full: {message}")
        full.retry_after_s = retry_hint_s(message)
        return full
    if kind is NotFound and _NO_MODEL.match(message):
        return ServerUnavailable(
            f"{doing}: {server} does not serve this model: it is stopping, or serves others ({message})"
        )
    if _RECOVERING.search(message) and (kind is ServerError or kind is ServerUnavailable):
        return ServerUnavailable(f"{doing}: {server} is not ready: {message}")
    if kind is ServerUnavailable:
        return kind(
            f"{doing}: no server answers at {server} ({message}); start one with 'insync serve' or check the address"
        )
    if kind is ServerTimeout:
        return kind(f"{doing}: {server} did not answer in time; is it overloaded? ({message})")
    if kind is ServerError:
        return kind(f"{doing}: the server failed with {code.name}: {message}", retryable=retryable)
    return kind(f"{doing}: {message}", retryable=retryable)
