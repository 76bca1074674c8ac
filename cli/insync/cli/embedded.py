"""A server on this machine for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from insync.core.errors import InsyncError, MissingExtra, ServerError, missing_extra

__all__ = ["embedded_server"]


@contextmanager
def embedded_server() -> Iterator[str]:
    """Run a server on this machine while the block runs, and yield its address HOST:PORT.

    Raises:
        MissingExtra: `insync[serve]` is not installed.
        ServerError: the server cannot be started.
    """
    try:
        from insync.ensemble.server.embedded import EmbeddedServer
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    try:
        server = EmbeddedServer()
        server.start()
    except InsyncError as exc:
        kind = MissingExtra if isinstance(exc, MissingExtra) else ServerError
        raise kind(f"no --server was given, and none can be started here: {exc}") from exc
    try:
        yield server.grpc_url
    finally:
        server.stop(drain=False)  # no request is waiting for a response
