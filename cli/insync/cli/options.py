"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from insync.client.transport.tls import TlsOptions
from insync.core.errors import BadInput

__all__ = ["add_server", "add_tls_options", "tls_options"]


def add_server(command: argparse.ArgumentParser) -> None:
    """Add the options that say which server does the work."""
    command.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="gRPC endpoint; several with commas between them, where one goes on when another fails; default: a server "
        "on this machine, for this command alone",
    )
    add_tls_options(command)
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def add_tls_options(parser: argparse._ActionsContainer) -> None:
    """Adds what a command that talks to a server may be told of TLS."""
    parser.add_argument("--tls", action="store_true", help="speak TLS, trusting the certificates that gRPC brings")
    parser.add_argument("--tls-ca", metavar="PEM", type=Path, help="speak TLS, trusting this CA")
    parser.add_argument("--tls-cert", metavar="PEM", type=Path, help="this client's certificate, for mutual TLS")
    parser.add_argument("--tls-key", metavar="PEM", type=Path, help="its key")
    parser.add_argument("--tls-name", metavar="HOST", help="the name in the server's certificate, if not the address's")


def tls_options(options: argparse.Namespace, server: str | None, option: str = "--server") -> TlsOptions | None:
    """What a command was told of TLS; None: to speak without.

    Args:
        options: parsed, of a parser that `add_tls_options` was given.
        server: that the command was told to talk to.
        option: which tells it.

    Raises:
        BadInput: it was told of TLS and of no server.
    """
    given = TlsOptions(options.tls_ca, options.tls_cert, options.tls_key, options.tls_name)
    if not options.tls and given == TlsOptions():
        return None
    if server is None:
        raise BadInput(f"TLS options need {option}: a server of this command's own listens on loopback, without TLS")
    return given
