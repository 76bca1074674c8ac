"""Export of the network's graphs as ONNX into the model repository, with a check against PyTorch on real crops.

The ONNX files are the only committed form of the weights: `insync.network.served.read_weights` loads them into PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.export import Dim

from insync.core import spec
from insync.core.spec import MEL_BANDS, MEL_FRAMES, MODELS, MOUTH, REFERENCES
from insync.ensemble.models.face import FaceFinder, take_crop
from insync.network.adaat import adaat
from insync.network.copying import pixels_of
from insync.network.model import EncoderGraph, LipSync, MixerGraph
from insync.network.served import SERVED_GRAPHS, ParityError

OPSET = 18
FLOAT_TOLERANCE = 1e-3  # largest error over the tensor's largest magnitude
PATCH_TOLERANCE = 1.0  # levels of 255: both sides round
MANIFEST = "manifest.json"


Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class GraphRecord:
    """The manifest's record of one graph."""

    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    opset: int
    sha256: str
    megabytes: float
    largest_error: dict[str, float]


def real_crops(video: Path, face_models: Path, count: int) -> npt.NDArray[np.float32]:
    """Return face-aligned crops of a video, float32 [count, 3, 256, 256] in [0, 1], evenly spaced; a short video's repeat.

    Raises:
        ValueError: the video shows no face.
    """
    finder, crops = FaceFinder(face_models), []
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            face = finder.find(image)
            if face is not None:
                crops.append(take_crop(image, face.transform))
    if not crops:
        raise ValueError(f"{video.name} shows no face: the check needs a video of a face")
    chosen = np.stack([crops[i] for i in np.linspace(0, len(crops) - 1, count).astype(int)])
    return np.ascontiguousarray(chosen.transpose(0, 3, 1, 2), np.float32) / 255


def export_onnx(network: LipSync, repository: Path, video: Path, face_models: Path) -> dict[str, GraphRecord]:
    """Write `<model>/1/model.onnx` for each graph, checked, and `manifest.json`.

    Nothing is written into the repository before every graph has passed its check.

    Args:
        network: the trained network.
        repository: the Triton model repository.
        video: a video of a face; its crops are the check's input.
        face_models: folder of the face networks.

    Raises:
        ParityError: a graph's outputs differ from PyTorch's by more than the tolerance.
        ValueError: the video shows no face.
    """
    network = network.eval()
    feeds = feeds_of(network, real_crops(video, face_models, 8))
    records: dict[str, GraphRecord] = {}
    with tempfile.TemporaryDirectory() as scratch:
        files: dict[str, bytes] = {}
        for name, graph in SERVED_GRAPHS.items():
            path = Path(scratch) / f"{name}.onnx"
            _export(graph(network).eval(), name, feeds[name], path)
            errors = _check(path, name, feeds[name], graph(network).eval())
            files[name] = path.read_bytes()
            records[name] = _record(path, errors)
        for name, data in files.items():
            folder = repository / name / "1"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.onnx").write_bytes(data)
    manifest = {
        "torch": torch.__version__.split("+")[0],
        "onnxruntime": ort.__version__,
        "graphs": {name: asdict(record) for name, record in records.items()},
    }
    (repository / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return records


@torch.no_grad()
def feeds_of(network: LipSync, crops: npt.NDArray[np.float32]) -> dict[str, Arrays]:
    """Return each graph's inputs, computed by the graphs before it from real crops, so that they are realistic."""
    rng = np.random.default_rng(0)
    batch = 3
    mel = rng.uniform(-1, 0.6, (batch, MEL_BANDS, MEL_FRAMES)).astype(np.float32)
    codes = rng.normal(0, 1, (batch, REFERENCES, MOUTH)).astype(np.float32)

    def some(tensor: spec.Tensor, spread: float) -> Tensor:
        return torch.from_numpy(rng.normal(0, spread, (batch, *tensor.shape)).astype(np.float32))

    references = np.stack([crops[i : i + REFERENCES] for i in range(batch)])
    frames = torch.from_numpy(crops[-batch:])
    source, pose, speech = EncoderGraph(network)(frames, torch.from_numpy(mel))
    reference, identity = network.reference(torch.from_numpy(references), torch.from_numpy(codes))
    head, neutral = some(spec.HEAD, 0.3), some(spec.NEUTRAL, 0.1)
    affine, style, _, places = MixerGraph(network)(pose, identity, speech, head, neutral)
    tensors: dict[str, dict[str, Tensor]] = {
        "lipsync_encoder": {"CROP": frames, "MEL": torch.from_numpy(mel)},
        "lipsync_reference": {"CROPS": torch.from_numpy(references), "CODES": torch.from_numpy(codes)},
        "lipsync_mixer": {
            "POSE": pose,
            "IDENTITY": identity,
            "SPEECH": speech,
            "HEAD": head,
            "NEUTRAL": neutral,
        },
        "lipsync_decoder": {
            "SOURCE": source,
            "ALIGNED": adaat(reference, affine),
            "STYLE": style,
            "PIXELS": pixels_of(torch.from_numpy(references) * 255).round().to(torch.uint8),
            "REFERENCE_PLACES": some(spec.REFERENCE_PLACES, 0.4),
            "PLACES": places,
        },
    }
    return {name: {key: value.numpy() for key, value in part.items()} for name, part in tensors.items()}


def _export(graph: nn.Module, name: str, feed: Arrays, path: Path) -> None:
    model = MODELS[name]
    arguments = tuple(torch.from_numpy(feed[tensor.name]) for tensor in model.inputs)
    batch = Dim("batch", min=1, max=1024)
    with warnings.catch_warnings():  # the exporter warns about its own internals
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            arguments,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in model.inputs],
            output_names=[tensor.name for tensor in model.outputs],
            dynamic_shapes=tuple({0: batch} for _ in arguments),
        )
    assert program is not None  # dynamo=True always returns a program
    program.save(str(path), external_data=False)
    proto = onnx.load(str(path))
    for (
        node
    ) in proto.graph.node:  # each node's origin in PyTorch: contains machine paths, and is a third of a small file
        del node.metadata_props[:]
        node.doc_string = ""
    for value in proto.graph.value_info:
        del value.metadata_props[:]
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


def _check(path: Path, name: str, feed: Arrays, graph: nn.Module) -> dict[str, float]:
    """Return each output's largest error against PyTorch, at batch sizes 1 and 3."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    errors: dict[str, float] = {}
    for batch in (1, 3):
        part = {key: value[:batch] for key, value in feed.items()}
        with torch.no_grad():
            expected = graph(*(torch.from_numpy(part[tensor.name]) for tensor in MODELS[name].inputs))
        for tensor, want, got in zip(
            MODELS[name].outputs,
            expected if isinstance(expected, tuple) else (expected,),
            session.run(None, part),
            strict=True,
        ):
            error = _error(tensor.name, want.numpy(), got)
            errors[tensor.name] = max(error, errors.get(tensor.name, 0.0))
    for output, error in errors.items():
        allowed = PATCH_TOLERANCE if output == "PATCH" else FLOAT_TOLERANCE
        if not error <= allowed:
            raise ParityError(f"{name}: {output} differs from PyTorch by {error:.3g}, must be at most {allowed}")
    return errors


def _error(output: str, want: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    if want.shape != got.shape or want.dtype != got.dtype:
        raise ParityError(f"{output} is {got.dtype} {got.shape}, must be {want.dtype} {want.shape} as in PyTorch")
    difference = float(np.abs(want.astype(np.float64) - got.astype(np.float64)).max())
    return difference if output == "PATCH" else difference / max(1e-6, float(np.abs(want).max()))


def _record(path: Path, errors: dict[str, float]) -> GraphRecord:
    proto = onnx.load(str(path))

    def shapes(values: Any) -> dict[str, list[int | str]]:
        return {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}

    data = path.read_bytes()
    return GraphRecord(
        shapes(proto.graph.input),
        shapes(proto.graph.output),
        proto.opset_import[0].version,
        hashlib.sha256(data).hexdigest(),
        round(len(data) / 1e6, 3),
        {key: float(f"{value:.2g}") for key, value in errors.items()},
    )
