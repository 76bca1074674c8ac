"""Options shared by several commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from insync.client.transport.tls import TlsOptions
from insync.core.errors import BadInput

__all__ = ["add_server", "add_tls_options", "tls_options"]


def add_server(command: argparse.ArgumentParser) -> None:
    """Add the options of the server to use."""
    command.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="gRPC endpoint, or several separated by commas for failover (default: start a server on this machine for this "
        "command)",
    )
    add_tls_options(command)
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def add_tls_options(parser: argparse._ActionsContainer) -> None:
    """Add the TLS options of a client."""
    parser.add_argument("--tls", action="store_true", help="use TLS, and trust gRPC's built-in CA certificates")
    parser.add_argument("--tls-ca", metavar="PEM", type=Path, help="use TLS, and trust this CA certificate")
    parser.add_argument("--tls-cert", metavar="PEM", type=Path, help="client certificate, for mutual TLS")
    parser.add_argument("--tls-key", metavar="PEM", type=Path, help="private key of --tls-cert")
    parser.add_argument(
        "--tls-name", metavar="HOST", help="host name in the server's certificate, if it is not the address's"
    )


def tls_options(options: argparse.Namespace, server: str | None, option: str = "--server") -> TlsOptions | None:
    """Return a command's TLS options; None: without TLS.

    Args:
        options: parsed options, from a parser with `add_tls_options`.
        server: the given server's address; None if no server was given.
        option: name of the option that gives the server.

    Raises:
        BadInput: there are TLS options but no server.
    """
    given = TlsOptions(options.tls_ca, options.tls_cert, options.tls_key, options.tls_name)
    if not options.tls and given == TlsOptions():
        return None
    if server is None:
        raise BadInput(f"TLS options need {option}: a server that this command starts listens on loopback, without TLS")
    return given
