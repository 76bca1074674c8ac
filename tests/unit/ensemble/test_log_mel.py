"""The log-mel front end against an independent NumPy one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from insync.core.spec import MEL_BANDS, MEL_FRAMES, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from insync.ensemble.models.log_mel import LogMel


def _slaney_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear to 1 kHz (15 mels), then 27 steps to every factor of 6.4."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))


def oracle(audio: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-mel of float32 [6400], from the formulas alone."""
    padded = np.pad(audio.astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(400) + 0.5) / 400)
    frames = np.stack([padded[160 * k : 160 * k + 400] * window for k in range(MEL_FRAMES)])
    power = np.abs(np.fft.rfft(frames, 512)) ** 2  # [40, 257]
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = _slaney_hz(np.linspace(0, top, MEL_BANDS + 2))
    hz = np.arange(257) * SAMPLE_RATE_HZ / 512
    rise = (hz[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hz[None]) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    mel: NDArray[np.float64] = (np.log(np.maximum(bank @ power.T, 1e-6)) + 4) / 9.8
    return mel


@pytest.fixture(scope="module")
def log_mel() -> LogMel:
    return LogMel(batch_size=4)


def test_equals_the_formulas(log_mel: LogMel) -> None:
    rng = np.random.default_rng(1)
    t = np.arange(WINDOW_SAMPLES) / SAMPLE_RATE_HZ
    sweep = 0.5 * np.sin(2 * np.pi * (200 * t + 8000 * t**2))
    noise = 0.1 * rng.standard_normal(WINDOW_SAMPLES)
    quiet = 1e-3 * rng.standard_normal(WINDOW_SAMPLES)
    audio = np.stack([sweep, noise, quiet]).astype(np.float32)
    mels = log_mel(audio)
    assert mels.shape == (3, MEL_BANDS, MEL_FRAMES)
    assert mels.dtype == np.float32
    for mel, samples in zip(mels, audio, strict=True):
        np.testing.assert_allclose(mel, oracle(samples), atol=2e-3)


def test_silence_is_minus_one_and_loud_speech_near_one(log_mel: LogMel) -> None:
    silence = log_mel(np.zeros((1, WINDOW_SAMPLES), np.float32))
    np.testing.assert_allclose(silence, -1.0, atol=0.02)
    loud = log_mel(np.random.default_rng(2).uniform(-1, 1, (1, WINDOW_SAMPLES)).astype(np.float32))
    assert 0.0 < loud.max() < 1.3


def test_any_number_of_windows_gives_the_same_as_one_by_one(log_mel: LogMel) -> None:
    audio = np.random.default_rng(3).standard_normal((9, WINDOW_SAMPLES)).astype(np.float32) * 0.1
    together = log_mel(audio)
    for k in (0, 3, 4, 8):
        np.testing.assert_array_equal(together[k], log_mel(audio[k : k + 1])[0])


def test_an_event_is_where_it_happens_in_time(log_mel: LogMel) -> None:
    audio = np.zeros((1, WINDOW_SAMPLES), np.float32)
    audio[0, 3200] = 1.0  # 200 ms: window 20
    assert int(log_mel(audio)[0].mean(axis=0).argmax()) == 20


@pytest.mark.parametrize("shape", [(6400,), (2, 6399), (0, 3)])
def test_other_shapes_are_refused(log_mel: LogMel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[N, 6400\]"):
        log_mel(np.zeros(shape, np.float32))


def test_no_windows_give_no_spectrograms(log_mel: LogMel) -> None:
    assert log_mel(np.zeros((0, WINDOW_SAMPLES), np.float32)).shape == (0, MEL_BANDS, MEL_FRAMES)
