"""The server under test: an embedded one that is started for the run, or any other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from insync.core.errors import InsyncError, missing_extra
from insync.loadtest.errors import LoadTestError
from insync.loadtest.measure.triton_metrics import scrape

__all__ = ["Target", "target"]

METRICS_PORT = 8002  # Triton's own


@dataclass(frozen=True)
class Target:
    """The endpoints and processes of the server under test.

    Attributes:
        server: HOST:PORT of the gRPC endpoint.
        metrics: HOST:PORT of Triton's metrics, None if they cannot be read.
        pid: returns the process id of an embedded server, else None.
        shared_memory_prefix: name prefix of an embedded server's regions under /dev/shm, else None.
        check: raises LoadTestError if an embedded server has died.
        embedded: whether the server was started for this run.
    """

    server: str
    metrics: str | None = None
    pid: Callable[[], int | None] = lambda: None
    shared_memory_prefix: str | None = None
    check: Callable[[], None] = lambda: None
    embedded: bool = False


@contextmanager
def target(host: str | None, metrics: str | None) -> Iterator[Target]:
    """Yield the server at `host`, or an embedded one that runs until the block ends.

    Args:
        host: HOST:PORT of a gRPC endpoint, or None for an embedded server.
        metrics: HOST:PORT of its metrics; None tries Triton's default port on the same host.

    Raises:
        MissingExtra: no host is given, and the extra `serve` is not installed.
        LoadTestError: no host is given and the embedded server does not start, or there are no metrics at the given address.
    """
    if host is not None:
        found = metrics or f"{host.rpartition(':')[0]}:{METRICS_PORT}"
        readable = scrape(found) is not None
        if metrics is not None and not readable:
            raise LoadTestError(f"no metrics page at http://{metrics}/metrics: check --metrics")
        yield Target(host, found if readable else None)
        return
    try:
        from insync.ensemble.server.embedded import EmbeddedServer
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    with tempfile.TemporaryDirectory(prefix="insync-load-", ignore_cleanup_errors=True) as folder:
        try:
            server = EmbeddedServer(twin_store=Path(folder) / "twins")
            server.start()
        except InsyncError as exc:
            raise LoadTestError(f"no --host is given, and the embedded server does not start: {exc}") from exc

        def check() -> None:
            try:
                server.check()
            except InsyncError as exc:
                raise LoadTestError(str(exc)) from exc

        try:
            yield Target(
                server.grpc_url, server.metrics_url, lambda: server.pid, server.shared_memory_prefix, check, True
            )
        finally:
            server.stop()
