"""ONNX Runtime sessions of the embedded server: on the CPU, or with `insync serve --gpu` on an NVIDIA GPU.

On a GPU, graphs run in ONNX Runtime's CUDA provider, or else in PyTorch with CUDA graphs (`torch_session`); strictly FP32,
as on the CPU. Tensors pass through the host between steps; to keep them on the device, serve `configs/h100.pbtxt` or
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
IDLE = 0.15  # idle share of the cores' time from which a run may use several cores
_RELEASE = tuple(int(part) for part in ort.__version__.split(".")[:2])
_KNOWS_SPIN_DURATION = (1, 32)  # first release in which we found the option; it may be older


class CpuSession:
    """A graph in ONNX Runtime on the CPU.

    Args:
        path: the ONNX file.
        options: ONNX Runtime's options.
        idle_cores: cores that a run uses, one thread on each, while the machine has idle time: several cores lower the
            latency of a live stream's frame, while one core per frame gives a job more throughput.
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
        """Compute these outputs of one batch."""
        if self._idle_cores and self._idle() >= IDLE:
            with bound_to(self._idle_cores[0]):
                return list(self._when_idle.run(list(outputs), feed))
        return list(self._session.run(list(outputs), feed))


def _spread(cores: Sequence[int]) -> ort.SessionOptions:
    """Return options for one thread on each core; the first is the caller's thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = len(cores), 1
    # ONNX Runtime numbers cores from 1.
    options.add_session_config_entry(
        "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in cores[1:])
    )
    options.add_session_config_entry("session.dynamic_block_base", "4")
    if _RELEASE >= _KNOWS_SPIN_DURATION:
        # Threads should busy-wait between operators, but not between frames.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _open(path: Path, options: ort.SessionOptions) -> Any:
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class CudaSession:
    """A graph in ONNX Runtime on one GPU. Not thread-safe.

    Raises:
        ServerError: ONNX Runtime fell back to the CPU, which it does silently if a CUDA library is missing.
    """

    def __init__(self, path: Path, device: int, options: ort.SessionOptions) -> None:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA's and cuDNN's libraries from their wheels, which are not on the linker's path
        cuda = {"device_id": str(device), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        self._session = ort.InferenceSession(str(path), options, providers=[(CUDA, cuda), "CPUExecutionProvider"])
        if self._session.get_providers()[0] != CUDA:
            raise ServerError(
                f"ONNX Runtime {ort.__version__} cannot load its CUDA provider, see its log lines above; "
                "often CUDA or cuDNN is missing: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        self.inputs = tuple(tensor.name for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor.name for tensor in self._session.get_outputs())

    def run(self, outputs: Sequence[str], feed: Arrays) -> list[NDArray[Any]]:
        """Compute these outputs of one batch."""
        return list(self._session.run(list(outputs), feed))
