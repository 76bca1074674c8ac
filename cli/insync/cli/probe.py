"""`insync probe`: ask servers whether they serve."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from insync.cli.options import add_tls_options, tls_options

__all__ = ["add_probe"]


def add_probe(commands: Any) -> None:
    probe = commands.add_parser(
        "probe",
        help="ask servers whether they serve",
        description="Exits with 0 if all servers serve, with 1 and a line that says why if one does not: for containers' "
        "health checks. A full server serves.",
    )
    probe.add_argument("server", metavar="HOST:PORT", help="gRPC endpoint; several with commas between them")
    probe.add_argument(
        "--canary", action="store_true", help="send a frame through every step: finds models that have died or hang"
    )
    probe.add_argument(
        "--timeout", metavar="S", type=float, default=5.0, help="seconds for each answer (default: %(default)s)"
    )
    add_tls_options(probe)
    probe.add_argument("--debug", action="store_true", help="show tracebacks")
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    from insync.client.probe import probe

    asyncio.run(
        probe(
            options.server, canary=options.canary, timeout_s=options.timeout, tls=tls_options(options, options.server)
        )
    )
    print(f"{options.server} serves")  # noqa: T201
    return 0
