"""The command line: `insync dub`, `twin`, `serve`, `probe`, `verify`, `export`, `evaluate`, `curate`, `train`, `loadtest`. Each command imports its part only when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from insync.cli.dub import add_dub
from insync.cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, say
from insync.cli.probe import add_probe
from insync.cli.serve import add_serve
from insync.cli.twin import add_twin
from insync.cli.verify import add_verify
from insync.core.errors import InsyncError, MissingExtra

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        0; 1 where the command failed, 2 for wrong usage or a part that is not installed, 130 where it was interrupted;
        3 to 5 as `insync verify` says, and 3 for a dubbed file that is whole but could not be signed.
        A failure is one line on stderr.
    """
    # gRPC's own log would mix its lines with ours; what matters of it comes as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["export"], ["evaluate"], ["curate"], ["train"], ["loadtest"]):  # have parsers of their own
        return _own_parser(arguments[0], arguments[1:])
    options = _parser().parse_args(arguments)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up on both
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except InsyncError as exc:
        if options.debug:
            raise
        say(str(exc))
        return EXIT_USAGE if isinstance(exc, MissingExtra) else EXIT_FAILED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="insync", description="Makes a filmed person speak any audio, through a Triton Inference Server."
    )
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_dub(commands)
    add_twin(commands)
    add_serve(commands)
    add_verify(commands)
    add_probe(commands)
    commands.add_parser("export", help="write the served artefacts from a checkpoint", add_help=False)
    commands.add_parser("evaluate", help="measure dubs of held-out footage, with a page to look at", add_help=False)
    commands.add_parser("loadtest", help="put load on a server: capacity, soak, reports", add_help=False)
    commands.add_parser("curate", help="turn footage into a training set, with a report to look at", add_help=False)
    commands.add_parser("train", help="train the network, stage by stage, or all of it", add_help=False)
    return parser


def _own_parser(command: str, arguments: list[str]) -> int:
    module, extras = {
        "export": ("insync.export.cli", "export"),
        "evaluate": ("insync.training.cli.evaluate", "serve,train"),
        "loadtest": ("insync.loadtest.cli", "loadtest"),
        "curate": ("insync.training.cli.curate", "serve,train"),
        "train": ("insync.training.cli.train", "serve,train"),
    }[command]
    try:
        run = importlib.import_module(module).main
    except ImportError as exc:
        say(f"this needs a part that is not installed ({exc.name}): pip install 'insync[{extras}]'")
        return EXIT_USAGE
    return int(run(arguments) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
