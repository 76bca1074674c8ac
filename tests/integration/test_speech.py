"""With the committed weights: the mouth moves with the speech, differs with the speech, and rests in silence."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.client import Client
from insync.client.media.audio_reader import AudioFile
from insync.client.streaming.audio_windows import slices
from insync.core.mouth import MouthBasis
from insync.core.spec import SAMPLE_RATE_HZ
from insync.ensemble.server.embedded import EmbeddedServer

pytestmark = pytest.mark.triton

Floats = NDArray[np.float32]
FRAMES = 100


@pytest.fixture(scope="module")
def basis(repository: Path) -> MouthBasis:
    return MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")


@pytest.fixture(scope="module")
def speak(server: EmbeddedServer, sample_clip: Path) -> Any:
    """Return a function that dubs the sample's first frames; it returns the predicted mouth codes [N, 12] and the results at a quarter of the size."""
    with av.open(str(sample_clip)) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(clip.decode(video=0), FRAMES)]

    def run(audio: Floats) -> tuple[Floats, Floats]:
        async def stream() -> list[Any]:
            async with Client(server.grpc_url) as client:
                twin = await client.register(frames[::4])
                return [s async for s in client.stream(frames, slices(audio, SAMPLE_RATE_HZ), twin=twin, fps=25)]

        synced = asyncio.run(stream())
        return np.stack([s.mouth for s in synced]), np.stack([s.image[::4, ::4] for s in synced]).astype(np.float32)

    return run


@pytest.fixture(scope="module")
def speech(root: Path) -> Floats:
    return np.concatenate(list(AudioFile(root / "samples" / "speech.wav").speech()))


def test_the_mouth_moves_with_the_speech_and_rests_in_silence(speak: Any, speech: Floats, basis: MouthBasis) -> None:
    codes, pictures = speak(speech)
    resting, still = speak(np.zeros_like(speech))
    assert len(codes) == len(resting) == FRAMES
    aperture, at_rest = codes @ basis.aperture_row, resting @ basis.aperture_row
    assert aperture.std() > 0.01  # distances of the outer eye corners
    assert at_rest.std() < 0.1 * aperture.std()
    assert abs(float(at_rest.mean())) < 0.03
    # The further the predicted mouth is from rest, the more the picture differs from that of the mouth at rest.
    predicted = np.abs((codes - resting) * basis.deviation).sum(1)
    shown = np.abs(pictures - still).mean((1, 2, 3))
    assert np.corrcoef(predicted, shown)[0, 1] > 0.5

    other, _ = speak(np.ascontiguousarray(speech[::-1]))
    assert abs(np.corrcoef(other @ basis.aperture_row, aperture)[0, 1]) < 0.6
