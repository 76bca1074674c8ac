"""A real inference through both ensembles: what tells a server that serves from one that only says that it is ready.

Triton's ready endpoints stay green when a model's process has died.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from insync.core.errors import NotFound, ServerError, StorageError
from insync.core.spec import CANARY, ENSEMBLES, WINDOW_SAMPLES
from insync.ensemble.models.twin_store import TwinStore, canary_record
from insync.ensemble.server.security import ask_over_http

Values = dict[str, tuple[str, NDArray[Any]]]  # type and array of each tensor


def answers_frames(url: str, twin_store: Path | None, timeout_s: float, over_http: bool = False) -> None:
    """Sends a grey frame and silence, for a twin that exists only meanwhile, through every ensemble.

    Args:
        url: the server's gRPC address, HOST:PORT.
        twin_store: the server's; None leaves it alone, and names the twin that every server knows.
        timeout_s: for each inference.
        over_http: `url` is the HTTP address: for servers whose gRPC asks for a client's certificate.

    Raises:
        ServerError: an ensemble answers with an error, or not at all; or the twin store cannot be written.
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
                ask_over_http(url, ensemble, fields, timeout_s)
            return
        with triton.InferenceServerClient(url) as client:
            for ensemble in ENSEMBLES:
                try:
                    client.infer(ensemble, _inputs(values), client_timeout=timeout_s)
                except triton.InferenceServerException as exc:
                    raise ServerError(f"{ensemble} does not serve: {exc.message()}") from exc
    finally:
        if store is not None:
            with contextlib.suppress(NotFound):  # whoever removed it did what we wanted
                store.remove(twin)


def grey_jpeg(side: int) -> bytes:
    """A grey square as a JPEG file."""
    return bytes(cv2.imencode(".jpg", np.full((side, side, 3), 128, np.uint8))[1])


def _values(twin: str) -> Values:
    frame = np.frombuffer(grey_jpeg(128), np.uint8)[None]
    return {
        "FRAME": ("UINT8", frame),
        "AUDIO": ("FP32", np.zeros((1, WINDOW_SAMPLES), np.float32)),
        "TWIN": ("BYTES", np.array([[twin]], np.object_)),
        # Lets it in where the server is full.
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
