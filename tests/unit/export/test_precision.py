"""The precision report: graphs round like a precision, a change beyond the threshold fails, and the report is complete."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from insync.cli.main import main
from insync.ensemble.repository.tensorrt_plans import GRAPHS, sha256
from insync.export.precision import compare
from insync.export.precision.compare import BLOCK, MIXED, Threshold, _change, _Drawn, _sound, worst_block
from insync.export.precision.rounding import PRECISIONS, rounded_array, rounded_graph
from insync.training.evaluation.evaluate import Footage

BITS = {"tf32": 11, "bf16": 8, "fp16": 11}  # significant ones


def test_numbers_are_rounded_to_the_nearest() -> None:
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(10_000) * 10.0 ** rng.integers(-4, 4, 10_000)).astype(np.float32)
    values = np.concatenate([values, np.array([0, -0.0, 1, 65_504, 1e-7, np.inf, -np.inf, np.nan], np.float32)])
    for name, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        expected = torch.from_numpy(values).to(kind).float().numpy()
        np.testing.assert_array_equal(rounded_array(values, name), expected)
    tf32 = rounded_array(values, "tf32")
    large = values[:-3] * np.float32(2**13 + 1)  # Veltkamp's splitting, in FP32 at each step
    np.testing.assert_array_equal(tf32[:-3], large - (large - values[:-3]))
    np.testing.assert_array_equal(tf32[-3:], values[-3:])
    assert rounded_array(np.array([1e5], np.float32), "fp16")[0] == np.inf
    with pytest.raises(ValueError, match="must be one of tf32, bf16, fp16, got 'int8'"):
        rounded_array(values, "int8")


def _has_bits(values: np.ndarray, bits: int) -> bool:  # type: ignore[type-arg]
    mantissa, _ = np.frexp(values.astype(np.float64))
    scaled = mantissa * 2.0**bits
    return bool((scaled == np.round(scaled)).all())


@pytest.mark.parametrize("name", PRECISIONS)
def test_onnx_runtime_does_not_undo_the_rounding(name: str) -> None:
    """A product and a sum: computed by hand, and by ONNX Runtime with all its optimisations."""
    rng = np.random.default_rng(1)
    weight, bias, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 8), (8,), (4, 64)))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Reshape", ["sum", "shape"], ["y"]),
        ],
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 2])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.array([-1, 4, 2]), "shape"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    untouched = proto.SerializeToString()
    session = ort.InferenceSession(rounded_graph(proto, name).SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x})
    assert proto.SerializeToString() == untouched

    def near(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return rounded_array(np.asarray(values, np.float32), name)

    product = near(x).astype(np.float64) @ near(weight)
    expected = product + bias if name == "tf32" else near(near(product).astype(np.float64) + near(bias))
    # Sums in another order may round the other way at a tie: then one step apart.
    step = 0 if name == "tf32" else 2.0 ** (1 - BITS[name])
    np.testing.assert_allclose(got.reshape(4, 8), expected, rtol=step + 1e-5, atol=1e-5 + step * 0.05)
    assert _has_bits(got, BITS[name]) == (name != "tf32")
    assert np.abs(got.reshape(4, 8) - (x.astype(np.float64) @ weight + bias)).max() > 1e-5


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_served_graph_can_be_rounded(repository: Path, name: str) -> None:
    for graph in GRAPHS:
        proto = onnx.load(str(repository / graph / "1" / "model.onnx"))
        rounded = rounded_graph(proto, name)
        assert [value.name for value in rounded.graph.input] == [value.name for value in proto.graph.input]
        assert list(rounded.graph.output) == list(proto.graph.output)
        cast = sum(node.op_type == "Cast" for node in rounded.graph.node)
        weights = {one.name.removesuffix(".rounded"): numpy_helper.to_array(one) for one in rounded.graph.initializer}
        multiplied = {
            node.input[1] for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")
        } & weights.keys()
        assert multiplied
        assert all(_has_bits(weights[weight], 11) for weight in multiplied)
        if name != "tf32":
            assert cast > len(multiplied)


@pytest.mark.parametrize("name", ["tf32", "fp16"])
def test_the_computation_of_sampled_places_stays_exact(name: str) -> None:
    """Places are moved and used for sampling; a layer's outputs, and all else, are rounded."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((2, 2)).astype(np.float32)
    places = rng.standard_normal((1, 1, 3, 2)).astype(np.float32) / 3
    x = rng.standard_normal((1, 1, 4, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["places", "third"], ["moved"]),
            helper.make_node("MatMul", ["moved", "weight"], ["layer"]),
            helper.make_node("Add", ["moved", "layer"], ["grid"]),
            helper.make_node("GridSample", ["x", "grid"], ["y"], mode="nearest"),
            helper.make_node("Sub", ["grid", "third"], ["beside"]),
        ],
        "by hand",
        [
            helper.make_tensor_value_info("places", TensorProto.FLOAT, [1, 1, 3, 2]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4]),
        ],
        [
            helper.make_tensor_value_info(one, TensorProto.FLOAT, shape)
            for one, shape in (
                ("y", [1, 1, 1, 3]),
                ("moved", [1, 1, 3, 2]),
                ("layer", [1, 1, 3, 2]),
                ("beside", [1, 1, 3, 2]),
            )
        ],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([1 / 3], np.float32), "third")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    rounded = rounded_graph(proto, name, ["places"])
    session = ort.InferenceSession(rounded.SerializeToString(), providers=["CPUExecutionProvider"])
    y, moved, layer, beside = session.run(None, {"places": places, "x": x})
    np.testing.assert_array_equal(moved, places * np.float32(1 / 3))
    assert not _has_bits(moved, 11)
    assert np.abs(layer - moved @ weight).max() > 1e-6
    assert _has_bits(beside, 11) == (name == "fp16")
    assert _has_bits(y, 11) == (name == "fp16")
    plain = ort.InferenceSession(rounded_graph(proto, name).SerializeToString(), providers=["CPUExecutionProvider"])
    assert _has_bits(plain.run(["moved"], {"places": places, "x": x})[0], 11) == (name == "fp16")


def drawn(crops: np.ndarray, apertures: np.ndarray) -> dict[str, _Drawn]:  # type: ignore[type-arg]
    return {"clip": _Drawn(crops, apertures.astype(np.float32), apertures.astype(np.float32))}


@pytest.fixture(scope="module")
def exact() -> dict[str, _Drawn]:
    rng = np.random.default_rng(0)
    small = rng.integers(60, 190, (12, 16, 16, 3), np.uint8)
    crops = np.stack([cv2.resize(one, (256, 256), interpolation=cv2.INTER_CUBIC) for one in small])
    return drawn(crops, rng.random(12))


def test_a_precision_that_changes_nothing_passes(exact: dict[str, _Drawn]) -> None:
    change = _change(exact, exact, {}, Threshold())
    assert change.passed
    assert change.worst_ssim == pytest.approx(1)
    assert (change.worst_block, change.worst_pixel) == (0, 0)
    assert change.agreement == pytest.approx(1)
    assert np.isnan(change.aperture_corr)


def test_one_bad_block_in_one_frame_fails(exact: dict[str, _Drawn]) -> None:
    one = exact["clip"]
    crops = one.crops.copy()
    crops[7, 200 : 200 + BLOCK, 100 : 100 + BLOCK] += 5
    change = _change(exact, drawn(crops, one.apertures), {}, Threshold())
    assert change.failed == ("worst block 5.00 > 3.0 levels",)
    assert (change.worst_clip, change.worst_frame, change.worst_at) == ("clip", 7, (200, 100))
    assert change.worst_pixel == 5


def test_a_mouth_that_moves_differently_fails(exact: dict[str, _Drawn]) -> None:
    one = exact["clip"]
    change = _change(exact, drawn(one.crops, np.roll(one.apertures, 1)), {}, Threshold())
    assert len(change.failed) == 1
    assert change.failed[0].startswith("apertures correlate by")


def test_a_mouth_that_cannot_be_read_fails(exact: dict[str, _Drawn]) -> None:
    """For example after an overflow, when no face is left."""
    one = exact["clip"]
    change = _change(exact, drawn(np.zeros_like(one.crops), np.full(12, np.nan)), {}, Threshold())
    assert len(change.failed) == 3
    assert "apertures correlate by nan < 0.99" in change.failed


def test_the_worst_block_lies_inside() -> None:
    difference = np.zeros((64, 48, 3), np.uint8)
    difference[48:, 32:] = 9
    levels, at = worst_block(difference)
    assert levels == pytest.approx(9)
    assert at == (48, 32)


def test_report(
    repository: Path, sample_clip: Path, sample_speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command on less than a second, in two variants: FP16's largest errors are in the landmarks' flow."""
    monkeypatch.setattr(compare, "VARIANTS", ("fp16", MIXED))
    arguments = [str(sample_clip), "--speech", str(sample_speech), "--seconds", "0.8", "--threads", "1"]
    code = main(["export", "--repository", str(repository), "precision", *arguments, "-o", str(tmp_path)])
    assert code == 0
    report = json.loads((tmp_path / "precision.json").read_text())
    assert report["graphs"] == {name: sha256(repository / name / "1" / "model.onnx") for name in GRAPHS}
    assert (report["emulated"], report["clips"]) == (True, ["sample.mp4"])
    fp16 = report["precisions"]["fp16"]
    assert fp16["worst_block"] > 0
    assert fp16["worst_ssim"] <= fp16["ssim"] < 1
    assert report["precisions"][MIXED]["worst_block"] < 0.1 * fp16["worst_block"]
    page = (tmp_path / "precision.md").read_text()
    assert "Emulated on the CPU" in page
    assert report["decision"] in page
    assert cv2.imread(str(tmp_path / "worst_fp16.png")).shape == (288, 960, 3)


def test_a_silent_clip_needs_speech(sample_speech: Path) -> None:
    nothing = np.zeros(0, np.float32)
    silent = Footage(np.zeros((0, 256, 256, 3), np.uint8), nothing, nothing, nothing, nothing, nothing, [], 0)
    with pytest.raises(ValueError, match=r"a\.mp4 has no sound: give a file with speech \(--speech\)"):
        _sound("a.mp4", silent, None)
    assert len(_sound("a.mp4", silent, sample_speech)) == pytest.approx(7.9 * 16_000, rel=0.01)
    assert _sound("a.mp4", dataclasses.replace(silent, sound=np.ones(5, np.float32)), sample_speech).sum() == 5


def test_a_missing_clip_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "precision", str(tmp_path / "no.mp4"), "-o", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("insync export: ")
    assert printed.endswith("no.mp4 does not exist\n")
    assert not (tmp_path / "out").exists()
