"""AdaAT on an NVIDIA GPU: the CUDA kernel of `kernels/adaat.cu`, compiled on first use by CuPy (NVRTC): no PyTorch, no nvcc.

The same meaning as `insync.ensemble.models.adaat`. Arrays are CuPy's and stay on their device.
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
# As in the source.
THREADS = 128
SAMPLES = 32
BORDER = 4
SAMPLE = np.dtype([("reference", np.uintp), ("affine", np.uintp), ("aligned", np.uintp)])
TABLE = np.dtype([("sample", SAMPLE, (SAMPLES,))])
SHARED_BYTES = 48 * 1024  # of one block, on every GPU without asking for more


def shared_bytes(height: int, width: int) -> int:
    """Shared memory of one block: a plane [height, width] with its border, and its similarity.

    Raises:
        BadInput: more than a GPU has.
    """
    stride = (width + 3) // 4 * 4 + BORDER
    needed = 4 * ((height + 3) * stride + BORDER + 4)
    if needed > SHARED_BYTES:
        raise BadInput(
            f"a plane of REFERENCE is {height} × {width}, which takes {needed} bytes of a GPU's shared memory: "
            f"allowed are {SHARED_BYTES}"
        )
    return needed


def pack(samples: Sequence[tuple[int, int, int]]) -> NDArray[Any]:
    """The kernel's table of at most 32 samples: device addresses of reference [C, H, W], affine [C, 4], aligned [C, H, W]."""
    table = np.zeros((), TABLE)
    table["sample"][: len(samples)] = np.array(list(samples), SAMPLE)
    return table


class AdaatKernel:
    """The kernel on one GPU. Not thread-safe.

    Raises:
        ServerError: CuPy is not installed, or finds no GPU, or cannot compile.
    """

    def __init__(self, device: int = 0) -> None:
        self._cupy = _cupy()
        self._device = self._cupy.cuda.Device(device)
        with self._device:
            try:
                # Infinities and not-a-number have a meaning here: no fast-math.
                module = self._cupy.RawModule(
                    code=SOURCE.read_text(), options=(f"-I{SOURCE.parent}", "--std=c++17"), backend="nvrtc"
                )
                self._launch = module.get_function("insync_adaat")
            except Exception as exc:
                raise ServerError(f"the AdaAT kernel could not be compiled for GPU {device}: {exc}") from exc
            # The host's own memory, which the GPU sees: the kernel writes to it only where something is wrong.
            pinned = self._cupy.cuda.alloc_pinned_memory(4 * SAMPLES)
            self._not_finite = np.frombuffer(pinned, np.int32, SAMPLES)
            self._not_finite_address = np.uintp(pinned.ptr)

    def __call__(self, requests: Sequence[tuple[Any, Any]]) -> list[Any]:
        """Warps the features of every request, all in as few launches as there are 32 samples.

        Args:
            requests: REFERENCE float32 [B, C, H, W] and AFFINE float32 [B, C, 4], as `insync.ensemble.models.adaat.adaat` has
                them; CuPy arrays of this GPU, anything else on it that speaks DLPack, taken without a copy, or NumPy
                arrays, which are copied to it. Any B each, the same C, H, W.

        Returns:
            For each request ALIGNED float32 [B, C, H, W] on this GPU, complete when this returns; or a `BadInput`
            where its shapes do not fit or its AFFINE holds a number that is not finite.
        """
        with self._device:
            results: list[Any] = []
            kept: list[Any] = []  # alive until the GPU is done
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
                        "AFFINE holds numbers that are not finite, expected scale, rotation, tx, ty for each channel"
                    )
            return results

    def launch(self, table: NDArray[Any], count: int, shape: tuple[int, ...]) -> None:
        """Starts the kernel on the current stream, and does not wait.

        Args:
            table: what `pack` made.
            count: how many samples are in it.
            shape: C, H, W.
        """
        channels, height, width = shape
        # CuPy gives an array of one element to a kernel by value.
        arguments = (table, np.int32(height), np.int32(width), self._not_finite_address)
        self._launch((channels, count), (THREADS,), arguments, shared_mem=shared_bytes(height, width))

    def _take(self, value: Any) -> Any:
        if not isinstance(value, (np.ndarray, self._cupy.ndarray)):
            value = self._cupy.from_dlpack(value)
        return self._cupy.ascontiguousarray(self._cupy.asarray(value, np.float32))

    def _run(self, samples: Sequence[tuple[int, int, int]], shape: tuple[int, ...]) -> list[int]:
        """Launches and waits; returns the samples whose affine is not finite."""
        self._not_finite[:] = 0
        self.launch(pack(samples), len(samples), shape)
        # The next step runs in another process, on a stream of its own: nobody but us can wait for this one.
        self._cupy.cuda.get_current_stream().synchronize()
        return [int(i) for i in np.flatnonzero(self._not_finite[: len(samples)])]


def _address(array: Any, sample: int) -> int:
    return int(array.data.ptr) + sample * int(array.strides[0])


def _check(reference: Any, affine: Any, shape: tuple[int, ...]) -> None:
    if reference.ndim != 4 or tuple(affine.shape) != (*reference.shape[:2], 4):
        raise BadInput(
            f"REFERENCE has shape {list(reference.shape)} and AFFINE {list(affine.shape)}, "
            "expected [B, C, H, W] and [B, C, 4]"
        )
    if shape and tuple(reference.shape[1:]) != shape:
        raise BadInput(f"REFERENCE is {list(reference.shape[1:])} and another request's is {list(shape)}")
    shared_bytes(*reference.shape[2:])


def load_nvrtc() -> ctypes.CDLL | None:
    """Loads NVIDIA's run-time compiler from its wheel, which lies where no linker looks; None where it is not installed.

    CuPy then finds it by its name, as it finds the one of a CUDA installation.
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
        raise ServerError(f"tensors on a GPU need CuPy ({exc}): pip install cupy-cuda13x, or 'insync[gpu]'") from exc
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as exc:
        raise ServerError(f"CuPy finds no GPU: {exc}") from exc
    if not count:
        raise ServerError("CuPy finds no GPU")
    return cupy
