"""Between Triton's Python backend and our functions: arrays in, one response for every request, errors with their code.

Only importable inside the Python backend, which brings `triton_python_backend_utils`.
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
    """One input of a request, without a copy: valid until the request is answered."""
    value = optional(request, name)
    if value is None:
        raise BadInput(f"{name} is missing")
    return value


def optional(request: Any, name: str) -> Array | None:
    """One input of a request, or None where it was not sent."""
    tensor = pb.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    value: Array = tensor.as_numpy()
    return value


def on_gpu(request: Any, *names: str) -> bool:
    """Whether one of these inputs lies on a GPU. A config has to ask for it: FORCE_CPU_ONLY_INPUT_TENSORS "no"."""
    tensors = (pb.get_input_tensor_by_name(request, name) for name in names)
    return any(tensor is not None and not tensor.is_cpu() for tensor in tensors)


def anywhere(request: Any, name: str) -> Any:
    """One input of a request where it lies: an array, or on a GPU something that speaks DLPack."""
    tensor = pb.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise BadInput(f"{name} is missing")
    return tensor.as_numpy() if tensor.is_cpu() else tensor


def device_response(name: str, value: Any) -> Any:
    """A response with one tensor of a GPU, taken by DLPack without a copy to the host."""
    return pb.InferenceResponse([pb.Tensor.from_dlpack(name, value)])


def text(value: Any) -> str:
    """One element of a string tensor; what is not UTF-8 is shown as such."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def response(outputs: Outputs) -> Any:
    """A response with these tensors."""
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()])


def failure(error: Exception) -> Any:
    """A response with an error, and the code that tells the caller whether it was its input."""
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


def answer(requests: Sequence[Any], work: Callable[[Any], Outputs]) -> list[Any]:
    """Answers every request by itself: whatever goes wrong in one, the others are served."""
    responses = []
    for request in requests:
        try:
            responses.append(response(work(request)))
        except Exception as error:  # noqa: BLE001  an exception that leaves execute() fails the whole batch
            responses.append(failure(error))
    return responses


def call(model: str, inputs: Outputs, outputs: Sequence[str]) -> Outputs:
    """Calls another model of the same server and waits for it (business logic scripting).

    Raises:
        RuntimeError: the other model answered with an error.
    """
    request = pb.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb.Tensor(name, value) for name, value in inputs.items()],
        # A model on a GPU would leave its outputs there, where no array can read them.
        preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
    )
    reply = request.exec()
    if reply.has_error():
        raise RuntimeError(f"{model}: {reply.error().message()}")
    return {name: pb.get_output_tensor_by_name(reply, name).as_numpy().copy() for name in outputs}


class Counters:
    """Numbers of one family that only grow, on the server's metrics page; its instances and their like share them."""

    def __init__(self, family: str, description: str, label: str, values: Sequence[str]) -> None:
        """Registers the family and one counter for each value of a label.

        Args:
            family: the metric's name.
            description: its help line.
            label: name of the label that tells the counters apart.
            values: of the label.
        """
        # The family has to outlive its metrics, so it is kept.
        self._family = pb.MetricFamily(name=family, description=description, kind=pb.MetricFamily.COUNTER)
        self._metrics = {value: self._family.Metric(labels={label: value}) for value in values}

    def add(self, value: str, amount: int) -> None:
        """Counts, and costs a message to the server: once for a batch, not once for a sample."""
        if amount > 0:
            self._metrics[value].increment(amount)
