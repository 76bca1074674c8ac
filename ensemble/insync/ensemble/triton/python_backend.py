"""The adapter between Triton's Python backend and our functions: arrays in, one response per request, errors with a code.

Importable only inside the Python backend, which provides `triton_python_backend_utils`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from numpy.typing import NDArray

from insync.core.errors import BadInput, NotFound, Overloaded, StorageError, overload_text

Array = NDArray[Any]
Outputs = dict[str, Array]


def array(request: Any, name: str) -> Array:
    """Return an input of a request, without a copy: valid until the response is sent."""
    value = optional(request, name)
    if value is None:
        raise BadInput(f"{name} is missing")
    return value


def optional(request: Any, name: str) -> Array | None:
    """Return an input of a request, or None if it was not sent."""
    tensor = pb.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    value: Array = tensor.as_numpy()
    return value


def on_gpu(request: Any, *names: str) -> bool:
    """Return whether one of these inputs is on a GPU. The config must allow it: FORCE_CPU_ONLY_INPUT_TENSORS "no"."""
    tensors = (pb.get_input_tensor_by_name(request, name) for name in names)
    return any(tensor is not None and not tensor.is_cpu() for tensor in tensors)


def device_tensor(request: Any, name: str) -> Any:
    """Return an input of a request on its own device: an array, or on a GPU a tensor that supports DLPack."""
    tensor = pb.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise BadInput(f"{name} is missing")
    return tensor.as_numpy() if tensor.is_cpu() else tensor


def device_response(name: str, value: Any) -> Any:
    """Make a response with one tensor on a GPU, passed by DLPack without a copy to the host."""
    return pb.InferenceResponse([pb.Tensor.from_dlpack(name, value)])


def text(value: Any) -> str:
    """Decode one element of a string tensor; bytes that are not UTF-8 become replacement characters."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def response(outputs: Outputs) -> Any:
    """Make a response with these tensors."""
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()])


def failure(error: Exception) -> Any:
    """Make an error response, with the status code for the kind of error."""
    if isinstance(error, BadInput):
        return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
    if isinstance(error, NotFound):
        return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.NOT_FOUND))
    if isinstance(error, Overloaded):
        return pb.InferenceResponse(error=pb.TritonError(overload_text(error), pb.TritonError.UNAVAILABLE))
    if isinstance(error, StorageError):
        pb.Logger.log_error(str(error))
        return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.INTERNAL))
    pb.Logger.log_error(f"{type(error).__name__}: {error}")
    return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}", pb.TritonError.INTERNAL))


def respond(requests: Sequence[Any], work: Callable[[Any], Outputs]) -> list[Any]:
    """Process every request by itself: if one fails, the others are still served."""
    responses = []
    for request in requests:
        try:
            responses.append(response(work(request)))
        except Exception as error:  # noqa: BLE001  an exception that leaves execute() fails the whole batch
            responses.append(failure(error))
    return responses


def call(model: str, inputs: Outputs, outputs: Sequence[str]) -> Outputs:
    """Call another model of the same server and wait for its response (business logic scripting).

    Raises:
        RuntimeError: the other model returned an error.
    """
    request = pb.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb.Tensor(name, value) for name, value in inputs.items()],
        # Otherwise a model on a GPU would leave its outputs there, where NumPy cannot read them.
        preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
    )
    result = request.exec()
    if result.has_error():
        raise RuntimeError(f"{model}: {result.error().message()}")
    return {name: pb.get_output_tensor_by_name(result, name).as_numpy().copy() for name in outputs}


class Counters:
    """Counters of one metric family on the server's metrics page, shared by all instances of the model."""

    def __init__(self, family: str, description: str, label: str, values: Sequence[str]) -> None:
        """Register the family and one counter for each value of a label.

        Args:
            family: the metric's name.
            description: its help line.
            label: name of the label that distinguishes the counters.
            values: the label's values.
        """
        # The family must outlive its metrics, so keep a reference.
        self._family = pb.MetricFamily(name=family, description=description, kind=pb.MetricFamily.COUNTER)
        self._metrics = {value: self._family.Metric(labels={label: value}) for value in values}

    def add(self, value: str, amount: int) -> None:
        """Increase a counter. Each call is a message to the server: call it once per batch, not once per sample."""
        if amount > 0:
            self._metrics[value].increment(amount)
