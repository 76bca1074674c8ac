"""TensorRT plans: NVIDIA's parser and builder accept every graph, and a plan that the server cannot load is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from insync.cli.main import main
from insync.core.errors import ServerError
from insync.core.spec import MODELS
from insync.ensemble.inference import device
from insync.ensemble.inference.device import Gpu
from insync.ensemble.repository.tensorrt_plans import GRAPHS, MANIFEST, PLAN, PlanManifest, check_plans, sha256
from insync.export import tensorrt
from insync.export.tensorrt import PlanError, PlanOptions, build_plans, load_builder, max_batch, profile

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")
A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0")
VERSION = "10.14.1.48"
RTX = PlanOptions(rtx=True, capability="8.9")


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT for RTX, the one that builds without a GPU."""
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")


@pytest.fixture(scope="module")
def rtx_plans(rtx: Any, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlanManifest]:
    out = tmp_path_factory.mktemp("plans")
    return out, build_plans(repository, out, RTX)


def test_nvidias_parser_and_builder_accept_every_graph(repository: Path, rtx_plans: tuple[Path, PlanManifest]) -> None:
    out, manifest = rtx_plans
    assert set(manifest.graphs) == set(GRAPHS) == {p.parents[1].name for p in repository.glob("*/1/model.onnx")}
    for name, record in manifest.graphs.items():
        assert record.plan_sha256 == sha256(out / name / "1" / PLAN)
        assert record.onnx_sha256 == sha256(repository / name / "1" / "model.onnx")
        assert record.megabytes > 0.1
        assert record.largest_error is None  # it was not run
        for tensor in MODELS[name].inputs:
            least, _, largest = record.profile[tensor.name]
            assert (least, largest) == ([1, *tensor.shape], [MODELS[name].max_batch_size, *tensor.shape])
    assert (manifest.builder, manifest.gpu, manifest.capability) == ("TensorRT for RTX", None, "8.9")
    assert PlanManifest.read(out) == manifest


def test_the_parser_takes_what_pytorchs_grid_sample_becomes(rtx: Any) -> None:
    """Bilinear, clamped at the border, on 8-bit pixels: a decoder that copies from its references needs it."""
    nodes = [
        helper.make_node("Cast", ["PIXELS"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node(
            "GridSample", ["pixels", "PLACES"], ["PATCH"], mode="bilinear", padding_mode="border", align_corners=0
        ),
    ]
    values = [
        helper.make_tensor_value_info(name, kind, ["batch", *shape])
        for name, kind, shape in (
            ("PIXELS", TensorProto.UINT8, (3, 36, 40)),
            ("PLACES", TensorProto.FLOAT, (36, 40, 2)),
            ("PATCH", TensorProto.FLOAT, (3, 36, 40)),
        )
    ]
    graph = helper.make_graph(nodes, "sample", values[:2], values[2:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    shapes = {"PIXELS": [[b, 3, 36, 40] for b in (1, 8, 8)], "PLACES": [[b, 36, 40, 2] for b in (1, 8, 8)]}
    assert len(tensorrt._Builder(rtx, RTX, b"").build("sample", proto.SerializeToString(), shapes)) > 1000


def test_a_graph_that_the_parser_refuses_is_named(
    rtx: Any, repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(repository, tmp_path / "repository", ignore=shutil.ignore_patterns("*.tflite"))
    path = broken / "lipsync_encoder" / "1" / "model.onnx"
    proto = onnx.load(str(path))
    proto.graph.node[-1].op_type = "Unknown"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(PlanError, match=r"lipsync_encoder: TensorRT 1\.[\d.]+ cannot read the graph: .*Unknown"):
        build_plans(broken, tmp_path / "out", RTX, rtx)
    assert not (tmp_path / "out").exists()  # all plans or none


def test_profiles_use_the_batch_limit_of_the_served_config(tmp_path: Path) -> None:
    assert max_batch(tmp_path, "lipsync_decoder") == MODELS["lipsync_decoder"].max_batch_size
    config = tmp_path / "lipsync_decoder" / "configs" / "h100.pbtxt"
    config.parent.mkdir(parents=True)
    config.write_text('name: "lipsync_decoder"\nmax_batch_size: 16\n')
    assert max_batch(tmp_path, "lipsync_decoder") == 16
    shapes = profile(MODELS["lipsync_mixer"].inputs, 16)
    assert shapes["POSE"] == [[1, 32], [16, 32], [16, 32]]


class Fake:
    """The part of TensorRT's module that building needs; it records the calls. `typed`: TensorRT 10, which needs a flag."""

    def __init__(self, typed: bool) -> None:
        self.__version__ = VERSION
        self.flags: list[int] = []
        self.cleared: list[str] = []
        self.set: list[str] = []
        self.caches: list[bytes] = []
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(**({"STRONGLY_TYPED": 1} if typed else {}))
        self.BuilderFlag = types.SimpleNamespace(TF32="tf32")
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
        network = types.SimpleNamespace()

        def noted(record: list[Any], received: Any, result: Any) -> Any:
            record.append(received)
            return result

        parser = types.SimpleNamespace(parse=lambda data: bool(data), num_errors=0)
        self.OnnxParser = lambda network, logger: parser
        cache = types.SimpleNamespace(serialize=lambda: b"measured")
        config = types.SimpleNamespace(
            set_flag=self.set.append,
            clear_flag=self.cleared.append,
            add_optimization_profile=lambda profile: 0,
            create_timing_cache=lambda data: noted(self.caches, data, cache),
            set_timing_cache=lambda cache, mismatch: True,
            get_timing_cache=lambda: cache,
        )
        builder = types.SimpleNamespace(
            create_network=lambda flags: noted(self.flags, flags, network),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: types.SimpleNamespace(set_shape=lambda *shapes: None),
            build_serialized_network=lambda network, config: b"plan" * 100,
        )
        self.Builder = lambda logger: builder


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 that cannot run anything."""
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: H100)
    monkeypatch.setattr(tensorrt, "largest_error", lambda trt, name, plan, onnx: {"PATCH": 1.0})


@pytest.fixture
def served(h100: None, repository: Path, tmp_path: Path) -> Path:
    """A model repository with plans for an H100."""
    for name in GRAPHS:
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.onnx").symlink_to(repository / name / "1" / "model.onnx")
    build_plans(tmp_path, trt=Fake(True))
    return tmp_path


@pytest.mark.parametrize(("typed", "flags"), [(True, 2), (False, 0)], ids=["TensorRT 10", "TensorRT 11"])
def test_strongly_typed_and_without_tf32(h100: None, repository: Path, tmp_path: Path, typed: bool, flags: int) -> None:
    trt = Fake(typed)
    manifest = build_plans(repository, tmp_path, trt=trt)
    assert trt.flags == [flags] * len(GRAPHS)
    assert (trt.cleared, trt.set) == (["tf32"] * len(GRAPHS), [])
    assert (manifest.version, manifest.gpu, manifest.capability) == (VERSION, H100.name, "9.0")
    again = Fake(typed)
    build_plans(repository, tmp_path, trt=again)
    assert (trt.caches[0], again.caches[0]) == (b"", b"measured")  # timings are measured only once


def test_less_than_fp32_needs_evidence_about_these_graphs(h100: None, repository: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "precision.json"
    options = PlanOptions("tf32", evidence)
    with pytest.raises(PlanError, match="needs the report of insync export precision"):
        build_plans(repository, tmp_path, PlanOptions("tf32"), Fake(True))
    with pytest.raises(PlanError, match="is not a precision report"):
        build_plans(repository, tmp_path, options, Fake(True))
    hashes = {name: sha256(repository / name / "1" / "model.onnx") for name in GRAPHS}
    for passed, graphs, text in ((False, hashes, "has not passed"), (True, {**hashes, GRAPHS[0]: "0"}, "other graphs")):
        evidence.write_text(json.dumps({"graphs": graphs, "precisions": {"tf32": {"passed": passed}}}))
        with pytest.raises(PlanError, match=text):
            build_plans(repository, tmp_path, options, Fake(True))
    evidence.write_text(json.dumps({"graphs": hashes, "precisions": {"tf32": {"passed": True}}}))
    trt = Fake(True)
    assert {record.precision for record in build_plans(repository, tmp_path, options, trt).graphs.values()} == {"tf32"}
    assert trt.set == ["tf32"] * len(GRAPHS)
    with pytest.raises(PlanError, match="the precision must be one of fp32, tf32, got 'int8'"):
        build_plans(repository, tmp_path, PlanOptions("int8"), Fake(True))


def test_matching_plans_are_accepted(served: Path) -> None:
    assert check_plans(served, VERSION, H100).gpu == H100.name
    assert set(check_plans(served, VERSION, Gpu("another H100", "9.0")).graphs) == set(GRAPHS)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda folder: None, r"built by TensorRT 10\.14\.1\.48, but the server has 11\.0\.0\.1"),
        (lambda folder: (folder / MANIFEST).unlink(), "has no plans.json"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "is not a valid manifest of plans"),
        (lambda folder: (folder / MANIFEST).write_text('{"graphs": []}'), "is not a valid manifest of plans"),
        (lambda folder: (folder / GRAPHS[0] / "1" / PLAN).unlink(), f"{GRAPHS[0]}: model.plan is missing"),
    ],
    ids=["another TensorRT", "no manifest", "empty manifest", "wrong manifest", "no plan"],
)
def test_foreign_plans_are_refused_with_the_remedy(served: Path, spoil: Any, text: str) -> None:
    spoil(served)
    with pytest.raises(ServerError, match=text) as caught:
        check_plans(served, "11.0.0.1", H100)
    assert str(caught.value).endswith(": insync export tensorrt")
    assert "\n" not in str(caught.value)


def test_changed_plans_graphs_and_gpus_are_refused(served: Path, repository: Path) -> None:
    with pytest.raises(ServerError, match=r"capability 9\.0, but NVIDIA A100-SXM4-80GB has 8\.0"):
        check_plans(served, VERSION, A100)
    plan, graph = (served / GRAPHS[0] / "1" / file for file in (PLAN, "model.onnx"))
    kept = plan.read_bytes()
    plan.write_bytes(b"x" + kept[1:])
    with pytest.raises(ServerError, match=r"model\.plan is not the one that plans\.json describes"):
        check_plans(served, VERSION, H100)
    plan.write_bytes(kept)
    graph.unlink()
    shutil.copy(repository / GRAPHS[1] / "1" / "model.onnx", graph)
    with pytest.raises(ServerError, match=r"built from a different model\.onnx"):
        check_plans(served, VERSION, H100)


def test_plans_of_tensorrt_for_rtx_are_not_for_triton(served: Path) -> None:
    dataclasses.replace(PlanManifest.read(served), builder="TensorRT for RTX").write(served)
    with pytest.raises(ServerError, match="TensorRT for RTX, whose plans Triton cannot load"):
        check_plans(served, VERSION, H100)


def test_the_version_is_read_from_the_library(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    parts = {"Major": 10, "Minor": 14, "Patch": 1, "Build": 48}
    source = "".join(f'extern "C" int getInferLib{part}Version() {{ return {n}; }}\n' for part, n in parts.items())
    (tmp_path / "nvinfer.cpp").write_text(source)
    library = tmp_path / "libnvinfer.so"
    subprocess.run([compiler, "-shared", "-fPIC", str(tmp_path / "nvinfer.cpp"), "-o", str(library)], check=True)
    assert device.library_version(str(library)) == VERSION
    with pytest.raises(ServerError, match="TensorRT is not installed on this machine"):
        device.library_version("libnosuch.so")


def test_the_gpu_is_the_one_that_the_driver_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.find_gpu() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0'\necho 'NVIDIA H100 80GB HBM3, 9.0'\n")
    program.chmod(0o755)
    assert device.find_gpu() == H100
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert device.find_gpu() is None


def test_the_command_reports_why_it_fails(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: None)
    monkeypatch.setattr(device, "_NVINFER", ("libnosuch.so",))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    for arguments, text in (
        (["tensorrt"], "TensorRT's Python package is not installed: use NVIDIA's TensorRT container"),
        (["tensorrt", "--check"], "TensorRT is not installed on this machine"),
        (["tensorrt", "--rtx", "8.9"], "set --out to a folder outside the model repository"),
        (["tensorrt", "--precision", "tf32"], "pass its JSON with --evidence"),
    ):
        assert main(["export", "--repository", str(repository), *arguments]) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("insync export: ")
        assert text in printed
        assert printed.count("\n") == 1
    assert not (repository / MANIFEST).exists()


def test_missing_requirements_are_reported(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: None)
    with pytest.raises(PlanError, match="TensorRT builds only on a GPU"):
        build_plans(repository, tmp_path, trt=Fake(True))
    with pytest.raises(PlanError, match="set a compute capability"):
        build_plans(repository, tmp_path, PlanOptions(rtx=True), Fake(True))
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PlanError, match="pip install tensorrt-rtx-cu13-libs"):
        load_builder(rtx=True)


def test_an_unsupported_capability_is_refused(rtx: Any, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"must be one of 7\.5, 8\.0, .*, got '9\.0'"):
        build_plans(repository, tmp_path, PlanOptions(rtx=True, capability="9.0"), rtx)
