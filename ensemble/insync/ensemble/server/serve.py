"""The implementation of `insync serve`: an embedded server in the foreground, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from insync.core.errors import InsyncError
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.security import ServerTls
from insync.ensemble.server.supervisor import Supervisor

GRPC_PORT, HTTP_PORT, METRICS_PORT = 8001, 8000, 8002  # Triton's defaults
_POLL_S = 0.2


def serve(
    repository: Path | None = None,
    twin_store: Path | None = None,
    host: str = "127.0.0.1",
    grpc_port: int = GRPC_PORT,
    http_port: int = HTTP_PORT,
    metrics_port: int = METRICS_PORT,
    log: Path | None = None,
    gpu: bool = False,
    tls: ServerTls | None = None,
    unfused: bool = False,
) -> int:
    """Serve until SIGINT or SIGTERM; print the addresses on standard output and errors on standard error.

    Failed models and servers are restarted (`insync.ensemble.server.supervisor`), with a line on standard error.

    Args:
        repository, twin_store, host, log, gpu, tls, unfused: as for `EmbeddedServer`.
        grpc_port, http_port, metrics_port: 0 chooses a free one.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM, 1 if the server cannot start or keeps dying.
    """
    try:
        with _stoppable():
            started = time.monotonic()
            server = EmbeddedServer(
                repository,
                twin_store,
                grpc_port or None,
                http_port or None,
                metrics_port or None,
                host,
                log,
                gpu=gpu,
                tls=tls,
                unfused=unfused,
            )
            with server:
                security = "" if tls is None else " with TLS" if tls.client_ca is None else " with mutual TLS"
                _print(
                    f"InSync is ready after {time.monotonic() - started:.1f} s: gRPC {server.grpc_url}{security}, "
                    f"HTTP {server.http_url}, metrics {server.metrics_url}; twins in {server.twin_store}; "
                    f"log {server.log}. {_networks(gpu)}Press Ctrl-C to stop."
                )
                supervisor = Supervisor(server, _warn)
                while True:
                    time.sleep(_POLL_S)
                    supervisor.watch()
    except _Stop:
        _print("InSync has stopped.")
        return 0
    except InsyncError as exc:
        _warn(str(exc))
        return 1


def _networks(gpu: bool) -> str:
    if not gpu:
        return ""
    from insync.ensemble.inference.runtime import find_runtime

    return f"The networks run on {find_runtime()}. "


class _Stop(BaseException):
    """Raised on SIGINT or SIGTERM. Not an `Exception`: no handler in between may treat it as a failure."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `_Stop`, once: pressing Ctrl-C again does not interrupt the cleanup."""

    def stop(number: int, frame: FrameType | None) -> None:
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_IGN)
        raise _Stop

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warn(line: str) -> None:
    sys.stderr.write(f"insync serve: {line}\n")
    sys.stderr.flush()


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
