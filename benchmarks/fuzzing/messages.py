"""Messages for fuzzing, whose fields need not agree with each other, and well-formed parts to corrupt."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from insync.core import spec
from insync.core.images import encode_jpeg, encode_png

PUBLIC = ("lipsync", "lipsync_patch", "lipsync_twin")
WIDTH, HEIGHT = 320, 180  # of the well-formed frame


@dataclass(frozen=True)
class Sent:
    """One tensor as it is sent: datatype, shape and data need not agree."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


Inputs = dict[str, Sent]


@dataclass(frozen=True)
class Infer:
    """A unary request, or several on one stream; either may be cancelled before its response."""

    request: pb.ModelInferRequest
    stream: int = 0  # messages on a stream; 0 is unary
    cancel_after_s: float | None = None


@dataclass(frozen=True)
class Raw:
    """Bytes in place of a protobuf message."""

    method: str
    data: bytes


@dataclass(frozen=True)
class Http:
    """A request to the HTTP port."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tcp:
    """Bytes on a TCP connection that is then closed."""

    port: str  # "grpc" or "http"
    data: bytes


Call = Infer | Raw | Http | Tcp


def strings(*values: bytes) -> bytes:
    """Return the content of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def png_with(width: int, height: int, data: bytes, more: bytes = b"") -> bytes:
    """Return a grey PNG whose header has this size and whose image data is `data`, whether or not they agree."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


EXTREMES = (0.0, -1.0, 1e9, -1e9, 1e30, 3.4e38, 1e-40, np.nan, np.inf, -np.inf)
LABELS = (b"", b"fuzzing", b"a" * 65, b"\xff\xfe", b"\0" * 8, b"a" * 100_000, b"canary", b"%s%n")  # of live streams


def pick(rng: Generator, items: Sequence[Any]) -> Any:
    """Return one of the items at random."""
    return items[int(rng.integers(len(items)))]


class Kit:
    """Well-formed parts of requests.

    Args:
        image: uint8 [H, W, 3] RGB with a face.
        twin: a registered id; it is only sent as it is, or changed so that it is no longer the same id.
        models: names of the models that the server serves.

    Attributes:
        inner: those of the models that clients do not call.
    """

    def __init__(self, image: NDArray[np.uint8], twin: str, models: Sequence[str]) -> None:
        small = np.asarray(cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        self.twin = twin.encode()
        self.inner = tuple(name for name in models if name not in PUBLIC)
        self.jpeg = encode_jpeg(small, 95)
        self.progressive = bytes(cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1])
        self.png = encode_png(small[::2, ::2])
        self.audio = (np.random.default_rng(0).standard_normal(spec.WINDOW_SAMPLES) * 0.1).astype(np.float32)
        rows = [zlib.compress(bytes((4096 + 1) * 4096), 9)]
        self.bomb = png_with(4096, 4096, rows[0])  # as large as allowed, of 16 kB

    def frame(self, data: bytes) -> Sent:
        """Return the tensor FRAME."""
        return Sent("UINT8", (1, len(data)), data)

    def good(self, model: str) -> Inputs:
        """Return well-formed inputs of a model."""
        known = {
            "FRAME": self.frame(self.jpeg),
            "AUDIO": Sent("FP32", (1, spec.WINDOW_SAMPLES), self.audio.tobytes()),
            "TWIN": Sent("BYTES", (1, 1), strings(self.twin)),
            "FACE_HINT": Sent("FP32", (1, 4), np.array([90, 20, 200, 160], np.float32).tobytes()),
            "STREAM": Sent("BYTES", (1, 1), strings(b"fuzzing")),
            "RATE": Sent("FP32", (1, 1), np.array([25], np.float32).tobytes()),
            "FRAMES": Sent("BYTES", (1,), strings(self.jpeg)),
            "IMAGE": Sent("UINT8", (1, 64, 96, 3), bytes(64 * 96 * 3)),
        }
        octets = Sent("UINT8", (1, len(self.twin)), self.twin)
        known |= {"CHECKED_FRAME": known["FRAME"], "CHECKED_AUDIO": known["AUDIO"], "CHECKED_TWIN": octets}
        inputs = {}
        if model == "lipsync_twin_features":
            return {"TWIN": octets}
        for tensor in spec.ALL_MODELS[model].inputs:
            if tensor.name == "FORGET":
                continue  # only ever sent alone
            shape = (1, *tensor.shape)
            inputs[tensor.name] = known.get(tensor.name) or Sent(
                tensor.dtype, shape, bytes(int(np.prod(shape)) * (4 if tensor.dtype == "FP32" else 1))
            )
        return inputs


def request(model: str, inputs: Inputs, version: str = "") -> pb.ModelInferRequest:
    """Return the request message."""
    made = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, sent in inputs.items():
        made.inputs.add(name=name, datatype=sent.datatype, shape=[int(n) for n in sent.shape])
        made.raw_input_contents.append(sent.data)
    return made
