"""`insync verify`: check whether a file is marked as synthetic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from insync.cli.exit_codes import EXIT_ALTERED, EXIT_TAGGED, EXIT_UNMARKED
from insync.core.errors import BadInput, missing_extra

__all__ = ["add_verify"]


def add_verify(commands: Any) -> None:
    """Add the command."""
    verify = commands.add_parser(
        "verify",
        help="check whether a file is marked as synthetic",
        description="Check whether FILE is marked as synthetic, offline. Exit code 0: by a signed manifest that matches FILE. "
        "3: by a metadata tag only. 4: not marked. 5: FILE was changed after it was signed. 1: FILE cannot be read.",
    )
    verify.add_argument("file", metavar="FILE", type=Path, help="a media file")
    verify.add_argument(
        "--ca", metavar="PEM", type=Path, help="CA certificate to trust, in addition to this machine's own"
    )
    verify.add_argument("--debug", action="store_true", help="show tracebacks")
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    """Run the command."""
    try:
        from insync.client.provenance.manifest import State, read_mark
    except ImportError as exc:
        raise missing_extra("media", exc) from exc
    try:
        authorities = options.ca.read_bytes() if options.ca is not None else b""
    except OSError as exc:
        raise BadInput(f"{options.ca}: cannot be read: {exc.strerror}") from exc
    verdict = read_mark(options.file, authorities)
    for line in verdict.lines():
        print(f"{options.file}: {line}")  # noqa: T201
    codes = {State.SIGNED: 0, State.TAGGED: EXIT_TAGGED, State.UNMARKED: EXIT_UNMARKED, State.ALTERED: EXIT_ALTERED}
    return codes[verdict.state]
