"""Stand-in for Triton's `dali` backend: DALI itself, on the CPU, running the serialised pipeline `model.dali`.

Honours `num_threads` of the model's config. The pipeline's external sources are the config's inputs by name, its
outputs the config's outputs in order. Requests that were batched together run as one; a sample that fails fails only
its own request. A picture in an input FRAME is checked as the guard checks it, before anything decodes it.
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
        """Builds the pipeline."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self._threads = int(parameters.get("num_threads", "1"))
        self._path = Path(args["model_repository"]) / args["model_version"] / "model.dali"
        self._limit = int(config["max_batch_size"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._pipeline = self._build()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Runs all requests in as few runs as the batch size allows."""
        responses: list[Any] = [None] * len(requests)
        waiting: list[tuple[int, Arrays]] = []
        for index, request in enumerate(requests):
            try:
                inputs = {name: array(request, name) for name in self._inputs}
                for frame in inputs.get("FRAME", ()):
                    check_frame(memoryview(frame))  # again: anybody may ask this model itself, past the guard
                samples = len(inputs[self._inputs[0]])
                if sum(len(part[self._inputs[0]]) for _, part in waiting) + samples > self._limit:
                    self._flush(waiting, responses)
                waiting.append((index, inputs))
            except Exception as error:  # noqa: BLE001  every request has its own answer
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
        except Exception as error:  # noqa: BLE001  DALI raises many kinds, for a bad sample too: it does not say which
            self._pipeline = self._build()  # a pipeline that failed is not to be used again
            if len(waiting) == 1:
                # The checks before this step leave only one cause: the data inside is not what its header says.
                responses[waiting[0][0]] = failure(
                    BadInput(f"{self._inputs[0]} cannot be processed: {_first_line(error)}")
                )
            else:
                for single in waiting:
                    self._flush([single], responses)
        waiting.clear()

    def _run(self, batch: list[Arrays]) -> list[Arrays]:
        """Runs the samples of several requests at once, and gives each request its part."""
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
    said = [
        line
        for line in lines
        if not line.startswith(
            ("Error in", "Stacktrace", "[frame", "Current pipeline", "C++ context", "Critical error")
        )
    ]
    return (said or lines or ["unknown error"])[0][:300]
