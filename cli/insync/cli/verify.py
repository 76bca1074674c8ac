"""`insync verify`: read what a file says about having been dubbed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from insync.cli.exit_codes import EXIT_ALTERED, EXIT_TAGGED, EXIT_UNMARKED
from insync.core.errors import BadInput, missing_extra

__all__ = ["add_verify"]


def add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="read what a file says about having been dubbed",
        description="Exit code 0: a signed manifest says that FILE is synthetic, and fits it. 3: only a metadata tag says "
        "so. 4: nothing does. 5: FILE was changed after it was signed. 1: it cannot be read. Nothing is fetched.",
    )
    verify.add_argument("file", metavar="FILE", type=Path, help="a media file")
    verify.add_argument("--ca", metavar="PEM", type=Path, help="an authority whose certificates count as known")
    verify.add_argument("--debug", action="store_true", help="show tracebacks")
    verify.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
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
