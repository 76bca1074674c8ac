"""Triton's metrics: the counters of every model in the Prometheus text format, and each model's load between two readings."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Counters", "ModelLoad", "between", "parse", "scrape"]

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
    """The counters of one model since the server's start; durations are sums over requests."""

    requests: float = 0.0
    failures: float = 0.0
    inferences: float = 0.0
    executions: float = 0.0
    queue_us: float = 0.0
    compute_us: float = 0.0
    request_us: float = 0.0

    def minus(self, before: Counters) -> Counters:
        """Return the increase since `before`; if the server has restarted in the meantime, the counters since its restart."""
        difference = {name: getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__}
        return self if min(difference.values()) < 0 else Counters(**difference)


@dataclass(frozen=True)
class ModelLoad:
    """The load of one model between two readings.

    Attributes:
        requests_per_s: successful requests per second.
        failures: number of failed requests.
        batch: mean batch size.
        queue_ms: mean time of a request in the model's queue.
        compute_ms: mean compute time of a request, shared with the other requests of its batch.
        request_ms: mean time of a request in the model.
    """

    requests_per_s: float
    failures: int
    batch: float
    queue_ms: float
    compute_ms: float
    request_ms: float


def parse(text: str) -> dict[str, Counters]:
    """Return the counters by model from a metrics page. Versions of a model are summed, other metrics are ignored.

    Raises:
        ValueError: the text is not in the Prometheus format.
    """
    sums: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        field = _FIELDS.get(family.name)
        if field is None:
            continue
        for sample in family.samples:
            if model := sample.labels.get("model"):
                entry = sums.setdefault(model, {})
                entry[field] = entry.get(field, 0.0) + sample.value
    return {model: Counters(**fields) for model, fields in sums.items()}


def scrape(address: str) -> dict[str, Counters] | None:
    """Read a server's metrics; None if there are none at HOST:PORT."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as page:
            return parse(page.read().decode("utf-8", "replace"))
    except (urllib.error.URLError, OSError, ValueError):
        return None


def between(before: Mapping[str, Counters], after: Mapping[str, Counters], seconds: float) -> dict[str, ModelLoad]:
    """Return the load of each model between two readings that are `seconds` apart; idle models are omitted."""
    loads = {}
    for model, now in after.items():
        done = now.minus(before.get(model, Counters()))
        answered = done.requests + done.failures
        if answered <= 0:
            continue
        each = 1000 * max(1.0, done.requests)  # Triton measures the durations of successful requests only
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
