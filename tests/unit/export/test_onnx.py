"""ONNX export: graphs match PyTorch, graphs that differ are refused, and the committed files match the manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from insync.core.spec import MODELS
from insync.export.cli import main
from insync.export.onnx import MANIFEST, _check, export_onnx, feeds_of, real_crops
from insync.network.model import LipSync
from insync.network.served import SERVED_GRAPHS, ParityError, read_weights


def _network() -> LipSync:
    torch.manual_seed(3)
    network = LipSync().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # all different, as after training
            parameter.add_(0.01 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                buffer.normal_()
    return network


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[LipSync, Path]:
    root = Path(__file__).resolve().parents[3]
    out = tmp_path_factory.mktemp("repository")
    network = _network()
    export_onnx(network, out, root / "samples" / "sample.mp4", root / "model_repository" / "lipsync_face" / "1")
    return network, out


def test_graphs_have_the_specified_tensors(exported: tuple[LipSync, Path]) -> None:
    for name in SERVED_GRAPHS:
        graph = onnx.load(str(exported[1] / name / "1" / "model.onnx")).graph
        for values, tensors in ((graph.input, MODELS[name].inputs), (graph.output, MODELS[name].outputs)):
            shapes = [tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:]) for value in values]
            assert [value.name for value in values] == [tensor.name for tensor in tensors]
            assert shapes == [tensor.shape for tensor in tensors]
            assert all(value.type.tensor_type.shape.dim[0].dim_param for value in values)  # the batch is free


def test_graphs_contain_no_source_paths(exported: tuple[LipSync, Path]) -> None:
    for name in SERVED_GRAPHS:
        data = (exported[1] / name / "1" / "model.onnx").read_bytes()
        assert b"site-packages" not in data
        assert b".py" not in data


def test_weights_are_read_back(exported: tuple[LipSync, Path]) -> None:
    network, repository = exported
    again = read_weights(repository)
    mel, crop = torch.rand(2, 80, 40) * 2 - 1, torch.rand(2, 3, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(again.code(mel), network.code(mel), rtol=1e-4, atol=1e-4)
        for a, b in zip(again.source(crop), network.source(crop), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_changed_weight_is_refused(
    exported: tuple[LipSync, Path], root: Path, repository: Path, tmp_path: Path
) -> None:
    network, out = exported
    proto = onnx.load(str(out / "lipsync_mixer" / "1" / "model.onnx"))
    weight = next(i for i in proto.graph.initializer if i.name == "alignment.style.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    onnx.save(proto, str(tmp_path / "changed.onnx"))
    feeds = feeds_of(network, real_crops(root / "samples" / "sample.mp4", repository / "lipsync_face" / "1", 8))
    errors = _check(
        out / "lipsync_mixer" / "1" / "model.onnx",
        "lipsync_mixer",
        feeds["lipsync_mixer"],
        SERVED_GRAPHS["lipsync_mixer"](network).eval(),
    )
    assert max(errors.values()) < 1e-4
    with pytest.raises(ParityError, match=r"STYLE differs from PyTorch by .*, must be at most 0\.001"):
        _check(
            tmp_path / "changed.onnx",
            "lipsync_mixer",
            feeds["lipsync_mixer"],
            SERVED_GRAPHS["lipsync_mixer"](network).eval(),
        )


def test_committed_graphs_are_those_of_the_manifest(repository: Path) -> None:
    manifest = json.loads((repository / MANIFEST).read_text())
    assert set(manifest["graphs"]) == set(SERVED_GRAPHS)
    for name, record in manifest["graphs"].items():
        data = (repository / name / "1" / "model.onnx").read_bytes()
        assert hashlib.sha256(data).hexdigest() == record["sha256"], f"{name} was not exported with this manifest"
    read_weights(repository)


def test_unfinished_run_is_reported(tmp_path: Path, sample_clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["onnx", str(tmp_path), "--crops", str(sample_clip)]) == 1
    assert "speech.pt, renderer.pt, occlusion.pt is not in the run's folder" in capsys.readouterr().err


def test_video_without_a_face_is_refused(tmp_path: Path, repository: Path) -> None:
    import av

    path = tmp_path / "black.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((120, 160, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="shows no face"):
        real_crops(path, repository / "lipsync_face" / "1", 2)
