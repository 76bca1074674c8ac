"""AdaAT on an NVIDIA GPU: the CUDA kernel in `kernels/adaat.cu`, compiled on first use by CuPy (NVRTC), without PyTorch or nvcc.

Equivalent to `insync.ensemble.models.adaat`. Arrays are CuPy's and stay on their device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.errors import BadInput, ServerError

SOURCE = Path(__file__).resolve().parent / "kernels" / "adaat.cu"
# Must match the constants in the CUDA source.
THREADS = 128
SAMPLES = 32
BORDER = 4
SAMPLE = np.dtype([("reference", np.uintp), ("affine", np.uintp), ("aligned", np.uintp)])
TABLE = np.dtype([("sample", SAMPLE, (SAMPLES,))])
SHARED_BYTES = 48 * 1024  # per block, available on every GPU without opting in to more


def shared_bytes(height: int, width: int) -> int:
    """Return the shared memory of one block, in bytes: a plane [height, width] with its border, and its similarity.

    Raises:
        BadInput: more than a GPU has.
    """
    stride = (width + 3) // 4 * 4 + BORDER
    needed = 4 * ((height + 3) * stride + BORDER + 4)
    if needed > SHARED_BYTES:
        raise BadInput(
            f"a plane of REFERENCE is {height} × {width}, which takes {needed} bytes of a GPU's shared memory: "
            f"it must be at most {SHARED_BYTES}"
        )
    return needed


def pack(samples: Sequence[tuple[int, int, int]]) -> NDArray[Any]:
    """Build the kernel's table of at most 32 samples.

    Each has the device addresses of its reference [C, H, W], affine [C, 4] and aligned [C, H, W].
    """
    table = np.zeros((), TABLE)
    table["sample"][: len(samples)] = np.array(list(samples), SAMPLE)
    return table


class AdaatKernel:
    """The AdaAT kernel on one GPU. Not thread-safe.

    Raises:
        ServerError: CuPy is not installed, finds no GPU, or cannot compile the kernel.
    """

    def __init__(self, device: int = 0) -> None:
        self._cupy = _cupy()
        self._device = self._cupy.cuda.Device(device)
        with self._device:
            try:
                # No fast-math: the kernel must detect infinities and not-a-number.
                module = self._cupy.RawModule(
                    code=SOURCE.read_text(), options=(f"-I{SOURCE.parent}", "--std=c++17"), backend="nvrtc"
                )
                self._launch = module.get_function("insync_adaat")
            except Exception as exc:
                raise ServerError(f"the AdaAT kernel could not be compiled for GPU {device}: {exc}") from exc
            # Pinned host memory, mapped to the GPU: the kernel writes to it only when an input is not finite.
            pinned = self._cupy.cuda.alloc_pinned_memory(4 * SAMPLES)
            self._not_finite = np.frombuffer(pinned, np.int32, SAMPLES)
            self._not_finite_address = np.uintp(pinned.ptr)

    def __call__(self, requests: Sequence[tuple[Any, Any]]) -> list[Any]:
        """Warp the features of all requests, with one kernel launch per 32 samples.

        Args:
            requests: REFERENCE float32 [B, C, H, W] and AFFINE float32 [B, C, 4], as in `insync.ensemble.models.adaat.adaat`.
                CuPy arrays on this GPU, other DLPack tensors on it (used without a copy), or NumPy arrays (copied to
                it). B may differ between requests; C, H, W must be the same.

        Returns:
            For each request ALIGNED float32 [B, C, H, W] on this GPU, complete when this returns; or a `BadInput`
            if its shapes do not match or its AFFINE holds a number that is not finite.
        """
        with self._device:
            results: list[Any] = []
            kept: list[Any] = []  # keeps inputs alive until the GPU has finished
            samples: list[tuple[int, int, int]] = []
            owners: list[int] = []
            shape: tuple[int, ...] = ()
            for index, request in enumerate(requests):
                reference, affine = (self._take(value) for value in request)
                try:
                    _check(reference, affine, shape)
                except BadInput as exc:
                    results.append(exc)
                    continue
                shape = tuple(reference.shape[1:])
                aligned = self._cupy.empty(reference.shape, np.float32)
                kept.append((reference, affine))
                results.append(aligned)
                for b in range(len(reference)):
                    samples.append((_address(reference, b), _address(affine, b), _address(aligned, b)))
                    owners.append(index)
            for start in range(0, len(samples), SAMPLES):
                wrong = self._run(samples[start : start + SAMPLES], shape)
                for sample in wrong:
                    results[owners[start + sample]] = BadInput(
                        "AFFINE holds numbers that are not finite, must be scale, rotation, tx, ty for each channel"
                    )
            return results

    def launch(self, table: NDArray[Any], count: int, shape: tuple[int, ...]) -> None:
        """Launch the kernel on the current stream, without waiting.

        Args:
            table: the table from `pack`.
            count: number of samples in it.
            shape: C, H, W.
        """
        channels, height, width = shape
        # CuPy passes an array of one element to a kernel by value.
        arguments = (table, np.int32(height), np.int32(width), self._not_finite_address)
        self._launch((channels, count), (THREADS,), arguments, shared_mem=shared_bytes(height, width))

    def _take(self, value: Any) -> Any:
        if not isinstance(value, (np.ndarray, self._cupy.ndarray)):
            value = self._cupy.from_dlpack(value)
        return self._cupy.ascontiguousarray(self._cupy.asarray(value, np.float32))

    def _run(self, samples: Sequence[tuple[int, int, int]], shape: tuple[int, ...]) -> list[int]:
        """Launch the kernel and wait; return the samples whose affine is not finite."""
        self._not_finite[:] = 0
        self.launch(pack(samples), len(samples), shape)
        # The next model runs in another process, on its own stream: only this process can wait for the kernel.
        self._cupy.cuda.get_current_stream().synchronize()
        return [int(i) for i in np.flatnonzero(self._not_finite[: len(samples)])]


def _address(array: Any, sample: int) -> int:
    return int(array.data.ptr) + sample * int(array.strides[0])


def _check(reference: Any, affine: Any, shape: tuple[int, ...]) -> None:
    if reference.ndim != 4 or tuple(affine.shape) != (*reference.shape[:2], 4):
        raise BadInput(
            f"REFERENCE has shape {list(reference.shape)} and AFFINE {list(affine.shape)}, "
            "must be [B, C, H, W] and [B, C, 4]"
        )
    if shape and tuple(reference.shape[1:]) != shape:
        raise BadInput(
            f"REFERENCE is {list(reference.shape[1:])} per sample, must be {list(shape)} as in the batch's first request"
        )
    shared_bytes(*reference.shape[2:])


def load_nvrtc() -> ctypes.CDLL | None:
    """Load NVIDIA's run-time compiler from its wheel, which is not on the linker's path; None if it is not installed.

    CuPy then finds it by name, as it finds that of a CUDA installation.
    """
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted(Path(folder).glob("*/lib/libnvrtc.so.*[0-9]"), reverse=True):
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
    return None


@functools.cache
def _cupy() -> Any:
    load_nvrtc()
    try:
        import cupy
    except ImportError as exc:
        raise ServerError(f"tensors on a GPU need CuPy ({exc}): pip install cupy-cuda13x or 'insync[gpu]'") from exc
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as exc:
        raise ServerError(f"CuPy finds no GPU: {exc}") from exc
    if not count:
        raise ServerError("CuPy finds no GPU")
    return cupy
