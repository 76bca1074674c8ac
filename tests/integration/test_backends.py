"""The fallback backends in the server against the libraries in this process."""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from insync.core.spec import MODELS, WINDOW_SAMPLES
from insync.ensemble.models.face import take_crop
from insync.ensemble.models.log_mel import LogMel
from insync.ensemble.repository.locate import default_repository
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.security import admin_headers

pytestmark = pytest.mark.triton

GRAPHS = [model.name for model in MODELS.values() if model.backend == "onnxruntime"]


def random_inputs(model: str, seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    values = {t.name: (t, rng.uniform(0, 1, t.shape)) for t in MODELS[model].inputs}
    return {
        name: (value * 255).astype(np.uint8) if tensor.dtype == "UINT8" else value.astype(np.float32)
        for name, (tensor, value) in values.items()
    }


@pytest.mark.parametrize("model", GRAPHS)
def test_onnx_requests_sent_together_each_have_their_own_response(raw_unfused: Any, model: str) -> None:
    path = default_repository() / model / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    requests = [random_inputs(model, seed) for seed in range(5)]
    answers = raw_unfused.together(model, requests)
    for inputs, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, Exception), answer
        names = [tensor.name for tensor in MODELS[model].outputs]
        expected = session.run(names, {name: value[None] for name, value in inputs.items()})
        for name, value in zip(names, expected, strict=True):
            tolerance = 1 if value.dtype == np.uint8 else 1e-3 * max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(answer[name].astype(float), value[0].astype(float), atol=tolerance)


def test_onnx_requests_were_batched(raw_unfused: Any, unfused_server: EmbeddedServer) -> None:
    """Otherwise the test above would only compare single runs."""

    key = admin_headers(unfused_server.admin_key)

    def executions() -> tuple[int, int]:
        (statistics,) = raw_unfused.client.get_inference_statistics("lipsync_encoder", headers=key).model_stats
        return statistics.inference_count, statistics.execution_count

    inferences_before, runs_before = executions()
    raw_unfused.together("lipsync_encoder", [random_inputs("lipsync_encoder", seed) for seed in range(12)])
    for _ in range(100):  # the server counts a request a moment after its response
        inferences, runs = executions()
        if inferences >= inferences_before + 12:
            break
        time.sleep(0.05)
    assert inferences == inferences_before + 12
    assert runs < runs_before + 12


def test_align_of_frames_of_different_sizes_sent_together(raw_unfused: Any) -> None:
    rng = np.random.default_rng(0)
    requests = []
    for height, width in ((300, 400), (300, 400), (128, 640), (300, 400), (720, 1280)):
        image = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        matrix = np.array([[0.8, 0.1, -20], [-0.1, 0.8, 10]], np.float32)
        requests.append({"IMAGE": image, "TRANSFORM": matrix})
    for request, answer in zip(requests, raw_unfused.together("lipsync_align", requests), strict=True):
        assert not isinstance(answer, Exception), answer
        expected = take_crop(request["IMAGE"], request["TRANSFORM"])
        assert np.abs(answer["CROP"].transpose(1, 2, 0) * 255 - expected).mean() < 1.0


def test_preprocess_gives_picture_and_log_mel(raw_unfused: Any, photo: NDArray[np.uint8]) -> None:
    audio = (np.random.default_rng(1).standard_normal(WINDOW_SAMPLES) * 0.05).astype(np.float32)
    answer = raw_unfused("lipsync_preprocess", FRAME=photo, AUDIO=audio)
    expected = cv2.cvtColor(cv2.imdecode(photo, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(answer["IMAGE"].astype(int) - expected).mean() < 0.5
    np.testing.assert_allclose(answer["MEL"], LogMel(batch_size=1)(audio[None])[0], atol=1e-5)


def test_dali_continues_after_a_picture_that_it_cannot_decode(raw_unfused: Any, photo: NDArray[np.uint8]) -> None:
    audio = np.zeros(WINDOW_SAMPLES, np.float32)
    noise = np.frombuffer(b"\xff\xd8" + np.random.default_rng(2).bytes(500), np.uint8)
    good, bad = {"FRAME": photo, "AUDIO": audio}, {"FRAME": noise, "AUDIO": audio}
    answers = raw_unfused.together("lipsync_preprocess", [good, bad, good, bad, bad, good])
    for k, answer in enumerate(answers):
        assert isinstance(answer, Exception) == (k in (1, 3, 4)), (k, answer)
