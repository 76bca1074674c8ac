"""How the embedded server runs a graph: on the CPU, or with `insync serve --gpu` on an NVIDIA GPU.

There by ONNX Runtime's CUDA provider, or else by PyTorch with CUDA graphs; strictly FP32, as on the CPU. Tensors
pass through the host between steps; where they have to stay on the device, serve `configs/h100.pbtxt` or
`configs/onnx_gpu.pbtxt` from a stock container.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from insync.ensemble.errors import ServerError
from insync.ensemble.idle import IdleShare, bound_to
from insync.ensemble.plans import find_gpu
from insync.ensemble.spec import MODELS, Tensor

CUDA = "CUDAExecutionProvider"
IDLE = 0.15  # share of the cores' time that is left over, from which a run may take more of them
_RELEASE = tuple(int(part) for part in ort.__version__.split(".")[:2])
_KNOWS_SPIN_DURATION = (1, 32)  # seen there: the first may be older
_WARM_RUNS = 3  # before a capture, so that libraries have chosen their kernels and taken their memory
_DTYPES: dict[str, type[np.generic]] = {"FP32": np.float32, "UINT8": np.uint8}

Arrays = dict[str, NDArray[Any]]


class Session(Protocol):
    """One loaded graph.

    Attributes:
        inputs, outputs: names of its tensors.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """Computes these outputs of one batch."""


@dataclass(frozen=True)
class GpuRuntime:
    """What runs graphs on this machine's GPU.

    Attributes:
        name: "onnxruntime" or "torch".
        gpu: the GPU's name.
    """

    name: str
    gpu: str

    def __str__(self) -> str:
        return f"{self.gpu}, by {'ONNX Runtime' if self.name == 'onnxruntime' else 'PyTorch with CUDA graphs'}"


def find_runtime() -> GpuRuntime:
    """What would run graphs on this machine's GPU. Loads no graph.

    Raises:
        ServerError: there is no GPU, or nothing that can use it. One line, with the remedy.
    """
    gpu = find_gpu()
    if gpu is None:
        raise ServerError(
            "--gpu needs an NVIDIA GPU and its driver, and nvidia-smi finds none on this machine; "
            "without --gpu the networks run on the CPU"
        )
    if CUDA in ort.get_available_providers():
        return GpuRuntime("onnxruntime", gpu.name)
    lacking = "PyTorch is not installed"
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return GpuRuntime("torch", gpu.name)
        lacking = f"PyTorch {torch.__version__} sees no GPU"
    raise ServerError(
        f"--gpu finds {gpu.name} and nothing to run the networks on it: ONNX Runtime {ort.__version__} has no {CUDA}, and "
        f"{lacking}; install onnxruntime-gpu in place of onnxruntime, or 'insync[export]' with a CUDA build of PyTorch"
    )


def open_session(path: Path, model: str, device: int, options: ort.SessionOptions) -> Session:
    """Loads a graph onto a GPU.

    Args:
        path: the ONNX file, in its model repository.
        model: name of the model.
        device: number of the GPU.
        options: of ONNX Runtime.

    Raises:
        ServerError: there is no GPU, or nothing that can use it.
    """
    if find_runtime().name == "onnxruntime":
        return CudaSession(path, device, options)
    return TorchSession(path, model, f"cuda:{device}")


class CpuSession:
    """A graph in ONNX Runtime on the CPU.

    Args:
        path: the ONNX file.
        options: of ONNX Runtime.
        idle_cores: those that a run takes while cores stand idle, a thread on each: a live stream's frame is done sooner on
            several, while of a whole job's frames more are done if each keeps to one.
    """

    def __init__(self, path: Path, options: ort.SessionOptions, idle_cores: Sequence[int] = ()) -> None:
        self._session = _open(path, options)
        self._idle_cores = idle_cores
        if idle_cores:
            self._when_idle = _open(path, _spread(idle_cores))
        self._idle = IdleShare()
        self.inputs = tuple(tensor.name for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor.name for tensor in self._session.get_outputs())

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """Computes these outputs of one batch."""
        if self._idle_cores and self._idle() >= IDLE:
            with bound_to(self._idle_cores[0]):
                return list(self._when_idle.run(list(outputs), feed))
        return list(self._session.run(list(outputs), feed))


def _spread(cores: Sequence[int]) -> ort.SessionOptions:
    """A thread for each core; the first is the caller's."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = len(cores), 1
    # ONNX Runtime counts from 1.
    options.add_session_config_entry(
        "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in cores[1:])
    )
    options.add_session_config_entry("session.dynamic_block_base", "4")
    if _RELEASE >= _KNOWS_SPIN_DURATION:
        # From one operator to the next a thread had better stay awake, but not from one frame to the next.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _open(path: Path, options: ort.SessionOptions) -> Any:
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class CudaSession:
    """A graph in ONNX Runtime on one GPU. Not thread-safe.

    Raises:
        ServerError: ONNX Runtime would fall back to the CPU, which it does silently where a CUDA library is missing.
    """

    def __init__(self, path: Path, device: int, options: ort.SessionOptions) -> None:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA's and cuDNN's libraries from their wheels, where no linker looks
        cuda = {"device_id": str(device), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        self._session = ort.InferenceSession(str(path), options, providers=[(CUDA, cuda), "CPUExecutionProvider"])
        if self._session.get_providers()[0] != CUDA:
            raise ServerError(
                f"ONNX Runtime {ort.__version__} cannot load its CUDA provider, its own lines say why; "
                "often CUDA or cuDNN is missing: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        self.inputs = tuple(tensor.name for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor.name for tensor in self._session.get_outputs())

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """Computes these outputs of one batch."""
        return list(self._session.run(list(outputs), feed))


class TorchSession:
    """A graph's weights in the PyTorch network, one CUDA graph for each batch size, captured when it first comes. Not thread-safe.

    Args:
        path: the ONNX file, whose repository holds the other graphs too.
        model: which of them.
        device: as PyTorch names it; on "cpu" nothing is captured.

    Raises:
        ServerError: the parts that hold the network are not installed.
    """

    def __init__(self, path: Path, model: str, device: str) -> None:
        try:
            import torch

            from insync.export.onnx import GRAPHS, read_weights
        except ImportError as exc:
            raise ServerError(
                f"PyTorch's networks need a part that is missing ({exc}): pip install 'insync[export]'"
            ) from exc
        self._torch = torch
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        network = read_weights(path.parents[2])
        self._module = GRAPHS[model](network).eval().requires_grad_(False).to(self._device)
        self._tensors = MODELS[model].inputs
        self.inputs = tuple(tensor.name for tensor in self._tensors)
        self.outputs = tuple(tensor.name for tensor in MODELS[model].outputs)
        self._captured: dict[int, _Captured] = {}

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """Computes these outputs of one batch."""
        batch = len(feed[self.inputs[0]])
        with self._torch.inference_mode():
            if batch not in self._captured:
                self._captured[batch] = _Captured(self._torch, self._module, self._tensors, batch, self._device)
            values = dict(zip(self.outputs, self._captured[batch](feed), strict=True))
        return [values[name] for name in outputs]


class _Captured:
    """One batch size of a module: its tensors at fixed addresses on both sides, and on a GPU the CUDA graph between them."""

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
