"""A client of Triton's management endpoints over HTTP: models' inference counts, loading and unloading of models."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insync.core.errors import ServerError
from insync.core.spec import ALL_MODELS, CANARY, Tensor
from insync.ensemble.server.canary import grey_jpeg

LOAD_TIMEOUT_S = 60.0
_TIMEOUT_S = 10.0
_SIDE = 32  # pixels


@dataclass(frozen=True)
class Counts:
    """One model's finished inferences, by result."""

    succeeded: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """All finished inferences: the count of a model that hangs does not grow."""
        return self.succeeded + self.failed


class Management:
    """A client of Triton's management endpoints. No connection is kept: each request opens its own.

    Args:
        url: HOST:PORT of the HTTP endpoint.
        headers: the headers that grant access to restricted endpoints.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json", **(headers or {})}

    def counts(self) -> dict[str, Counts]:
        """Return how many inferences each loaded model and ensemble has finished so far.

        Raises:
            ServerError: the server does not respond.
        """
        found: dict[str, Counts] = {}
        for model in self._call("GET", "/v2/models/stats")["model_stats"]:
            outcomes, versions = model["inference_stats"], found.get(model["name"], Counts())
            found[model["name"]] = Counts(
                versions.succeeded + int(outcomes["success"]["count"]),
                versions.failed + int(outcomes["fail"]["count"]),
            )
        return found

    def unload(self, model: str) -> None:
        """Unload a model; its processes end.

        Raises:
            ServerError: it is not unloaded in time, or the server does not respond.
        """
        self._call("POST", f"/v2/repository/models/{model}/unload", LOAD_TIMEOUT_S)

    def load(self, model: str) -> None:
        """Load a model, with new processes; return when it is ready.

        Raises:
            ServerError: it does not start.
        """
        self._call("POST", f"/v2/repository/models/{model}/load", LOAD_TIMEOUT_S)

    def infer(self, model: str, timeout_s: float) -> None:
        """Send one small request to a model by itself; an error counts as a response too.

        Raises:
            ServerError: no response came in time.
        """
        described = ALL_MODELS[model]
        # A model whose inputs are all optional is sent the first: a request without inputs might not reach it.
        needed = [tensor for tensor in described.inputs if not tensor.optional] or described.inputs[:1]
        inputs = [_smallest(tensor, described.max_batch_size > 0) for tensor in needed]
        body = {"inputs": inputs, "parameters": {"binary_data_output": True}}
        self._exchange("POST", f"/v2/models/{model}/infer", body, timeout_s)

    def _call(self, method: str, path: str, timeout_s: float = _TIMEOUT_S) -> Any:
        status, content = self._exchange(method, path, {}, timeout_s)
        if status != http.client.OK:
            raise ServerError(f"{path} failed with {status}: {content[:300].decode(errors='replace')}")
        try:
            return json.loads(content or b"{}")
        except ValueError as exc:
            raise ServerError(f"{path} returned no valid JSON") from exc

    def _exchange(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._url, timeout=timeout_s)
        try:
            connection.request(method, path, json.dumps(body) if method == "POST" else None, self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise ServerError(f"{path}: no response from {self._url} ({exc or type(exc).__name__})") from exc
        finally:
            connection.close()


def _smallest(tensor: Tensor, batched: bool) -> dict[str, Any]:
    """Return a tensor in KServe's JSON form: zeros, but valid where an invalid one would fail the rest of its batch."""
    shape = [_SIDE if length < 0 else length for length in tensor.shape]
    data: list[Any] = [0] * math.prod(shape)
    if tensor.name in ("FRAME", "CHECKED_FRAME"):
        data = list(grey_jpeg(_SIDE))
        shape = [len(data)]
    elif tensor.name == "TRANSFORM":
        data = [1, 0, 0, 0, 1, 0]
    elif tensor.dtype == "STRING":
        data, shape = [CANARY], [1]
    dtype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
    return {"name": tensor.name, "shape": [1, *shape] if batched else shape, "datatype": dtype, "data": data}
