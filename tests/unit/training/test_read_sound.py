"""Reading of footage's audio: the client's way to mono, and the track's start time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from insync.client.media.audio_reader import AudioFile
from insync.core.spec import SAMPLE_RATE_HZ
from insync.training.data.audio import read_sound


def write(path: Path, right: float, start: int = 0, rate_hz: int = 44_100) -> Path:
    """Write noise with a click at 0.5 s; the right channel is the left one times `right`."""
    left = 0.05 * np.random.default_rng(1).standard_normal(2 * rate_hz)
    left[rate_hz // 2 - 8 : rate_hz // 2 + 9] += 0.7 * np.hanning(17)
    samples = np.stack([left, right * left], axis=1).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac" if path.suffix == ".mkv" else "pcm_s16le", rate=rate_hz, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_an_inverted_channel_does_not_silence_footage(tmp_path: Path) -> None:
    right, _ = read_sound(write(tmp_path / "right.wav", 1))
    inverted, _ = read_sound(write(tmp_path / "inverted.wav", -1))
    assert right is not None
    assert inverted is not None
    np.testing.assert_allclose(inverted, right, atol=2e-4)
    assert right.std() > 0.03
    assert int(np.argmax(np.abs(inverted))) == pytest.approx(0.5 * SAMPLE_RATE_HZ, abs=2)


def test_training_hears_what_the_client_speaks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 0.3)
    sound, begins_s = read_sound(path)
    assert sound is not None
    assert sound.dtype == np.float32
    assert begins_s == 0
    spoken = np.concatenate(list(AudioFile(path).speech()))
    np.testing.assert_array_equal(sound[: len(spoken)], spoken)


def test_the_start_of_the_track_is_returned_and_not_applied(tmp_path: Path) -> None:
    sound, begins_s = read_sound(write(tmp_path / "late.mkv", 1, start=22_050))
    assert begins_s == pytest.approx(0.5, abs=0.001)
    assert sound is not None
    assert int(np.argmax(np.abs(sound))) == pytest.approx(0.5 * SAMPLE_RATE_HZ, abs=2)
