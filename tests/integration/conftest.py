"""One real server for all tests of this folder, and a minimal client for it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray

from insync.core.images import encode_jpeg
from insync.core.spec import ALL_MODELS, WINDOW_SAMPLES
from insync.ensemble.server.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
_DTYPES = {"STRING": "BYTES"}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Start the embedded server, with a twin store of its own."""
    folder = tmp_path_factory.mktemp("server")
    with EmbeddedServer(twin_store=folder / "twins", log=folder / "server.log") as running:
        yield running


@pytest.fixture(scope="session")
def unfused_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Start another, with the unfused pipeline: a model for each step of a frame, as in a fleet."""
    folder = tmp_path_factory.mktemp("unfused")
    log = folder / "server.log"
    with EmbeddedServer(twin_store=folder / "twins", log=log, unfused=True) as running:
        yield running


class Raw:
    """Raw inference by name: arrays in, arrays out. Batched models take samples without their batch dimension."""

    def __init__(self, url: str) -> None:
        self.client = triton.InferenceServerClient(url)

    def inputs(self, model: str, values: dict[str, Any]) -> list[Any]:
        spec = ALL_MODELS[model]
        tensors = []
        for tensor in spec.inputs:
            if tensor.name in values:
                value = np.asarray(values[tensor.name])
                value = value[None] if spec.max_batch_size else value
                made = triton.InferInput(tensor.name, list(value.shape), _DTYPES.get(tensor.dtype, tensor.dtype))
                made.set_data_from_numpy(value)
                tensors.append(made)
        return tensors

    def outputs(self, model: str, result: Any) -> dict[str, NDArray[Any]]:
        spec = ALL_MODELS[model]
        arrays = {tensor.name: result.as_numpy(tensor.name) for tensor in spec.outputs}
        return {name: value[0] if spec.max_batch_size else value for name, value in arrays.items()}

    def __call__(self, model: str, **values: Any) -> dict[str, NDArray[Any]]:
        """Run one inference; raise if it fails."""
        return self.outputs(model, self.client.infer(model, self.inputs(model, values), client_timeout=60))

    def together(self, model: str, requests: list[dict[str, Any]]) -> list[Any]:
        """Run many at once, so that the server can batch them; return the outputs or the exception of each."""
        done: queue.Queue[tuple[int, Any]] = queue.Queue()
        for k, values in enumerate(requests):

            def callback(result: Any, error: Any, k: int = k) -> None:
                done.put((k, error if error is not None else self.outputs(model, result)))

            self.client.async_infer(model, self.inputs(model, values), callback, client_timeout=60)
        answers = dict(done.get(timeout=90) for _ in requests)
        return [answers[k] for k in range(len(requests))]


@pytest.fixture(scope="session")
def raw(server: EmbeddedServer) -> Iterator[Raw]:
    made = Raw(server.grpc_url)
    yield made
    made.client.close()


@pytest.fixture(scope="session")
def raw_unfused(unfused_server: EmbeddedServer) -> Iterator[Raw]:
    """Return a client of `unfused_server`."""
    made = Raw(unfused_server.grpc_url)
    yield made
    made.client.close()


@pytest.fixture(scope="session")
def images() -> list[NDArray[np.uint8]]:
    """Return the first 32 frames of the sample clip, RGB."""
    with av.open(str(ROOT / "samples" / "sample.mp4")) as clip:
        return [frame.to_ndarray(format="rgb24") for _, frame in zip(range(32), clip.decode(video=0), strict=False)]


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image as JPEG."""
    return encode_jpeg(image, 95)


def octets(data: bytes) -> NDArray[np.uint8]:
    """Return a file's bytes as the tensor FRAME."""
    return np.frombuffer(data, np.uint8)


@pytest.fixture(scope="session")
def photo(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return FRAME with a face."""
    return octets(jpeg(images[0]))


@pytest.fixture(scope="session")
def audio() -> NDArray[np.float32]:
    """Return AUDIO with noise."""
    return (np.random.default_rng(0).standard_normal(WINDOW_SAMPLES) * 0.1).astype(np.float32)


@pytest.fixture(scope="session")
def twin(raw: Raw, images: list[NDArray[np.uint8]]) -> NDArray[np.object_]:
    """Register the person in the sample clip; return TWIN."""
    made = raw("lipsync_twin", FRAMES=np.array([jpeg(image) for image in images[::6]], np.object_))
    return np.array([made["TWIN"].tobytes()], np.object_)
