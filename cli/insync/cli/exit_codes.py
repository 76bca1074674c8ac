"""The exit codes of every command, and how it says things."""

from __future__ import annotations

import sys

__all__ = ["EXIT_ALTERED", "EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_TAGGED", "EXIT_UNMARKED", "EXIT_USAGE", "say"]

EXIT_FAILED = 1
EXIT_USAGE = 2  # also a missing part
EXIT_TAGGED = 3  # only the metadata tag says that a file is synthetic: not signed
EXIT_UNMARKED = 4
EXIT_ALTERED = 5  # since it was signed
EXIT_INTERRUPTED = 130


def say(text: str) -> None:
    """Print a line for a person on stderr."""
    print(f"insync: {text}", file=sys.stderr)  # noqa: T201
