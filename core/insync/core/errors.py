"""The error tree, and the one text by which a full server says so over the wire.

Each message says what was received, what is allowed and what to do. A server answers with the code of the error's kind:
`BadInput` as INVALID_ARGUMENT, `NotFound` as NOT_FOUND, `Overloaded` as UNAVAILABLE, anything else as INTERNAL.
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
    """The root of all errors that InSync raises on purpose, divided by what can be done about them.

    ::

        InsyncError
        ├── ServerUnavailable    nobody answers at the address, or the server died          retryable
        ├── ServerTimeout        the answer did not come within the deadline                retryable
        ├── Overloaded           the server is full; says when to ask again                 retryable
        ├── ServerError          the server answered that it failed, or cannot be started   depends
        │   └── StorageError     the twin store cannot be written
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

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerError(InsyncError, RuntimeError):
    """The server answered that it failed, or an embedded one cannot be started or died. The text is one line that says why."""


class StorageError(ServerError, OSError):
    """The twin store's disk is full or cannot be written; what was begun is gone again."""


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


def missing_extra(extra: str, exc: ImportError) -> MissingExtra:
    """Make the error for a part that is not installed."""
    return MissingExtra(f"this needs a part that is not installed ({exc.name}): pip install 'insync[{extra}]'")


# Triton's errors have no code for «full»: the text begins with gRPC's name of the status and ends with the hint.
_STATUS = "RESOURCE_EXHAUSTED: "
_HINT = re.compile(r"retry after (\d+(?:\.\d+)?) s\b")


def overload_text(error: Overloaded) -> str:
    """Write what a full server answers, in the form that `is_overload` and `retry_hint_s` read."""
    return f"{_STATUS}{error}; retry after {error.retry_after_s or 0.0:.3f} s"


def is_overload(text: str) -> bool:
    """Tell whether a server's message says that it is full."""
    return _STATUS in text


def retry_hint_s(text: str) -> float | None:
    """Read after how many seconds asking again may help, or None where the message does not say."""
    found = _HINT.search(text)
    return float(found[1]) if found else None
