"""Triton's metrics: counters of every model, as text in the Prometheus format, and what they say between two readings."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Counters", "ModelLoad", "between", "parse", "scrape"]

_LINE = re.compile(r"^(nv_\w+)\{([^}]*)\}\s+([^\s]+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TIMEOUT_S = 2.0
_FIELDS = {
    "nv_inference_request_success": "requests",
    "nv_inference_request_failure": "failures",
    "nv_inference_count": "inferences",
    "nv_inference_exec_count": "executions",
    "nv_inference_queue_duration_us": "queue_us",
    "nv_inference_compute_input_duration_us": "compute_us",
    "nv_inference_compute_infer_duration_us": "compute_us",
    "nv_inference_compute_output_duration_us": "compute_us",
    "nv_inference_request_duration_us": "request_us",
}


@dataclass(frozen=True)
class Counters:
    """One model's counters since the server's start; durations are sums over requests."""

    requests: float = 0.0
    failures: float = 0.0
    inferences: float = 0.0
    executions: float = 0.0
    queue_us: float = 0.0
    compute_us: float = 0.0
    request_us: float = 0.0

    def minus(self, before: Counters) -> Counters:
        """What was added since `before`. Where the server began anew meanwhile, all that it has counted."""
        difference = {name: getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__}
        return self if min(difference.values()) < 0 else Counters(**difference)


@dataclass(frozen=True)
class ModelLoad:
    """What one model did between two readings.

    Attributes:
        requests_per_s: answered.
        failures: requests that ended with an error.
        batch: mean size of a batch.
        queue_ms: mean wait of a request in the model's queue.
        compute_ms: mean computation that a request was part of.
        request_ms: mean time of a request in the model.
    """

    requests_per_s: float
    failures: int
    batch: float
    queue_ms: float
    compute_ms: float
    request_ms: float


def parse(text: str) -> dict[str, Counters]:
    """Counters by model from a metrics page; several versions of a model are summed up, other metrics are left out."""
    sums: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        field = _FIELDS.get(match[1]) if match else None
        if match is None or field is None:
            continue
        model = dict(_LABEL.findall(match[2])).get("model")
        if model:
            entry = sums.setdefault(model, {})
            entry[field] = entry.get(field, 0.0) + float(match[3])
    return {model: Counters(**fields) for model, fields in sums.items()}


def scrape(address: str) -> dict[str, Counters] | None:
    """Reads a server's metrics page; None where there is none at HOST:PORT."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as page:
            return parse(page.read().decode("utf-8", "replace"))
    except (urllib.error.URLError, OSError, ValueError):
        return None


def between(before: Mapping[str, Counters], after: Mapping[str, Counters], seconds: float) -> dict[str, ModelLoad]:
    """What each model did between two readings that lie `seconds` apart; idle models are left out."""
    loads = {}
    for model, now in after.items():
        done = now.minus(before.get(model, Counters()))
        answered = done.requests + done.failures
        if answered <= 0:
            continue
        each = 1000 * max(1.0, done.requests)  # Triton times successful requests alone
        loads[model] = ModelLoad(
            requests_per_s=done.requests / seconds if seconds > 0 else 0.0,
            failures=int(done.failures),
            # An ensemble executes nothing itself.
            batch=done.inferences / done.executions if done.executions else 0.0,
            queue_ms=done.queue_us / each,
            compute_ms=done.compute_us / each,
            request_ms=done.request_us / each,
        )
    return loads
