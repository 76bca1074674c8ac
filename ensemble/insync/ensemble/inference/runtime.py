"""Choose what runs graphs on this machine's GPU."""

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
