"""The command line `insync`. Each command imports its package only when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from insync.cli.dub import add_dub
from insync.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, log
from insync.cli.probe import add_probe
from insync.cli.serve import add_serve
from insync.cli.twin import add_twin
from insync.cli.verify import add_verify
from insync.core.errors import InsyncError, MissingExtra

__all__ = ["main"]

# Commands that parse their own arguments: their module, the extras that it needs, and what they do.
_OWN_PARSERS = {
    "export": ("insync.export.cli", "serve,export,train", "export a checkpoint to the served models"),
    "evaluate": (
        "insync.training.cli.evaluate",
        "serve,train",
        "measure dubs of held-out footage, and write a report",
    ),
    "loadtest": ("insync.loadtest.cli", "loadtest", "load-test a server: capacity, soak, reports"),
    "curate": ("insync.training.cli.curate", "serve,train", "turn footage into a training set, and write a report"),
    "train": ("insync.training.cli.train", "serve,train", "train the network: one stage, or all"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. A failure is one line on stderr.

    Args:
        argv: arguments without the program's name; None uses those of the process.

    Returns:
        The exit code: 0; 1 if the command failed; 2 for wrong usage or an optional part that is not installed; 130 if it
        was interrupted; 3 to 5 as in `insync verify --help`, and 3 if a dubbed file is complete but could not be signed.
    """
    # gRPC would write its own log to stderr; relevant failures are raised as errors anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _OWN_PARSERS:
        return _reported(lambda: _run_own_parser(arguments[0], arguments[1:]))
    options = _parser().parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up on SIGTERM as on Ctrl-C
    try:
        return _reported(lambda: int(options.run(options)), options.debug)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _reported(run: Callable[[], int], debug: bool = False) -> int:
    """Run a command, and turn what it raises on purpose into a line on stderr and an exit code."""
    try:
        return run()
    except KeyboardInterrupt:
        log("interrupted")
        return EXIT_INTERRUPTED
    except InsyncError as exc:
        if debug:
            raise
        log(str(exc))
        return EXIT_USAGE if isinstance(exc, MissingExtra) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="insync",
        description="Make a filmed person speak any audio, with a lip-sync model on Triton Inference Server.",
    )
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_dub(commands)
    add_twin(commands)
    add_serve(commands)
    add_verify(commands)
    add_probe(commands)
    for command, (_, _, text) in _OWN_PARSERS.items():
        commands.add_parser(command, help=text, add_help=False)
    return parser


def _run_own_parser(command: str, arguments: list[str]) -> int:
    """Run a command that parses its own arguments."""
    module, extras, _ = _OWN_PARSERS[command]
    try:
        run = importlib.import_module(module).main
    except ImportError as exc:
        log(f"this needs a part that is not installed ({exc.name}): pip install 'insync[{extras}]'")
        return EXIT_USAGE
    return int(run(arguments) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
