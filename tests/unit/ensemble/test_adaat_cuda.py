"""The CUDA kernel: its source run on the CPU and compared with PyTorch, compiled for the supported GPUs, and run on a GPU.

On the CPU, `kernels/adaat.cu` itself is compiled by g++ (see `adaat_on_cpu.cpp`) and called by `AdaatKernel` with a fake
CuPy: everything but the GPU is real.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from insync.core.errors import BadInput, ServerError
from insync.core.spec import CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH
from insync.ensemble.models import adaat_cuda
from insync.ensemble.models.adaat import adaat
from insync.ensemble.models.adaat_cuda import SAMPLES, SOURCE, AdaatKernel, load_nvrtc, shared_bytes

Floats = NDArray[np.float32]
ARCHITECTURES = ("sm_80", "sm_89", "sm_90")  # A100, L40S, H100
SHAPES = (  # the served one, widths that are no multiple of four, odd channel counts, the smallest
    (1, CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH),
    (2, 7, 9, 16),
    (2, 5, 7, 13),
    (32, 3, 6, 10),
    (1, 1, 1, 1),
    (1, 2, 1, 4),
    (1, 2, 5, 1),
)


class HostArray(np.ndarray):  # type: ignore[type-arg]
    """A NumPy array with the part of CuPy's array interface that the kernel's wrapper uses."""

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.ctypes.data)


class HostCupy:
    """The part of CuPy that `AdaatKernel` uses, with CPU memory and the kernel compiled by g++."""

    ndarray = HostArray

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._library, self._threads = library, threads
        self.launches = 0
        self.cuda = types.SimpleNamespace(
            Device=lambda index: contextlib.nullcontext(),
            alloc_pinned_memory=self._pinned,
            get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: None),
        )

    @staticmethod
    def _pinned(count: int) -> Any:
        class Pinned(bytearray):
            ptr: int

        memory = Pinned(count)
        memory.ptr = np.frombuffer(memory, np.uint8).ctypes.data
        return memory

    def RawModule(self, code: str, options: tuple[str, ...], backend: str) -> Any:
        assert 'extern "C" __global__' in code
        assert backend == "nvrtc"
        return types.SimpleNamespace(get_function=lambda name: self._launch)

    def _launch(self, grid: tuple[int, int], block: tuple[int], arguments: tuple[Any, ...], shared_mem: int) -> None:
        table, height, width, not_finite = arguments
        self.launches += 1
        overflown = self._library.launch(
            ctypes.c_void_p(table.ctypes.data),
            *(ctypes.c_int(int(value)) for value in (*grid, height, width)),
            ctypes.c_void_p(int(not_finite)),
            *(ctypes.c_int(value) for value in (self._threads, shared_mem)),
        )
        assert overflown == 0, f"{overflown} blocks wrote beyond their shared memory"

    @staticmethod
    def asarray(value: Any, dtype: Any) -> HostArray:
        return np.asarray(value, dtype).view(HostArray)

    @staticmethod
    def ascontiguousarray(value: Any) -> HostArray:
        return np.ascontiguousarray(value).view(HostArray)

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: Any) -> HostArray:
        return np.full(shape, np.nan, dtype).view(HostArray)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    out = tmp_path_factory.mktemp("adaat") / "adaat.so"
    command = [
        compiler,
        "-std=c++20",
        "-O1",
        "-shared",
        "-fPIC",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
    ]
    source = Path(__file__).with_name("adaat_on_cpu.cpp")
    done = subprocess.run(
        [*command, "-Werror", f"-I{SOURCE.parent}", str(source), "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(out))


@pytest.fixture(params=[1, 4], ids=["one thread", "four threads"])
def cupy(request: pytest.FixtureRequest, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> HostCupy:
    fake = HostCupy(library, request.param)
    monkeypatch.setattr(adaat_cuda, "_cupy", lambda: fake)
    return fake


def features(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def similarities(batch: int, channels: int) -> Floats:
    rng = np.random.default_rng(1)
    parts = [rng.uniform(-bound, bound, (batch, channels, count)) for bound, count in ((1.8, 1), (4, 1), (1.5, 2))]
    affine: Floats = np.concatenate(parts, axis=-1).astype(np.float32)
    return affine


def constant(batch: int, channels: int, *values: float) -> Floats:
    return np.broadcast_to(np.array(values, np.float32), (batch, channels, 4)).copy()


def exact(reference: Floats, affine: Floats) -> NDArray[np.float64]:
    """PyTorch's `affine_grid` and `grid_sample` in double precision."""
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    from insync.network.adaat import adaat as network_adaat

    warped = network_adaat(torch.from_numpy(reference).double(), torch.from_numpy(affine).double())
    return np.asarray(warped.numpy(), np.float64)


def one(reference: Floats, affine: Floats) -> Any:
    (result,) = AdaatKernel()([(reference, affine)])
    if isinstance(result, Exception):
        raise result
    return np.asarray(result)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_pytorch_reference(cupy: HostCupy, shape: tuple[int, int, int, int]) -> None:
    reference, affine = features(*shape), similarities(*shape[:2])
    np.testing.assert_allclose(one(reference, affine), exact(reference, affine), atol=5e-5)


def test_equals_the_cpu_kernel(cupy: HostCupy) -> None:
    reference, affine = features(2, 8, 36, 40), similarities(2, 8)
    np.testing.assert_allclose(one(reference, affine), adaat(reference, affine), atol=2e-4)


def test_a_plane_at_an_unaligned_address(cupy: HostCupy) -> None:
    """Not on the 16 bytes that a load of four floats needs: slower, with the same result."""
    memory = np.zeros(2 * 3 * 8 * 8 + 1, np.float32)
    reference = memory[1:].reshape(2, 3, 8, 8)
    reference[:] = features(2, 3, 8, 8)
    affine = similarities(2, 3)
    np.testing.assert_allclose(one(reference, affine), exact(reference, affine), atol=5e-5)


@pytest.mark.parametrize("shape", [(2, 5, 16, 16), (1, 3, 36, 40), (1, 3, 7, 13)], ids=str)
def test_the_identity_changes_nothing(cupy: HostCupy, shape: tuple[int, int, int, int]) -> None:
    reference = features(*shape)
    np.testing.assert_array_equal(one(reference, constant(*shape[:2], 1, 0, 0, 0)), reference)


def test_a_quarter_turn(cupy: HostCupy) -> None:
    reference = features(1, 1, 8, 8)
    turned = one(reference, constant(1, 1, 1, math.pi / 2, 0, 0))
    np.testing.assert_allclose(turned[0, 0], reference[0, 0].T[::-1], atol=1e-5)


def test_far_outside_is_zero(cupy: HostCupy) -> None:
    for affine in ((1, 0, 2.2, 0), (1, 0, 0, -2.2), (1e30, 0.3, 0, 0), (3e38, 0.5, 3e38, -3e38), (1, 1e30, 50, 0)):
        aligned = one(features(1, 2, 8, 8), constant(1, 2, *affine))
        assert np.isfinite(aligned).all()
        # A scale of 1e30 still samples the plane's centre, which is between pixels here: its weight vanishes.
        np.testing.assert_allclose(aligned, 0, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_and_others_are_served(cupy: HostCupy, value: float) -> None:
    bad = constant(3, 2, 1, 0, 0, 0)
    bad[2, 1, 3] = value
    good = features(1, 2, 8, 8)
    results = AdaatKernel()([(features(3, 2, 8, 8), bad), (good, constant(1, 2, 1, 0, 0, 0))])
    assert isinstance(results[0], BadInput)
    assert "AFFINE" in str(results[0])
    np.testing.assert_array_equal(np.asarray(results[1]), good)
    again = AdaatKernel()([(good, constant(1, 2, 1, 0, 0, 0))])
    np.testing.assert_array_equal(np.asarray(again[0]), good)


def test_requests_of_all_sizes_share_a_launch(cupy: HostCupy) -> None:
    """40 samples in five requests: two launches, and a separate result for each request."""
    requests = [(features(b, 3, 6, 8) + b, similarities(b, 3) / (b + 1)) for b in (1, 8, 7, 16, 8)]
    results = AdaatKernel()(requests)
    assert cupy.launches == math.ceil(40 / SAMPLES)
    for (reference, affine), result in zip(requests, results, strict=True):
        np.testing.assert_allclose(np.asarray(result), exact(reference, affine), atol=5e-5)


def test_shapes_that_do_not_fit_are_refused_alone(cupy: HostCupy) -> None:
    good = features(1, 2, 8, 8), constant(1, 2, 1, 0, 0, 0)
    results = AdaatKernel()(
        [
            (features(1, 2, 8, 8), constant(1, 3, 1, 0, 0, 0)),
            good,
            (features(1, 2, 8, 9), good[1]),
            (features(1, 2, 200, 200), good[1]),
        ]
    )
    assert [isinstance(result, BadInput) for result in results] == [True, False, True, True]
    assert "[1, 2, 8, 8] and AFFINE [1, 3, 4]" in str(results[0])


def test_one_model_file_responds_on_the_device_of_its_input(
    cupy: HostCupy, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model wrapper with a fake Triton Python backend: requests on the CPU, on a GPU, and on both, in one batch."""
    backend = types.ModuleType("triton_python_backend_utils")

    class Tensor:
        def __init__(self, name: str, value: Any, device: str = "cpu") -> None:
            self.name, self.value, self.device = name, value, device

        def is_cpu(self) -> bool:
            return self.device == "cpu"

        def as_numpy(self) -> Any:
            assert self.is_cpu(), "a tensor of a GPU went to the host"
            return self.value

        @classmethod
        def from_dlpack(cls, name: str, value: Any) -> Tensor:
            return cls(name, value, "gpu")

    def response(tensors: Any = (), error: Any = None) -> Any:
        return types.SimpleNamespace(tensors=tensors, error=error)

    members = {
        "Tensor": Tensor,
        "InferenceResponse": response,
        "get_input_tensor_by_name": lambda request, name: next(t for t in request if t.name == name),
    }
    error_type = type(
        "TritonError", (), {"INVALID_ARG": 3, "__init__": lambda self, text, code: setattr(self, "text", text)}
    )
    for key, value in (members | {"TritonError": error_type}).items():
        setattr(backend, key, value)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "insync.ensemble.triton.python_backend", raising=False)
    monkeypatch.setattr(HostCupy, "from_dlpack", staticmethod(lambda tensor: tensor.value), raising=False)
    spec = importlib.util.spec_from_file_location("wrapper", repository / "lipsync_adaat" / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    wrapper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wrapper)
    model = wrapper.TritonPythonModel()
    parameters = {"threads": {"string_value": "1"}, "FORCE_CPU_ONLY_INPUT_TENSORS": {"string_value": "no"}}
    config = json.dumps({"parameters": parameters})
    model.initialize({"model_config": config, "model_instance_kind": "GPU", "model_instance_device_id": "0"})

    requests: list[tuple[Tensor, Tensor]] = []
    bad = constant(1, 3, 1, 0, 0, np.nan)
    for devices in (("cpu", "cpu"), ("gpu", "gpu"), ("cpu", "gpu"), ("gpu", "gpu")):
        reference, affine = features(1, 3, 8, 8) + len(requests), similarities(1, 3)
        affine = bad if len(requests) == 3 else affine
        requests.append((Tensor("REFERENCE", reference, devices[0]), Tensor("AFFINE", affine, devices[1])))
    responses = model.execute(requests)
    assert [each.error is None for each in responses] == [True, True, True, False]
    assert "AFFINE" in responses[3].error.text
    assert cupy.launches == 1
    for request, received, device in zip(requests[:3], responses, ("cpu", "gpu", "gpu"), strict=False):
        (tensor,) = received.tensors
        assert tensor.device == device
        expected = exact(*(part.value for part in request))
        np.testing.assert_allclose(np.asarray(tensor.value), expected, atol=2e-4)


def test_shared_memory_matches_the_source(library: ctypes.CDLL) -> None:
    for height, width in ((36, 40), (7, 13), (1, 1), (64, 64), (97, 100)):
        assert shared_bytes(height, width) == 4 * (library.floats(height, width) + 4)
    with pytest.raises(BadInput, match=r"120 × 120.*must be at most 49152"):
        shared_bytes(120, 120)


def test_constants_are_those_of_the_source() -> None:
    text = SOURCE.read_text() + SOURCE.with_suffix(".h").read_text()
    for name, value in (("THREADS", adaat_cuda.THREADS), ("SAMPLES", SAMPLES), ("BORDER", adaat_cuda.BORDER)):
        assert f"constexpr int ADAAT_{name} = {value};" in text


def test_the_source_needs_no_header_that_nvrtc_lacks() -> None:
    assert [line for line in SOURCE.read_text().splitlines() if line.startswith("#include")] == ['#include "adaat.h"']


def test_without_a_gpu_there_is_an_error() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU")
    adaat_cuda._cupy.cache_clear()
    with pytest.raises(ServerError, match="CuPy"):
        AdaatKernel()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for_the_supported_gpus(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    command = [nvcc, "-cubin", f"-arch={architecture}", "-std=c++17", "-Werror=all-warnings", "-Xptxas=-v,-warn-spills"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "adaat.cubin"), str(SOURCE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "spill" not in done.stderr.replace("0 bytes spill stores, 0 bytes spill loads", "")
    assert (tmp_path / "adaat.cubin").stat().st_size > 1000


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_at_run_time(architecture: str) -> None:
    """As CuPy does it, with NVRTC, which works without a GPU."""
    nvrtc = load_nvrtc()
    if nvrtc is None:
        pytest.skip("NVRTC is not installed")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [f"-I{SOURCE.parent}", "--std=c++17", f"--gpu-architecture={architecture}"]
    text = SOURCE.read_bytes()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"adaat.cu", 0, None, None) == 0
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
    assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    assert size.value > 1000
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [*SHAPES, *((b, CHANNELS, FEATURE_HEIGHT, FEATURE_WIDTH) for b in (2, 8, 32))], ids=str
)
def test_on_the_gpu(shape: tuple[int, int, int, int]) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    reference, affine = features(*shape), similarities(*shape[:2])
    (aligned,) = AdaatKernel()([(cupy.asarray(reference), cupy.asarray(affine))])
    assert isinstance(aligned, cupy.ndarray)
    np.testing.assert_allclose(aligned.get(), exact(reference, affine), atol=5e-5)
    affine[0, 0, 1] = np.nan
    (refused,) = AdaatKernel()([(reference, cupy.asarray(affine))])
    assert isinstance(refused, BadInput)


@pytest.mark.gpu
def test_on_the_gpu_under_the_sanitizer(root: Path) -> None:
    """No access outside of an array, no race in shared memory."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer")
    program = (
        "import numpy as np\n"
        "from insync.ensemble.models.adaat_cuda import AdaatKernel\n"
        "kernel = AdaatKernel()\n"
        "for b, c, h, w in ((2, 160, 36, 40), (3, 5, 7, 13), (1, 1, 1, 1)):\n"
        "    kernel([(np.ones((b, c, h, w), np.float32), np.random.rand(b, c, 4).astype(np.float32))])\n"
    )
    for tool in ("memcheck", "racecheck", "initcheck"):
        done = subprocess.run(
            [sanitizer, "--tool", tool, "--error-exitcode", "9", "python", "-c", program],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
