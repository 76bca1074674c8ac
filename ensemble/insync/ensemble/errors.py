"""Errors of the serving side, divided by who has to act.

EnsembleError
├── BadInputError   the caller sent something that is not allowed → INVALID_ARGUMENT
├── NotFoundError   the caller named something that is not there → NOT_FOUND
├── OverloadedError there is no room now: ask again later → UNAVAILABLE, "RESOURCE_EXHAUSTED" in its text
├── StorageError    the twin store cannot be written → INTERNAL
└── ServerError     the embedded server cannot start, or died
"""

from __future__ import annotations

__all__ = ["BadInputError", "EnsembleError", "NotFoundError", "OverloadedError", "ServerError", "StorageError"]


class EnsembleError(Exception):
    """Base of everything that `insync.ensemble` raises on purpose."""


class BadInputError(EnsembleError, ValueError):
    """An input is not allowed. The text names the field, what was received and what is allowed."""


class NotFoundError(EnsembleError, LookupError):
    """Something addressed by the input does not exist."""


class OverloadedError(EnsembleError):
    """There is no room for this request now.

    Triton's errors have no code for it. Its text begins with gRPC's name of the status and ends with the hint, in the form
    that `insync.client.errors` reads.

    Attributes:
        retry_after_s: when asking again may help.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"RESOURCE_EXHAUSTED: {message}; retry after {retry_after_s:.3f} s")


class StorageError(EnsembleError, OSError):
    """The twin store's disk is full or cannot be written; what was begun is gone again."""


class ServerError(EnsembleError, RuntimeError):
    """The embedded server could not be started, or stopped by itself. The text is one line that says why."""
