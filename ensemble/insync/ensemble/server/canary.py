"""A canary: a real inference through both ensembles, which shows that a server really serves.

Triton's readiness endpoints keep reporting "ready" after a model's process has died.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from insync.core.errors import NotFound, ServerError, StorageError
from insync.core.images import encode_jpeg
from insync.core.spec import CANARY, ENSEMBLES, WINDOW_SAMPLES
from insync.ensemble.models.twin_store import TwinStore, canary_record
from insync.ensemble.server.security import infer_over_http

Values = dict[str, tuple[str, NDArray[Any]]]  # datatype and array of each tensor


def send_canary(url: str, twin_store: Path | None, timeout_s: float, over_http: bool = False) -> None:
    """Send a grey frame and silence through every ensemble, for a temporary twin.

    Args:
        url: the server's gRPC address, HOST:PORT.
        twin_store: the server's twin store, to which the temporary twin is written. None leaves the store untouched and
            uses the built-in canary twin that every server has.
        timeout_s: for each inference.
        over_http: `url` is the HTTP address: for servers whose gRPC endpoint requires a client certificate.

    Raises:
        ServerError: an ensemble returns an error or does not respond; or the twin store cannot be written.
    """
    store, twin = None if twin_store is None else TwinStore(twin_store), CANARY
    if store is not None:
        try:
            twin = store.save(canary_record())
        except StorageError as exc:
            raise ServerError(f"{twin_store}: {exc}") from exc
    values = _values(twin)
    try:
        if over_http:
            fields = [
                {"name": name, "shape": list(value.shape), "datatype": dtype, "data": value.reshape(-1).tolist()}
                for name, (dtype, value) in values.items()
            ]
            for ensemble in ENSEMBLES:
                infer_over_http(url, ensemble, fields, timeout_s)
            return
        with triton.InferenceServerClient(url) as client:
            for ensemble in ENSEMBLES:
                try:
                    client.infer(ensemble, _inputs(values), client_timeout=timeout_s)
                except triton.InferenceServerException as exc:
                    raise ServerError(f"{ensemble} does not serve: {exc.message()}") from exc
    finally:
        if store is not None:
            with contextlib.suppress(NotFound):  # already removed: nothing left to do
                store.remove(twin)


def grey_jpeg(side: int) -> bytes:
    """Encode a grey square as a JPEG file."""
    return encode_jpeg(np.full((side, side, 3), 128, np.uint8), 95)


def _values(twin: str) -> Values:
    frame = np.frombuffer(grey_jpeg(128), np.uint8)[None]
    return {
        "FRAME": ("UINT8", frame),
        "AUDIO": ("FP32", np.zeros((1, WINDOW_SAMPLES), np.float32)),
        "TWIN": ("BYTES", np.array([[twin]], np.object_)),
        # Probes are admitted even when the server is full.
        "STREAM": ("BYTES", np.array([[CANARY]], np.object_)),
        "RATE": ("FP32", np.ones((1, 1), np.float32)),
    }


def _inputs(values: Values) -> list[triton.InferInput]:
    inputs = []
    for name, (dtype, value) in values.items():
        tensor = triton.InferInput(name, value.shape, dtype)
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    return inputs
