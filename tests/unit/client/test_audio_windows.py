"""Audio windows against a slow oracle, and resampling."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from insync.client.streaming.audio_windows import AudioWindows, slices
from insync.client.streaming.resampler import Resampler
from insync.core.errors import BadInput
from insync.core.spec import SAMPLE_RATE_HZ, WINDOW_SAMPLES

FPS = [Fraction(25), Fraction(30_000, 1001), Fraction(24), 23.976, 60]


def oracle(audio: np.ndarray[Any, Any], k: int, fps: float | Fraction) -> np.ndarray[Any, Any]:
    """Return a window, computed sample by sample from the definition."""
    centre = int(Fraction(k) / Fraction(fps) * SAMPLE_RATE_HZ + Fraction(1, 2))
    return np.array([audio[i] if 0 <= i < len(audio) else 0.0 for i in range(centre - 4480, centre + 1920)], np.float32)


@pytest.mark.parametrize("fps", FPS)
def test_windows_equal_the_oracle_for_any_chunks_of_audio(fps: float | Fraction) -> None:
    rng = np.random.default_rng(7)
    audio = rng.uniform(-1, 1, 20_011).astype(np.float32)
    windows = AudioWindows()
    at = 0
    for k in range(45):  # past the audio's end
        while not windows.ready(k / Fraction(fps)):
            if at >= len(audio):
                windows.finish()
                break
            size = int(rng.integers(0, 900))
            windows.push(audio[at : at + size])
            at += size
        window = windows.window(k, fps)
        assert window.shape == (WINDOW_SAMPLES,)
        assert window.dtype == np.float32
        np.testing.assert_array_equal(window, oracle(audio, k, fps))


def test_a_window_is_complete_120_ms_after_its_frame() -> None:
    windows = AudioWindows()
    windows.push(np.zeros(SAMPLE_RATE_HZ + 1919, np.float32))
    assert not windows.ready(1.0)
    with pytest.raises(BadInput, match=r"up to 1\.000 s \+ 120 ms has not arrived"):
        windows.window_at(1.0)
    windows.push(np.zeros(1, np.float32))
    assert windows.ready(1.0)


def test_memory_is_bounded() -> None:
    windows = AudioWindows(48_000)
    chunk = np.zeros((4_800, 2), np.int16)
    k = 0
    for _ in range(3_000):  # 5 minutes
        windows.push(chunk)
        while windows.ready(Fraction(k, 25)):
            windows.window(k, 25)
            k += 1
        assert len(windows._kept) < WINDOW_SAMPLES + 8_000
    assert k > 7_400


def test_a_frame_before_an_earlier_one_is_refused() -> None:
    windows = AudioWindows()
    windows.push(np.zeros(32_000, np.float32))
    windows.window_at(1.0)
    windows.window_at(1.0)
    with pytest.raises(BadInput, match="lies before a frame that was already requested"):
        windows.window_at(0.9)


def test_silence_for_audio_that_is_never_received() -> None:
    windows = AudioWindows(44_100)
    assert not windows.ready(0)
    windows.finish()
    assert not windows.window_at(12.0).any()
    with pytest.raises(BadInput, match="after its end"):
        windows.push(np.zeros(3, np.float32))


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_resampling_keeps_time_and_pitch_and_does_not_depend_on_the_chunks(rate_hz: int) -> None:
    seconds = 1.3
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    audio = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    whole = Resampler(rate_hz)
    expected = np.concatenate([whole.push(audio), whole.flush()])
    rng = np.random.default_rng(3)
    pieces = Resampler(rate_hz)
    got, at = [], 0
    while at < len(audio):
        size = int(rng.integers(1, 3_000))
        got.append(pieces.push(audio[at : at + size]))
        at += size
    got.append(pieces.flush())
    np.testing.assert_allclose(np.concatenate(got), expected, atol=1e-6)
    assert len(expected) == round(len(audio) * SAMPLE_RATE_HZ / rate_hz)
    ideal = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(expected)) / SAMPLE_RATE_HZ)
    inner = slice(400, len(expected) - 400)
    assert np.abs(expected - ideal)[inner].max() < 0.01  # a shift of one sample would give 0.09


def test_channels_are_averaged_and_integers_scaled() -> None:
    stereo = np.stack([np.full(100, 16_384, np.int16), np.full(100, -32_768, np.int16)], axis=1)
    np.testing.assert_allclose(Resampler(16_000).push(stereo), -0.25)
    np.testing.assert_allclose(Resampler(16_000).push(np.full(5, 192, np.uint8)), 0.5)
    np.testing.assert_allclose(Resampler(16_000).push(np.full((5, 1), -(2**31), np.int32)), -1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_index(bad: float) -> None:
    windows = AudioWindows()
    windows.push(np.zeros(1_000, np.float32))
    chunk = np.zeros((500, 2), np.float32)
    chunk[17, 1] = bad
    with pytest.raises(BadInput, match=r"audio sample 1017 is .*(nan|inf)"):
        windows.push(chunk)


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (np.zeros((2, 3, 4), np.float32), r"shape \[2, 3, 4\]"),
        (np.zeros((2, 500), np.float32), r"shape \[2, 500\]"),
        (np.zeros(4, np.complex64), "complex64"),
        (np.zeros(4, bool), "bool"),
    ],
)
def test_other_types_and_shapes_are_refused(chunk: np.ndarray[Any, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        AudioWindows().push(chunk)


@pytest.mark.parametrize("rate_hz", [0, -1, 3_999, 10_000_000, 44_100.0])
def test_impossible_rates_are_refused(rate_hz: int) -> None:
    with pytest.raises(BadInput, match="audio rate is"):
        AudioWindows(rate_hz)


def test_slices_give_the_array_back() -> None:
    audio = np.arange(10_000)
    parts = list(slices(audio, 16_000))
    np.testing.assert_array_equal(np.concatenate(parts), audio)
    assert max(len(part) for part in parts) == 4_000


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 47_999, 48_000, 96_000])
def test_resampling_holds_back_two_milliseconds_at_most(rate_hz: int) -> None:
    """A live frame waits for this: libraries that were tried hold back 20 ms and more."""
    resampler = Resampler(rate_hz)
    taken = given = 0
    for _ in range(50):
        given += len(resampler.push(np.zeros(rate_hz // 50, np.float32)))
        taken += rate_hz // 50
        assert 0 <= taken / rate_hz - given / SAMPLE_RATE_HZ <= 0.0021


def test_resampling_lets_no_high_tone_through_as_a_low_one() -> None:
    t = np.arange(48_000) / 48_000
    for hz, least, most in ((1_000, 0.99, 1.01), (6_000, 0.99, 1.01), (9_000, 0.0, 0.002), (20_000, 0.0, 0.0001)):
        resampler = Resampler(48_000)
        tone = resampler.push(np.sin(2 * np.pi * hz * t).astype(np.float32))[400:]
        assert least <= np.sqrt(2 * np.mean(tone**2)) <= most
