"""The tree of InSync's errors, and the wire format of the message with which an overloaded server refuses a request.

Each message names what was received, what is allowed and what to do. A server responds with the status code of the error's
class: `BadInput` as INVALID_ARGUMENT, `NotFound` as NOT_FOUND, `Overloaded` as UNAVAILABLE, anything else as INTERNAL.
"""

from __future__ import annotations

import re

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
    "StorageError",
    "UnreadableMedia",
    "UnwritableMedia",
    "is_overload",
    "missing_extra",
    "overload_text",
    "retry_hint_s",
]


class InsyncError(Exception):
    """Base class of all errors that InSync raises on purpose, divided by what can be done about them.

    ::

        InsyncError
        ├── ServerUnavailable    no server answers at the address, or the connection broke  retryable
        ├── ServerTimeout        the response did not arrive within its time limit          retryable
        ├── Overloaded           the server is at capacity; tells when to retry             retryable
        ├── ServerError          the server reported a failure, or cannot be started        depends
        │   └── StorageError     the twin store cannot be written
        ├── ProtocolError        the response is not what this client's version expects
        ├── NotFound             no twin has this id
        ├── BadInput             a frame, audio or option is not allowed
        │   └── MediaError       a media file cannot be used
        │       ├── UnreadableMedia   missing, empty, damaged or of an unknown format
        │       ├── NoVideoTrack
        │       ├── NoAudioTrack      none, or one of length 0
        │       └── UnwritableMedia   the output's folder, extension or codec
        └── MissingExtra         an optional part of InSync is not installed

    Attributes:
        retryable: whether the same call may succeed a little later, unchanged.
    """

    retryable: bool = False

    def __init__(self, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable


class ServerUnavailable(InsyncError, ConnectionError):
    """No server answers at the address, or the connection broke."""

    retryable = True


class ServerTimeout(InsyncError, TimeoutError):
    """The server did not respond within the request's time limit."""

    retryable = True


class Overloaded(InsyncError):
    """The server has no capacity for this stream or frame now.

    Attributes:
        retry_after_s: seconds after which the server suggests to retry; None if it gives no hint.
    """

    retryable = True

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerError(InsyncError, RuntimeError):
    """The server reported a failure, or an embedded server cannot be started or died. The message is one line with the reason."""


class StorageError(ServerError, OSError):
    """The twin store's disk is full or cannot be written; the incomplete twin was removed."""


class ProtocolError(InsyncError):
    """The server is not compatible with this client's version, or its response is malformed."""


class NotFound(InsyncError, LookupError):
    """No twin has this id."""


class BadInput(InsyncError, ValueError):
    """A frame, audio or option is not allowed: its type, shape or value."""


class MediaError(BadInput):
    """A media file cannot be used."""


class UnreadableMedia(MediaError):
    """A media file is missing, empty, damaged, or of an unknown format."""


class NoVideoTrack(MediaError):
    """A file has no video track and is not a photo."""


class NoAudioTrack(MediaError):
    """A file has no audio track, or one of length 0."""


class UnwritableMedia(MediaError):
    """The output cannot be written: its folder, extension or codec."""


class MissingExtra(InsyncError):
    """An optional part of InSync that is needed here is not installed."""


def missing_extra(extra: str, exc: ImportError) -> MissingExtra:
    """Make the error for an optional part that is not installed."""
    return MissingExtra(f"this needs a part that is not installed ({exc.name}): pip install 'insync[{extra}]'")


# A Triton model's errors cannot carry gRPC's RESOURCE_EXHAUSTED: the message begins with its name and ends with the hint.
_STATUS = "RESOURCE_EXHAUSTED: "
_HINT = re.compile(r"retry after (\d+(?:\.\d+)?) s\b")


def overload_text(error: Overloaded) -> str:
    """Format the message of an overloaded server, as `is_overload` and `retry_hint_s` parse it."""
    return f"{_STATUS}{error}; retry after {error.retry_after_s or 0.0:.3f} s"


def is_overload(text: str) -> bool:
    """Return whether a server's message reports an overload."""
    return _STATUS in text


def retry_hint_s(text: str) -> float | None:
    """Parse the seconds after which the server suggests to retry; None if the message has no hint."""
    found = _HINT.search(text)
    return float(found[1]) if found else None
