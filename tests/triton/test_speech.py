"""With the committed weights: the mouth moves with the speech, differs with the speech, and rests in silence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from insync.client import Client
from insync.client.audio import slices
from insync.client.media import AudioFile
from insync.ensemble.face import FaceFinder
from insync.ensemble.mouth import MouthBasis, opening
from insync.ensemble.server import EmbeddedServer
from insync.ensemble.spec import SAMPLE_RATE_HZ

pytestmark = pytest.mark.triton

Floats = NDArray[np.float32]
FRAMES = 100


@pytest.fixture(scope="module")
def basis(repository: Path) -> MouthBasis:
    return MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")


@pytest.fixture(scope="module")
def speak(server: EmbeddedServer, images: list[Any], repository: Path, basis: MouthBasis) -> Any:
    """Dubs the sample's frames; gives the openings that were predicted, and those that FaceMesh sees in the result."""
    finder = FaceFinder(repository / "lipsync_face" / "1")
    frames = images[:FRAMES]

    def run(audio: Floats) -> tuple[Floats, Floats]:
        async def stream() -> list[Any]:
            async with Client(server.grpc_url) as client:
                twin = await client.register(frames[::4])
                return [s async for s in client.stream(frames, slices(audio, SAMPLE_RATE_HZ), twin=twin, fps=25)]

        predicted, seen = [], []
        for synced in asyncio.run(stream()):
            face = finder.find(synced.image)
            assert face is not None
            predicted.append(float(synced.mouth @ basis.opening_row))
            seen.append(opening(basis.shape(face.landmarks)))
        return np.array(predicted, np.float32), np.array(seen, np.float32)

    return run


@pytest.fixture(scope="module")
def speech(root: Path) -> Floats:
    return np.concatenate(list(AudioFile(root / "samples" / "speech.wav").speech()))


def test_the_mouth_follows_the_speech_and_rests_in_silence(speak: Any, speech: Floats) -> None:
    predicted, seen = speak(speech)
    assert len(seen) == FRAMES
    assert predicted.std() > 0.01  # distances of the outer eye corners
    assert np.corrcoef(predicted, seen)[0, 1] > 0.5

    at_rest, resting = speak(np.zeros_like(speech))
    assert at_rest.std() < 0.1 * predicted.std()
    assert resting.std() < 0.5 * seen.std()

    other, other_seen = speak(np.ascontiguousarray(speech[::-1]))
    assert abs(np.corrcoef(other, predicted)[0, 1]) < 0.6
    assert np.corrcoef(other, other_seen)[0, 1] > np.corrcoef(predicted, other_seen)[0, 1]
