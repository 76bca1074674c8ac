"""Fallback for Triton's `dali` backend: DALI itself, on the CPU, running the serialised pipeline `model.dali`.

Uses `num_threads` of the model's config. The pipeline's external sources are the config's inputs by name, its outputs the
config's outputs in order. Batched requests run together; a failing sample fails only its own request. Pictures in an input
FRAME get the guard's checks before they are decoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline

from insync.core.errors import BadInput
from insync.ensemble.models.guard import check_frame
from insync.ensemble.triton.python_backend import array, failure, response

Arrays = dict[str, NDArray[Any]]


class TritonPythonModel:
    """One instance of one DALI pipeline."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the pipeline."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self._threads = int(parameters.get("num_threads", "1"))
        self._path = Path(args["model_repository"]) / args["model_version"] / "model.dali"
        self._limit = int(config["max_batch_size"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._pipeline = self._build()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run all requests in as few runs as the batch size allows."""
        responses: list[Any] = [None] * len(requests)
        waiting: list[tuple[int, Arrays]] = []
        for index, request in enumerate(requests):
            try:
                inputs = {name: array(request, name) for name in self._inputs}
                for frame in inputs.get("FRAME", ()):
                    check_frame(memoryview(frame))  # again: clients can call this model directly, bypassing the guard
                samples = len(inputs[self._inputs[0]])
                if sum(len(part[self._inputs[0]]) for _, part in waiting) + samples > self._limit:
                    self._flush(waiting, responses)
                waiting.append((index, inputs))
            except Exception as error:  # noqa: BLE001  every request gets its own response
                responses[index] = failure(error)
        self._flush(waiting, responses)
        return responses

    def _flush(self, waiting: list[tuple[int, Arrays]], responses: list[Any]) -> None:
        if not waiting:
            return
        try:
            outputs = self._run([inputs for _, inputs in waiting])
            for (index, _), values in zip(waiting, outputs, strict=True):
                responses[index] = response(values)
        except Exception as error:  # noqa: BLE001  DALI raises many types for a bad sample, and not which one it was
            self._pipeline = self._build()  # a pipeline that failed must not be used again
            if len(waiting) == 1:
                # After the checks above only one cause is left: the data does not match its header.
                responses[waiting[0][0]] = failure(
                    BadInput(f"{self._inputs[0]} cannot be processed: {_first_line(error)}")
                )
            else:
                for single in waiting:
                    self._flush([single], responses)
        waiting.clear()

    def _run(self, batch: list[Arrays]) -> list[Arrays]:
        """Run the samples of several requests at once, and return each request's part."""
        for name in self._inputs:
            self._pipeline.feed_input(name, [sample for inputs in batch for sample in inputs[name]])
        results = self._pipeline.run()
        parts: list[Arrays] = []
        start = 0
        for inputs in batch:
            end = start + len(inputs[self._inputs[0]])
            parts.append(
                {name: _stack(result, start, end) for name, result in zip(self._outputs, results, strict=True)}
            )
            start = end
        return parts

    def _build(self) -> Any:
        pipeline = Pipeline.deserialize(
            filename=str(self._path),
            batch_size=self._limit,
            num_threads=self._threads,
            device_id=None,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        pipeline.build()
        return pipeline


def _stack(samples: Any, start: int, end: int) -> NDArray[Any]:
    if end - start == 1:
        return np.asarray(samples.at(start))[None]  # a view: the copy into the response is the only one
    return np.stack([np.asarray(samples.at(k)) for k in range(start, end)])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    messages = [
        line
        for line in lines
        if not line.startswith(
            ("Error in", "Stacktrace", "[frame", "Current pipeline", "C++ context", "Critical error")
        )
    ]
    return (messages or lines or ["unknown error"])[0][:300]
