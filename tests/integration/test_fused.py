"""The fused pipeline gives the same results as the unfused one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tests.integration.conftest import Raw, jpeg, octets

from insync.core.spec import ALL_MODELS, ENSEMBLES, MODELS
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.processes import processes

pytestmark = pytest.mark.triton

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def both(raw: Raw, raw_unfused: Raw, images: list[Image]) -> list[tuple[Raw, NDArray[np.object_]]]:
    """Return clients of the fused and the unfused server, with the same person registered in each."""
    frames = np.array([jpeg(image) for image in images[::6]], np.object_)
    return [
        (profile, np.array([profile("lipsync_twin", FRAMES=frames)["TWIN"].tobytes()], np.object_))
        for profile in (raw, raw_unfused)
    ]


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("hinted", [False, True])
def test_the_same_responses(
    both: list[tuple[Raw, NDArray[np.object_]]],
    images: list[Image],
    audio: NDArray[np.float32],
    ensemble: str,
    hinted: bool,
) -> None:
    given: dict[str, Any] = {"FRAME": octets(jpeg(images[3])), "AUDIO": audio}
    if hinted:
        given["FACE_HINT"] = np.array([400, 100, 900, 600], np.float32)
    fused, unfused = (profile(ensemble, TWIN=twin, **given) for profile, twin in both)
    assert fused.keys() == unfused.keys() == {tensor.name for tensor in MODELS[ensemble].outputs}
    assert fused["CONFIDENCE"][0] > 0.5
    for name, value in fused.items():
        if name == "SYNCED":  # a file, in which one level of one pixel changes bytes
            assert abs(len(value) - len(unfused[name])) < 0.02 * len(value)
        else:
            np.testing.assert_allclose(value.astype(float), unfused[name].astype(float), rtol=1e-3, atol=1.5)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_the_same_errors(
    both: list[tuple[Raw, NDArray[np.object_]]], photo: NDArray[np.uint8], audio: NDArray[np.float32], ensemble: str
) -> None:
    header_only = np.concatenate([photo[:700], np.zeros(3000, np.uint8)])
    unknown = np.array(["0" * 32], np.object_)
    for spoiled in ({"FRAME": header_only}, {"TWIN": unknown}, {"AUDIO": np.full_like(audio, np.nan)}):
        errors = []
        for profile, twin in both:
            with pytest.raises(triton.InferenceServerException) as caught:
                profile(ensemble, **{"FRAME": photo, "AUDIO": audio, "TWIN": twin, **spoiled})
            errors.append((caught.value.status(), caught.value.message()))
        assert errors[0] == errors[1]


def test_a_batch_in_one_request(
    raw: Raw, photo: NDArray[np.uint8], audio: NDArray[np.float32], twin: NDArray[np.object_]
) -> None:
    """One frame with three sounds; each has its own response."""
    sounds = [audio, 0 * audio, audio[::-1].copy()]
    samples = [raw.inputs("lipsync_patch", {"FRAME": photo, "AUDIO": sound, "TWIN": twin}) for sound in sounds]
    inputs = []
    for name, kind, value in (
        ("FRAME", "UINT8", np.repeat(photo[None], len(sounds), axis=0)),
        ("AUDIO", "FP32", np.stack(sounds)),
        ("TWIN", "BYTES", np.repeat(twin[None], len(sounds), axis=0)),
    ):
        inputs.append(triton.InferInput(name, list(value.shape), kind))
        inputs[-1].set_data_from_numpy(value)
    together = raw.client.infer("lipsync_patch", inputs, client_timeout=60)
    alone = [raw.client.infer("lipsync_patch", sample, client_timeout=60) for sample in samples]
    for tensor in MODELS["lipsync_patch"].outputs:
        got = together.as_numpy(tensor.name).astype(float)
        expected = np.concatenate([one.as_numpy(tensor.name) for one in alone]).astype(float)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1.5)
    mouths = together.as_numpy("MOUTH")
    assert np.abs(mouths[0] - mouths[1]).max() > 0.05


def test_only_the_requested_outputs(raw: Raw, photo: NDArray[np.uint8], audio: NDArray[np.float32]) -> None:
    """The twin is unknown: FACE does not need it."""
    inputs = raw.inputs(
        "lipsync_frame", {"CHECKED_FRAME": photo, "CHECKED_AUDIO": audio, "CHECKED_TWIN": np.zeros(32, np.uint8)}
    )
    answer = raw.client.infer("lipsync_frame", inputs, outputs=[triton.InferRequestedOutput("FACE")], client_timeout=60)
    assert answer.as_numpy("FACE").shape == (1, 4)
    assert answer.as_numpy("PATCH") is None
    with pytest.raises(triton.InferenceServerException, match="is not in the twin store"):
        raw.client.infer("lipsync_frame", inputs, client_timeout=60)


def test_steps_have_no_processes_of_their_own(server: EmbeddedServer, unfused_server: EmbeddedServer) -> None:
    fused, unfused = (list(processes(one.pid).values()) for one in (server, unfused_server))
    assert set(fused) == {name for name in server.models if ALL_MODELS[name].backend != "ensemble"}
    assert set(unfused) == {name for name in MODELS if MODELS[name].backend != "ensemble"}
    assert fused.count("lipsync_guard") == 1  # it counts what is admitted


def test_the_number_of_processes_is_set_by_the_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("INSYNC_PROCESSES", "3")
        with EmbeddedServer(twin_store=folder / "twins") as running:
            assert list(processes(running.pid).values()).count("lipsync_frame") == 3
