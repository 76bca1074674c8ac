"""`insync serve --gpu`: PyTorch's network gives the graphs' outputs, and a machine without a GPU runtime is refused before the start."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from insync.cli.main import main
from insync.core.errors import BadInput, ServerError
from insync.core.settings import GPU_VARIABLE, load
from insync.core.spec import MODELS
from insync.ensemble.inference import onnx_session, runtime
from insync.ensemble.inference.device import Gpu
from insync.ensemble.inference.onnx_session import CpuSession, CudaSession
from insync.ensemble.inference.runtime import find_runtime
from insync.ensemble.inference.torch_session import TorchSession
from insync.ensemble.repository.tensorrt_plans import GRAPHS
from insync.ensemble.server import embedded
from insync.ensemble.server.installation import Installation
from insync.ensemble.triton import backends

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")


def feed(model: str, batch: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(batch)
    values: dict[str, NDArray[Any]] = {}
    for tensor in MODELS[model].inputs:
        shape = (batch, *tensor.shape)
        bytes_ = tensor.dtype == "UINT8"
        values[tensor.name] = rng.integers(0, 256, shape, np.uint8) if bytes_ else rng.random(shape, np.float32)
    return values


@pytest.fixture(scope="module")
def one_thread() -> Iterator[ort.SessionOptions]:
    """Small batches: threads would wait for each other longer than they work."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    yield options
    torch.set_num_threads(before)


def check(model: str, repository: Path, device: str, options: ort.SessionOptions) -> None:
    path = repository / model / "1" / "model.onnx"
    there, here = TorchSession(path, model, device), CpuSession(path, options)
    assert (there.inputs, there.outputs) == (here.inputs, here.outputs)
    given: list[tuple[list[NDArray[Any]], list[NDArray[Any]]]] = []
    for batch in (1, 2, 1):
        inputs = feed(model, batch)
        inputs[there.inputs[0]] += len(given)  # different values in each batch
        for value in inputs.values():
            value.flags.writeable = False  # as Triton's are
        given.append((there.run(there.outputs, inputs), here.run(here.outputs, inputs)))
    # Compared only now: a run must not overwrite the outputs of an earlier one.
    for outputs, expected in given:
        for got, want in zip(outputs, expected, strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            allowed = 1 if want.dtype == np.uint8 else 1e-3 * max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(got.astype(float), want.astype(float), atol=allowed)
    (last,) = there.run(there.outputs[-1:], feed(model, 1))
    assert last.shape[1:] == MODELS[model].outputs[-1].shape


@pytest.mark.parametrize("model", GRAPHS)
def test_pytorch_gives_the_graphs_outputs(model: str, repository: Path, one_thread: ort.SessionOptions) -> None:
    check(model, repository, "cpu", one_thread)


@pytest.mark.gpu
@pytest.mark.parametrize("model", GRAPHS)
def test_cuda_graphs_give_the_graphs_outputs(model: str, repository: Path, one_thread: ort.SessionOptions) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    check(model, repository, "cuda:0", one_thread)


@pytest.mark.gpu
@pytest.mark.parametrize("model", GRAPHS)
def test_onnx_runtime_gives_the_same_outputs_on_gpu_and_cpu(model: str, repository: Path) -> None:
    if onnx_session.CUDA not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    path = repository / model / "1" / "model.onnx"
    there, here = CudaSession(path, 0, ort.SessionOptions()), CpuSession(path, ort.SessionOptions())
    inputs = feed(model, 3)
    for got, want in zip(there.run(there.outputs, inputs), here.run(here.outputs, inputs), strict=True):
        allowed = 1 if want.dtype == np.uint8 else 1e-3 * max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(got.astype(float), want.astype(float), atol=allowed)


@pytest.mark.triton
@pytest.mark.gpu
def test_the_server_serves_frames_on_the_gpu(tmp_path: Path) -> None:
    """Its start sends a frame through both ensembles."""
    with embedded.EmbeddedServer(twin_store=tmp_path / "twins", gpu=True) as running:
        running.check()


def test_without_a_gpu_there_is_an_error_and_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "find_gpu", lambda: None)
    monkeypatch.setattr(embedded.EmbeddedServer, "_launch", lambda *a: pytest.fail("something was started"))
    ports = [word for kind in ("grpc", "http", "metrics") for word in (f"--{kind}-port", "0")]
    assert main(["serve", "--gpu", "--twins", str(tmp_path / "twins"), *ports]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("insync serve: --gpu needs an NVIDIA GPU and its driver, but nvidia-smi finds none")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "twins").exists()


def test_onnx_runtime_first_and_then_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = types.SimpleNamespace(is_available=lambda: False)
    torch: Any = types.SimpleNamespace(__version__="2.13.0+cpu", __spec__=types.SimpleNamespace(), cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(runtime, "find_gpu", lambda: H100)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ServerError, match=r"no CUDAExecutionProvider, and PyTorch 2\.13\.0\+cpu sees no GPU; install"):
        find_runtime()
    cuda.is_available = lambda: True
    assert str(find_runtime()) == "NVIDIA H100 80GB HBM3 with PyTorch and CUDA graphs"
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [onnx_session.CUDA, "CPUExecutionProvider"])
    assert str(find_runtime()) == "NVIDIA H100 80GB HBM3 with ONNX Runtime"


def test_a_provider_that_cannot_be_loaded_is_an_error_not_the_cpu(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = types.SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *a, **k: session)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None, raising=False)
    with pytest.raises(ServerError, match="cannot load its CUDA provider"):
        CudaSession(repository / GRAPHS[0] / "1" / "model.onnx", 0, ort.SessionOptions())


def test_a_server_with_an_onnx_runtime_of_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_runtime", lambda: runtime.GpuRuntime("torch", H100.name))
    installation = Installation(Path("/opt/tritonserver/bin/tritonserver"), tmp_path, None, ())
    embedded._check_gpu(installation)
    (tmp_path / "onnxruntime").mkdir()
    with pytest.raises(ServerError, match="--model-config-name=onnx_gpu"):
        embedded._check_gpu(installation)


def test_the_environment_tells_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPU_VARIABLE, raising=False)
    assert not load().gpu
    monkeypatch.setenv(GPU_VARIABLE, "1")
    assert load().gpu
    monkeypatch.setenv(GPU_VARIABLE, "yes")
    with pytest.raises(BadInput, match="INSYNC_GPU is 'yes'"):
        load()


def fallback_backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The backend's class, with the part of Triton's Python backend that it needs: requests are arrays by name."""
    backend: Any = types.ModuleType("triton_python_backend_utils")
    backend.get_input_tensor_by_name = lambda request, name: types.SimpleNamespace(as_numpy=lambda: request[name])
    backend.Tensor = lambda name, value: (name, value)
    backend.InferenceResponse = lambda tensors=(), error=None: types.SimpleNamespace(tensors=dict(tensors), error=error)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "insync.ensemble.triton.python_backend", raising=False)
    path = Path(backends.__file__).parent / "onnxruntime" / "model.py"
    spec = importlib.util.spec_from_file_location("fallback_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TritonPythonModel()


@pytest.mark.parametrize("on_gpu", [False, True], ids=["CPU", "GPU"])
def test_the_backend_uses_the_device_set_in_the_environment(
    on_gpu: bool, repository: Path, one_thread: ort.SessionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PyTorch on the CPU instead of a GPU; instance on the fourth GPU."""
    devices: list[str] = []

    def on_cpu(path: Path, model: str, device: str) -> TorchSession:
        devices.append(device)
        return TorchSession(path, model, "cpu")

    monkeypatch.setenv(GPU_VARIABLE, str(int(on_gpu)))
    monkeypatch.setattr(runtime, "find_runtime", lambda: runtime.GpuRuntime("torch", H100.name))
    monkeypatch.setattr(runtime, "TorchSession", on_cpu)
    name = "lipsync_mixer"
    model = fallback_backend(monkeypatch)
    config: dict[str, Any] = {"name": name, "max_batch_size": 8}
    config["input"], config["output"] = (
        [{"name": tensor.name} for tensor in tensors] for tensors in (MODELS[name].inputs, MODELS[name].outputs)
    )
    arguments = {"model_repository": str(repository / name), "model_version": "1", "model_config": json.dumps(config)}
    arguments["model_instance_name"] = f"{name}_0_1"
    model.initialize({**arguments, "model_instance_kind": "GPU", "model_instance_device_id": "3"})
    assert devices == (["cuda:3"] if on_gpu else [])
    requests = [feed(name, 1), feed(name, 2), feed(name, 1)]
    exact = CpuSession(repository / name / "1" / "model.onnx", one_thread)
    for request, response in zip(requests, model.execute(requests), strict=True):
        assert response.error is None
        for output, want in zip(exact.outputs, exact.run(exact.outputs, request), strict=True):
            np.testing.assert_allclose(response.tensors[output], want, atol=1e-4)
    config["input"].append({"name": "NOSUCH"})
    with pytest.raises(ValueError, match=r"model\.onnx has no input \['NOSUCH'\]: it must be one of \['POSE'"):
        model.initialize({**arguments, "model_config": json.dumps(config), "model_instance_kind": "CPU"})
