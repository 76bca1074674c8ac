"""A probe of servers' readiness, for containers' health checks, load balancers and operators."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.client.client import Client
from insync.client.transport.tls import TlsOptions
from insync.core import spec
from insync.core.errors import Overloaded
from insync.core.images import encode_jpeg

__all__ = ["probe"]

_SIDE = 128  # pixels of the canary's frame


async def probe(server: str, *, canary: bool = False, timeout_s: float = 5.0, tls: TlsOptions | None = None) -> None:
    """Check that servers are ready; return if all of them are.

    Args:
        server: HOST:PORT of a server's gRPC endpoint; several separated by commas.
        canary: send a frame through both ensembles. Without it, only readiness is requested, which a server still reports
            after the process of a model has died. An overloaded server passes: it has responded.
        timeout_s: seconds to wait for each response.
        tls: certificates and keys for TLS; None connects without TLS.

    Raises:
        InsyncError: a server is not ready; the message names it and the reason.
    """
    for address in server.split(","):
        async with Client(
            address, connect_timeout_s=timeout_s, request_timeout_s=timeout_s, tls=tls, retry_s=0, overload_s=0
        ) as client:
            if canary:
                await _send_canary(client)


async def _send_canary(client: Client) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "FRAME": np.frombuffer(encode_jpeg(np.full((_SIDE, _SIDE, 3), 128, np.uint8), 90), np.uint8),
        "AUDIO": np.zeros(spec.WINDOW_SAMPLES, np.float32),
        "TWIN": np.array([spec.CANARY.encode()], np.object_),
        "STREAM": np.array([spec.CANARY.encode()], np.object_),
        "RATE": np.ones(1, np.float32),
    }
    for name in spec.ENSEMBLES:
        with suppress(Overloaded):
            await client._infer(name, arrays, f"a frame through {name}")
