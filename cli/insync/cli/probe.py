"""`insync probe`: check that servers are ready."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from insync.cli.options import add_tls_options, tls_options

__all__ = ["add_probe"]


def add_probe(commands: Any) -> None:
    """Add the command."""
    probe = commands.add_parser(
        "probe",
        help="check that servers are ready",
        description="Check that servers are ready, for example as a container's health check. Exit with 0 if all are, or with "
        "1 and one line with the reason. An overloaded server counts as ready.",
    )
    probe.add_argument("server", metavar="HOST:PORT", help="gRPC endpoint, or several separated by commas")
    probe.add_argument(
        "--canary", action="store_true", help="send a frame through every model, to find models that have died or hang"
    )
    probe.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=5.0,
        help="seconds to wait for each response (default: %(default)s)",
    )
    add_tls_options(probe)
    probe.add_argument("--debug", action="store_true", help="show tracebacks")
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    """Run the command."""
    from insync.client.probe import probe

    asyncio.run(
        probe(
            options.server, canary=options.canary, timeout_s=options.timeout, tls=tls_options(options, options.server)
        )
    )
    print(f"{options.server} is ready")  # noqa: T201
    return 0
