"""A session that runs a graph's network in PyTorch with CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.errors import ServerError
from insync.core.spec import MODELS, Tensor
from insync.ensemble.inference.session import _DTYPES, Arrays

_WARM_RUNS = 3  # before a capture, so that libraries have chosen kernels and allocated memory


class TorchSession:
    """A graph's weights in the PyTorch network, with a CUDA graph per batch size, captured on first use. Not thread-safe.

    Args:
        path: the ONNX file, whose repository has the other graphs too.
        model: name of the model.
        device: PyTorch's name of the device; on "cpu" nothing is captured.

    Raises:
        ServerError: the packages that define the network are not installed.
    """

    def __init__(self, path: Path, model: str, device: str) -> None:
        try:
            import torch

            from insync.network.served import SERVED_GRAPHS, read_weights
        except ImportError as exc:
            raise ServerError(
                f"running the networks in PyTorch needs a package that is not installed ({exc}): "
                "pip install 'insync[export]'"
            ) from exc
        self._torch = torch
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        network = read_weights(path.parents[2])
        self._module = SERVED_GRAPHS[model](network).eval().requires_grad_(False).to(self._device)
        self._tensors = MODELS[model].inputs
        self.inputs = tuple(tensor.name for tensor in self._tensors)
        self.outputs = tuple(tensor.name for tensor in MODELS[model].outputs)
        self._captured: dict[int, _Captured] = {}

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """Compute these outputs of one batch."""
        batch = len(feed[self.inputs[0]])
        with self._torch.inference_mode():
            if batch not in self._captured:
                self._captured[batch] = _Captured(self._torch, self._module, self._tensors, batch, self._device)
            values = dict(zip(self.outputs, self._captured[batch](feed), strict=True))
        return [values[name] for name in outputs]


class _Captured:
    """One batch size of a module: inputs and outputs at fixed addresses on host and device, and on a GPU its CUDA graph."""

    def __init__(self, torch: Any, module: Any, tensors: Sequence[Tensor], batch: int, device: Any) -> None:
        self._torch, self._module, self._on_gpu = torch, module, device.type == "cuda"
        self._names = [tensor.name for tensor in tensors]
        zeros = [np.zeros((batch, *tensor.shape), _DTYPES[tensor.dtype]) for tensor in tensors]
        self._sent = [self._host(torch.from_numpy(value)) for value in zeros]
        self._inputs = [value.to(device) for value in self._sent]
        self._graph: Any = None
        if self._on_gpu:
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_RUNS):
                    module(*self._inputs)
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = self._compute()
            self._received = [self._host(torch.empty_like(value, device="cpu")) for value in self._outputs]

    def __call__(self, feed: Arrays) -> list[NDArray[Any]]:
        for name, sent, value in zip(self._names, self._sent, self._inputs, strict=True):
            sent.numpy()[...] = feed[name]
            value.copy_(sent, non_blocking=True)
        if self._graph is None:
            return [output.numpy() for output in self._compute()]
        self._graph.replay()
        for received, output in zip(self._received, self._outputs, strict=True):
            received.copy_(output, non_blocking=True)
        self._torch.cuda.current_stream().synchronize()
        return [received.numpy().copy() for received in self._received]

    def _compute(self) -> list[Any]:
        result = self._module(*self._inputs)
        return list(result) if isinstance(result, tuple) else [result]

    def _host(self, value: Any) -> Any:
        return value.pin_memory() if self._on_gpu else value
