"""A server on this machine for one command."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from insync.core.errors import InsyncError, MissingExtra, ServerError, missing_extra

__all__ = ["embedded_server"]


def embedded_server(twin_store: Path | None = None) -> AbstractContextManager[str]:
    """Make a context manager that runs a server on this machine, and returns its address HOST:PORT.

    Raises:
        MissingExtra: `insync[serve]` is not installed.
        ServerError: the server cannot be started.
    """
    return _Embedded(twin_store)


class _Embedded(AbstractContextManager[str]):
    def __init__(self, twin_store: Path | None) -> None:
        self._twin_store = twin_store
        self._server: Any = None

    def __enter__(self) -> str:
        try:
            from insync.ensemble.server.embedded import EmbeddedServer
        except ImportError as exc:
            raise missing_extra("serve", exc) from exc
        try:
            self._server = EmbeddedServer(twin_store=self._twin_store)
            self._server.start()
        except InsyncError as exc:
            kind = MissingExtra if isinstance(exc, MissingExtra) else ServerError
            raise kind(f"no --server was given, and none can be started here: {exc}") from exc
        return str(self._server.grpc_url)

    def __exit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.stop(drain=False)  # no request is waiting for a response
