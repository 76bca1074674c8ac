"""The server under test: one started here for the run alone, or any other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from insync.core.errors import missing_extra
from insync.loadtest.errors import LoadTestError
from insync.loadtest.measure.triton_metrics import scrape

__all__ = ["Target", "target"]

METRICS_PORT = 8002  # Triton's own


@dataclass(frozen=True)
class Target:
    """Where the load goes, and what can be seen of it.

    Attributes:
        server: HOST:PORT of the gRPC endpoint.
        metrics: HOST:PORT of the metrics page, None where it cannot be read.
        pid: gives the server's process id, or None where it is not ours to look at.
        shared_memory_prefix: of its regions under /dev/shm, or None.
        check: raises LoadTestError when an embedded server has died.
        embedded: started for this run.
    """

    server: str
    metrics: str | None = None
    pid: Callable[[], int | None] = lambda: None
    shared_memory_prefix: str | None = None
    check: Callable[[], None] = lambda: None
    embedded: bool = False


@contextmanager
def target(host: str | None, metrics: str | None) -> Iterator[Target]:
    """The server at `host`, or an embedded one for as long as the block runs.

    Args:
        host: HOST:PORT of a gRPC endpoint, or None.
        metrics: HOST:PORT of its metrics page; None tries Triton's usual port on the same host.

    Raises:
        MissingExtra: no host, and the serving part is not installed.
        LoadTestError: no host, and the embedded server does not start; or no metrics at the given place.
    """
    if host is not None:
        found = metrics or f"{host.rpartition(':')[0]}:{METRICS_PORT}"
        readable = scrape(found) is not None
        if metrics is not None and not readable:
            raise LoadTestError(f"there is no metrics page at http://{metrics}/metrics")
        yield Target(host, found if readable else None)
        return
    try:
        from insync.core.errors import InsyncError
        from insync.ensemble.server.embedded import EmbeddedServer
    except ImportError as exc:
        raise missing_extra("serve", exc) from exc
    with tempfile.TemporaryDirectory(prefix="insync-load-", ignore_cleanup_errors=True) as folder:
        try:
            server = EmbeddedServer(twin_store=Path(folder) / "twins")
            server.start()
        except InsyncError as exc:
            raise LoadTestError(f"no --host was given, and no server can be started here: {exc}") from exc

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
