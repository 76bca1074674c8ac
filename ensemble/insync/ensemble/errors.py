"""Errors of the serving side, divided by who has to act.

EnsembleError
├── BadInputError   the caller sent something that is not allowed → INVALID_ARGUMENT
├── NotFoundError   the caller named something that is not there → NOT_FOUND
└── ServerError     the embedded server cannot start, or died
"""

from __future__ import annotations

__all__ = ["BadInputError", "EnsembleError", "NotFoundError", "ServerError"]


class EnsembleError(Exception):
    """Base of everything that `insync.ensemble` raises on purpose."""


class BadInputError(EnsembleError, ValueError):
    """An input is not allowed. The text names the field, what was received and what is allowed."""


class NotFoundError(EnsembleError, LookupError):
    """Something addressed by the input does not exist."""


class ServerError(EnsembleError, RuntimeError):
    """The embedded server could not be started, or stopped by itself. The text is one line that says why."""
