"""How the embedded server runs a graph: on the CPU, or with `insync serve --gpu` on an NVIDIA GPU.

There by ONNX Runtime's CUDA provider, or else by PyTorch with CUDA graphs; strictly FP32, as on the CPU. Tensors
pass through the host between steps; where they have to stay on the device, serve `configs/h100.pbtxt` or
`configs/onnx_gpu.pbtxt` from a stock container.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from insync.core.errors import ServerError
from insync.ensemble.inference.idle_cores import IdleShare, bound_to
from insync.ensemble.inference.session import Arrays

CUDA = "CUDAExecutionProvider"
IDLE = 0.15  # share of the cores' time that is left over, from which a run may take more of them
_RELEASE = tuple(int(part) for part in ort.__version__.split(".")[:2])
_KNOWS_SPIN_DURATION = (1, 32)  # seen there: the first may be older


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
