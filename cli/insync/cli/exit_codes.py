"""Exit codes of all commands, and their messages."""

from __future__ import annotations

import sys

__all__ = ["EXIT_ALTERED", "EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_TAGGED", "EXIT_UNMARKED", "EXIT_USAGE", "log"]

EXIT_FAILED = 1
EXIT_USAGE = 2  # also if an optional part is not installed
EXIT_TAGGED = 3  # the file is marked as synthetic by a metadata tag only, and not signed
EXIT_UNMARKED = 4
EXIT_ALTERED = 5  # the file was changed after it was signed
EXIT_INTERRUPTED = 130


def log(text: str) -> None:
    """Print a message for the user on stderr."""
    print(f"insync: {text}", file=sys.stderr)  # noqa: T201
