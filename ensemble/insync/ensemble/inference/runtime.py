"""The choice of the GPU runtime: ONNX Runtime with CUDA, or PyTorch with CUDA graphs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from insync.core.errors import ServerError
from insync.ensemble.inference.device import find_gpu
from insync.ensemble.inference.onnx_session import CUDA, CudaSession
from insync.ensemble.inference.session import Session
from insync.ensemble.inference.torch_session import TorchSession


@dataclass(frozen=True)
class GpuRuntime:
    """The runtime that runs graphs on this machine's GPU.

    Attributes:
        name: "onnxruntime" or "torch".
        gpu: the GPU's name.
    """

    name: str
    gpu: str

    def __str__(self) -> str:
        return f"{self.gpu} with {'ONNX Runtime' if self.name == 'onnxruntime' else 'PyTorch and CUDA graphs'}"


def find_runtime() -> GpuRuntime:
    """Find the runtime for this machine's GPU, without loading a graph.

    Raises:
        ServerError: there is no GPU, or no runtime that can use it. One line, with the remedy.
    """
    gpu = find_gpu()
    if gpu is None:
        raise ServerError(
            "--gpu needs an NVIDIA GPU and its driver, but nvidia-smi finds none on this machine; "
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
        f"--gpu finds {gpu.name} but no runtime for it: ONNX Runtime {ort.__version__} has no {CUDA}, and {lacking}; "
        "install onnxruntime-gpu instead of onnxruntime, or 'insync[export]' with a CUDA build of PyTorch"
    )


def open_session(path: Path, model: str, device: int, options: ort.SessionOptions) -> Session:
    """Load a graph onto a GPU.

    Args:
        path: the ONNX file, in its model repository.
        model: name of the model.
        device: number of the GPU.
        options: ONNX Runtime's options.

    Raises:
        ServerError: there is no GPU, or no runtime that can use it.
    """
    if find_runtime().name == "onnxruntime":
        return CudaSession(path, device, options)
    return TorchSession(path, model, f"cuda:{device}")
