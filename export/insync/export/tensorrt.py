"""Builder of TensorRT plans of the network's graphs, next to their ONNX files, for this machine's GPU and TensorRT.

Strictly FP32: TF32, which TensorRT allows by default, rounds the inputs of every multiplication to 10 bits and is disabled.
TensorRT 10, TensorRT 11 and TensorRT for RTX all build strongly typed networks: only the graph determines each operation's
precision. TensorRT for RTX needs no GPU, and checks that NVIDIA's parser and builder accept the graphs and their profiles.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.spec import MODELS, Tensor
from insync.ensemble.inference.device import Gpu, find_gpu
from insync.ensemble.repository.tensorrt_plans import BUILDER, GRAPHS, PLAN, PlanManifest, PlanRecord, sha256

RTX = "TensorRT for RTX"
TIMING_CACHE = "timing.cache"
PRECISIONS = ("fp32", "tf32")
_MODULES = {BUILDER: ("tensorrt", "tensorrt_bindings"), RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_MISSING = {
    BUILDER: "TensorRT's Python package is not installed: use NVIDIA's TensorRT container of the server's release, or next "
    "to the server's own libnvinfer: pip install tensorrt-cu13-bindings==VERSION",
    RTX: "TensorRT for RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
}
_RTX_CAPABILITIES = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}

Arrays = dict[str, NDArray[Any]]


class PlanError(RuntimeError):
    """A plan could not be built. The message is one line that explains why."""


@dataclass(frozen=True)
class PlanOptions:
    """Options of the plan builder.

    Attributes:
        precision: "fp32", or "tf32", which needs evidence.
        evidence: JSON of `insync export precision` for the same graphs, in which the precision has passed.
        rtx: build with TensorRT for RTX, ahead of time, for `capability`.
        capability: the GPU's compute capability, as in "8.0"; None uses this machine's GPU.
        timing_cache: file with the kernel timings measured while building, with which the next build takes seconds. None
            stores it next to the plans.
    """

    precision: str = "fp32"
    evidence: Path | None = None
    rtx: bool = False
    capability: str | None = None
    timing_cache: Path | None = None


def load_builder(rtx: bool) -> Any:
    """Import TensorRT's Python module, or that of TensorRT for RTX.

    Raises:
        PlanError: it is not installed.
    """
    builder = RTX if rtx else BUILDER
    for name in _MODULES[builder]:
        try:
            return importlib.import_module(name)
        except ImportError as exc:
            if exc.name != name:  # it is installed, but lacks a library
                raise PlanError(f"{name} cannot be loaded: {exc}") from exc
    raise PlanError(_MISSING[builder])


def max_batch(repository: Path, name: str) -> int:
    """Return the largest batch that a model is served with, from `configs/h100.pbtxt` or else from the specification."""
    config = repository / name / "configs" / "h100.pbtxt"
    found = re.search(r"^max_batch_size:\s*(\d+)", config.read_text(), re.MULTILINE) if config.is_file() else None
    return int(found[1]) if found else MODELS[name].max_batch_size


def profile(inputs: Sequence[Tensor], largest: int) -> dict[str, list[list[int]]]:
    """Return the minimum, optimal and maximum shape of each input. Optimal is the maximum: under load, batches are full."""
    return {tensor.name: [[batch, *tensor.shape] for batch in (1, largest, largest)] for tensor in inputs}


def build_plans(
    repository: Path,
    out: Path | None = None,
    options: PlanOptions | None = None,
    trt: Any = None,
    log: Callable[[str], None] = lambda text: None,
) -> PlanManifest:
    """Write `<model>/1/model.plan` for each graph, and `plans.json`. Nothing is written before every plan is built.

    Args:
        repository: the Triton model repository.
        out: folder for the plans, with the repository's layout; by default the repository. Plans of TensorRT for RTX,
            which Triton cannot load, are never written into the repository.
        options: by default strict FP32 for this machine's GPU.
        trt: TensorRT's module, by default the installed one.
        log: called with a message for each step.

    Raises:
        PlanError: TensorRT is not installed or refuses a graph, there is no GPU, or less than FP32 was requested without
            evidence.
    """
    options, out = options or PlanOptions(), out or repository
    _check_precision(repository, options)
    if options.rtx and out.resolve() == repository.resolve():
        raise PlanError(
            "Triton cannot load plans of TensorRT for RTX: set --out to a folder outside the model repository"
        )
    trt = trt or load_builder(options.rtx)
    gpu = None if options.rtx else find_gpu()
    if gpu is None and not (options.rtx and options.capability):
        remedy = "set a compute capability for TensorRT for RTX" if options.rtx else "TensorRT builds only on a GPU"
        raise PlanError(f"there is no GPU on this machine: {remedy}")
    cache = options.timing_cache or out / TIMING_CACHE
    plans: dict[str, bytes] = {}
    records: dict[str, PlanRecord] = {}
    builder = _Builder(trt, options, cache.read_bytes() if cache.is_file() else b"")
    for name in GRAPHS:
        log(f"{name}: building")
        onnx = repository / name / "1" / "model.onnx"
        shapes = profile(MODELS[name].inputs, max_batch(repository, name))
        started = time.monotonic()
        plans[name] = builder.build(name, onnx.read_bytes(), shapes)
        seconds = round(time.monotonic() - started, 1)
        # TensorRT for RTX finishes compiling when the plan is loaded on its GPU, which may not be this machine's.
        error = None if options.rtx else largest_error(trt, name, plans[name], onnx)
        records[name] = _record(options.precision, shapes, onnx, plans[name], seconds, error)
    manifest = PlanManifest(
        RTX if options.rtx else BUILDER,
        _version(trt),
        gpu.name if gpu else None,
        options.capability or (gpu or Gpu("", "")).capability,
        records,
    )
    for name, plan in plans.items():
        _replace(out / name / "1" / PLAN, plan)
    manifest.write(out)
    if builder.cache:
        _replace(cache, builder.cache)
    return manifest


class _Builder:
    """TensorRT's builder. `cache` is its timing cache so far, empty if this TensorRT has none."""

    def __init__(self, trt: Any, options: PlanOptions, cache: bytes) -> None:
        self._trt, self._options, self.cache = trt, options, cache
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._builder = trt.Builder(self._logger)

    def build(self, name: str, onnx: bytes, shapes: dict[str, list[list[int]]]) -> bytes:
        trt = self._trt
        # TensorRT 11 has only strongly typed networks, and may drop the flag.
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self._builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(onnx):
            found = [parser.get_error(i) for i in range(parser.num_errors)]
            errors = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found)
            raise PlanError(f"{name}: TensorRT {_version(trt)} cannot read the graph: {errors}")
        config = self._builder.create_builder_config()
        (config.set_flag if self._options.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
        if self._options.rtx:
            config.num_compute_capabilities = 1
            config.set_compute_capability(_rtx_capability(trt, self._options.capability or ""), 0)
        optimisation = self._builder.create_optimization_profile()
        for tensor, (least, optimal, largest) in shapes.items():
            optimisation.set_shape(tensor, tuple(least), tuple(optimal), tuple(largest))
        if config.add_optimization_profile(optimisation) < 0:
            raise PlanError(f"{name}: TensorRT {_version(trt)} refuses the profile {shapes}")
        timing = None if self._options.rtx else config.create_timing_cache(self.cache)
        if timing is not None:
            config.set_timing_cache(timing, False)
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise PlanError(f"{name}: TensorRT {_version(trt)} could not build a plan, see its log lines above")
        if timing is not None:
            self.cache = bytes(config.get_timing_cache().serialize())
        return bytes(plan)


def largest_error(trt: Any, name: str, plan: bytes, onnx: Path) -> dict[str, float] | None:
    """Return each output's largest error against ONNX Runtime on the CPU, at batch sizes 1 and 3.

    Relative to the output's largest magnitude; PATCH: in levels of 255. None if CuPy or ONNX Runtime is not installed.
    """
    try:
        import cupy
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    if engine is None:
        raise PlanError(f"{name}: the plan was built but cannot be loaded")
    context = engine.create_execution_context()
    errors: dict[str, float] = {}
    for batch in (1, 3):
        feed = _feed(MODELS[name].inputs, batch)
        buffers = {key: cupy.asarray(value) for key, value in feed.items()}
        expected = session.run([tensor.name for tensor in MODELS[name].outputs], feed)
        for tensor, value in zip(MODELS[name].outputs, expected, strict=True):
            buffers[tensor.name] = cupy.empty(value.shape, value.dtype)
        for key, value in feed.items():
            context.set_input_shape(key, value.shape)
        for key, buffer in buffers.items():
            context.set_tensor_address(key, buffer.data.ptr)
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.get_current_stream().synchronize()
        if not context.execute_async_v3(stream.ptr):
            raise PlanError(f"{name}: the plan was built but does not run")
        stream.synchronize()
        for tensor, value in zip(MODELS[name].outputs, expected, strict=True):
            difference = np.abs(buffers[tensor.name].get().astype(np.float64) - value).max()
            scale = 1.0 if tensor.name == "PATCH" else max(1e-6, float(np.abs(value).max()))
            errors[tensor.name] = max(errors.get(tensor.name, 0.0), float(f"{difference / scale:.2g}"))
    return errors


def _feed(inputs: Sequence[Tensor], batch: int) -> Arrays:
    """Return random inputs in about each tensor's usual range: pictures in [0, 1] or bytes, log-mel and features around 0."""
    rng = np.random.default_rng(0)
    feed: Arrays = {}
    for tensor in inputs:
        shape = (batch, *tensor.shape)
        if tensor.dtype == "UINT8":
            feed[tensor.name] = rng.integers(0, 256, shape, np.uint8)
        else:
            picture = tensor.name in ("CROP", "CROPS")
            feed[tensor.name] = (rng.random(shape) if picture else rng.normal(0, 0.5, shape)).astype(np.float32)
    return feed


def _record(
    precision: str,
    shapes: dict[str, list[list[int]]],
    onnx: Path,
    plan: bytes,
    seconds: float,
    error: dict[str, float] | None,
) -> PlanRecord:
    digest = hashlib.sha256(plan).hexdigest()
    return PlanRecord(precision, shapes, sha256(onnx), digest, round(len(plan) / 1e6, 3), seconds, error)


def _check_precision(repository: Path, options: PlanOptions) -> None:
    """Check that a precision below FP32 has passed in a precision report for the same graphs."""
    if options.precision not in PRECISIONS:
        raise PlanError(f"the precision must be one of {', '.join(PRECISIONS)}, got {options.precision!r}")
    if options.precision == "fp32":
        return
    if options.evidence is None:
        raise PlanError(
            f"{options.precision} needs the report of insync export precision: pass its JSON with --evidence"
        )
    try:
        report = json.loads(options.evidence.read_text())
        passed = report["precisions"][options.precision]["passed"] is True
        graphs = report["graphs"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise PlanError(f"{options.evidence} is not a precision report: {exc}") from exc
    if not passed:
        raise PlanError(f"{options.precision} has not passed in {options.evidence}: build in fp32")
    if any(graphs.get(name) != sha256(repository / name / "1" / "model.onnx") for name in GRAPHS):
        raise PlanError(
            f"{options.evidence} is about other graphs than the repository's: run insync export precision again"
        )


def _rtx_capability(trt: Any, capability: str) -> Any:
    name = _RTX_CAPABILITIES.get(capability)
    if name is None or not hasattr(trt.ComputeCapability, name):
        raise PlanError(
            f"the compute capability for TensorRT for RTX must be one of {', '.join(_RTX_CAPABILITIES)}, got {capability!r}"
        )
    return getattr(trt.ComputeCapability, name)


def _version(trt: Any) -> str:
    """Return the version with four parts, as the library reports it, without a package's suffix."""
    return ".".join(trt.__version__.split(".")[:4])


def _replace(path: Path, data: bytes) -> None:
    """Write a file atomically: a server that reads it meanwhile gets either the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(data)
    scratch.replace(path)
