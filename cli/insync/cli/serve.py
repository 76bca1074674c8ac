"""`insync serve`: run the server on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from insync.core.errors import BadInput, missing_extra

__all__ = ["add_serve"]


def add_serve(commands: Any) -> None:
    """Add the command."""
    serve = commands.add_parser(
        "serve",
        help="run the server on this machine",
        description="Run Triton with InSync's models until Ctrl-C or SIGTERM, and print the addresses that it listens on.",
    )
    serve.add_argument(
        "--repository",
        metavar="FOLDER",
        type=Path,
        help="model repository (default: the one that is installed with InSync)",
    )
    serve.add_argument("--twins", metavar="FOLDER", type=Path, help="twin store (default: $INSYNC_TWINS)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    for name, port, title in (("grpc", 8001, "gRPC"), ("http", 8000, "HTTP"), ("metrics", 8002, "metrics")):
        serve.add_argument(
            f"--{name}-port", metavar="PORT", type=int, default=port, help=f"{title} port (default: %(default)s)"
        )
    serve.add_argument(
        "--gpu",
        action="store_true",
        help="run the networks on the GPU, with ONNX Runtime's CUDA provider or else with PyTorch",
    )
    serve.add_argument(
        "--no-fuse",
        dest="unfused",
        action="store_true",
        help="do not fuse the pipeline on the CPU: serve each step as its own Triton model, with its own metrics; slower",
    )
    serve.add_argument(
        "--separate-steps", dest="unfused", action="store_true", help=argparse.SUPPRESS
    )  # the old name of --no-fuse
    serve.add_argument("--tls-cert", metavar="PEM", type=Path, help="use TLS for gRPC, with this certificate")
    serve.add_argument("--tls-key", metavar="PEM", type=Path, help="private key of --tls-cert")
    serve.add_argument(
        "--tls-client-ca", metavar="PEM", type=Path, help="accept only clients with a certificate from this CA"
    )
    serve.add_argument("--log", metavar="FILE", type=Path, help="write the server's log to FILE")
    serve.add_argument("--debug", action="store_true", help="show tracebacks")
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    """Run the command."""
    try:
        from insync.ensemble.server.security import ServerTls
        from insync.ensemble.server.serve import serve
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    tls = None
    if options.tls_cert or options.tls_key or options.tls_client_ca:
        if not (options.tls_cert and options.tls_key):
            raise BadInput("TLS needs both --tls-cert and --tls-key")
        tls = ServerTls(options.tls_cert, options.tls_key, options.tls_client_ca)
    return int(
        serve(
            repository=options.repository,
            twin_store=options.twins,
            grpc_port=options.grpc_port,
            http_port=options.http_port,
            metrics_port=options.metrics_port,
            host=options.host,
            log=options.log,
            gpu=options.gpu,
            tls=tls,
            unfused=options.unfused,
        )
        or 0
    )
