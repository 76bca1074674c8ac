"""What a supervisor asks of a running Triton over its HTTP endpoint: which models have worked, and to load one anew."""

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
    """Executions of one model, by how they ended."""

    well: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """All of them: who hangs ends none."""
        return self.well + self.failed


class Management:
    """Triton's management endpoints. No connection is kept: each question takes one of its own.

    Args:
        url: HOST:PORT of the HTTP endpoint.
        headers: that open restricted endpoints.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json", **(headers or {})}

    def counts(self) -> dict[str, Counts]:
        """How many executions each loaded model, and ensemble, has ended so far.

        Raises:
            ServerError: the server does not answer.
        """
        found: dict[str, Counts] = {}
        for model in self._call("GET", "/v2/models/stats")["model_stats"]:
            outcomes, versions = model["inference_stats"], found.get(model["name"], Counts())
            found[model["name"]] = Counts(
                versions.well + int(outcomes["success"]["count"]), versions.failed + int(outcomes["fail"]["count"])
            )
        return found

    def unload(self, model: str) -> None:
        """Takes a model out of service; its processes end.

        Raises:
            ServerError: it does not end in time, or the server does not answer.
        """
        self._call("POST", f"/v2/repository/models/{model}/unload", LOAD_TIMEOUT_S)

    def load(self, model: str) -> None:
        """Takes a model into service, with new processes; returns when it is ready.

        Raises:
            ServerError: it does not start.
        """
        self._call("POST", f"/v2/repository/models/{model}/load", LOAD_TIMEOUT_S)

    def answers(self, model: str, timeout_s: float) -> None:
        """Asks one model by itself, for something small; an error is an answer too.

        Raises:
            ServerError: none came in time.
        """
        described = ALL_MODELS[model]
        # A model whose inputs are all optional gets its first: without any, the request might not reach it.
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
            raise ServerError(f"{path} gave no JSON") from exc

    def _exchange(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._url, timeout=timeout_s)
        try:
            connection.request(method, path, json.dumps(body) if method == "POST" else None, self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise ServerError(f"{path}: no answer from {self._url} ({exc or type(exc).__name__})") from exc
        finally:
            connection.close()


def _smallest(tensor: Tensor, batched: bool) -> dict[str, Any]:
    """A tensor as the KServe protocol writes it: zeros, but nothing that a batch with others' requests could fail on."""
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
