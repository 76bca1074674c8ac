"""A gRPC server on this machine with Triton's protocol, which takes a bright square for a face."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2
import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from insync.client import Client
from insync.client.streaming.stream import SyncedFrame

GREEN = (10, 200, 30)
TWIN = "0123456789abcdef" * 2


class Speaker(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Responses like those of the ensembles. The first value of the mouth code is the mean of the audio window."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.busy = self.most_busy = 0
        self.before: Callable[[int], None] = lambda number: None
        self.change: Callable[[dict[str, np.ndarray[Any, Any]]], None] = lambda outputs: None
        self.code: grpc.StatusCode | None = None
        self.cancelled = 0

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        context.add_callback(lambda: self._ended(context))
        arrays: dict[str, Any] = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            kind = {"UINT8": np.uint8, "FP32": np.float32}.get(tensor.datatype)
            arrays[tensor.name] = raw if kind is None else np.frombuffer(raw, kind).reshape(tensor.shape)
        with self.lock:
            number = len(self.requests)
            self.requests.append({"model": request.model_name, **arrays})
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            self.before(number)
            if self.code is not None:
                context.abort(self.code, "twin is unknown")
            if request.model_name == "lipsync_twin":
                report = json.dumps({"frames": int(request.inputs[0].shape[0])})
                return answer(request.model_name, {"TWIN": TWIN, "REPORT": report})
            outputs = speak(arrays)
            if request.model_name == "lipsync":
                outputs["SYNCED"] = arrays["FRAME"]
                del outputs["PATCH"], outputs["TRANSFORM"]
            self.change(outputs)
            return answer(request.model_name, outputs)
        finally:
            with self.lock:
                self.busy -= 1

    def _ended(self, context: Any) -> None:
        if not context.is_active() and context.code() is None:
            self.cancelled += 1


def speak(arrays: dict[str, Any]) -> dict[str, Any]:
    image = cv2.imdecode(arrays["FRAME"][0], cv2.IMREAD_GRAYSCALE)
    bright = cv2.boundingRect((image > 200).astype(np.uint8))
    x, y, width, height = bright
    patch = np.zeros((256, 256, 4), np.uint8)
    patch[..., :3] = GREEN
    cv2.circle(patch, (128, 160), 30, (*GREEN, 255), -1)
    outputs = {"PATCH": patch[None], "MOUTH": np.full((1, 12), arrays["AUDIO"].mean(), np.float32)}
    if width < 8:
        transform, confidence, face = np.eye(2, 3, dtype=np.float32), 0.0, np.zeros((1, 4), np.float32)
    else:
        scale_x, scale_y = 128 / width, 128 / height
        centre = (x + (width - 1) / 2, y + (height - 1) / 2)
        transform = np.array(
            [[scale_x, 0, 127.5 - scale_x * centre[0]], [0, scale_y, 127.5 - scale_y * centre[1]]], np.float32
        )
        confidence, face = 0.95, np.array([[x, y, x + width, y + height]], np.float32)
    return {
        **outputs,
        "TRANSFORM": transform[None],
        "CONFIDENCE": np.array([[confidence]], np.float32),
        "FACE": face,
    }


def answer(model: str, outputs: dict[str, Any]) -> Any:
    response = service_pb2.ModelInferResponse(model_name=model)
    for name, value in outputs.items():
        tensor = response.outputs.add()
        tensor.name = name
        array = np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else value
        tensor.datatype = {"uint8": "UINT8", "float32": "FP32"}[str(array.dtype)]
        tensor.shape.extend(array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response


@contextmanager
def serving(speaker: Speaker) -> Iterator[tuple[str, grpc.Server]]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(16), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(speaker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        server.stop(None).wait()


def scene(x: int, y: int = 120, side: int = 90, size: tuple[int, int] = (640, 360)) -> np.ndarray[Any, Any]:
    """Return a dark frame with a bright square as face; side 0: no face."""
    rng = np.random.default_rng(0)
    image = rng.integers(20, 60, (size[1], size[0], 3), np.uint8)
    image[y : y + side, x : x + side] = 240
    return image


SILENCE = np.zeros(16_000, np.float32)


async def collect(address: str, frames: Any, audio: Any = SILENCE, **options: Any) -> list[SyncedFrame]:
    async with Client(address) as client:
        stream = client.stream(frames, audio, twin=TWIN, **options)
        return [synced async for synced in stream]
