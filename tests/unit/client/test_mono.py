"""Mixing to mono: an inverted channel is heard, and other audio is mixed as FFmpeg mixes it."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.client.media.audio_reader import AudioFile
from insync.client.streaming.resampler import Resampler
from insync.core.mono import MonoMixer
from insync.core.spec import SAMPLE_RATE_HZ

Floats = NDArray[np.float32]
HALVES = np.full(2, 0.5, np.float32)


def speech_like(seconds: float, rate_hz: int = SAMPLE_RATE_HZ, seed: int = 0) -> Floats:
    """Return noise with syllables and pauses: float32 [N], RMS about 0.1."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.standard_normal(round(seconds * rate_hz)), np.ones(6) / 6, "same")
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * np.arange(len(noise)) / rate_hz + seed), 0, 1)
    return np.asarray(0.4 * noise * syllables, np.float32)


def write(path: Path, channels: list[Floats], layout: str, rate_hz: int = 44_100) -> Path:
    codec = {".wav": "pcm_s16le", ".flac": "flac", ".m4a": "aac"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        samples = np.ascontiguousarray(np.stack(channels, axis=1).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> Floats:
    return np.concatenate(list(AudioFile(path).speech()))


def plainly_mixed(path: Path) -> Floats:
    """Return a file as FFmpeg mixes it to 16 kHz mono."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE_HZ)
    parts: list[Any] = []
    with av.open(str(path)) as container:
        for frame in [*container.decode(audio=0), None]:
            if frame is not None:
                frame.pts = None
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    return np.concatenate(parts)


def level(samples: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


@pytest.mark.parametrize("ending", [".wav", ".flac", ".m4a"])
def test_an_inverted_channel_in_a_file_does_not_silence_it(tmp_path: Path, ending: str) -> None:
    sound = speech_like(3, 44_100)
    right = read(write(tmp_path / f"right{ending}", [sound, sound], "stereo"))
    inverted_path = write(tmp_path / f"inverted{ending}", [sound, -sound], "stereo")
    assert level(plainly_mixed(inverted_path)) < 0.01 * level(right)
    got = read(inverted_path)
    if ending == ".m4a":  # lossy, and coded differently
        assert level(got - right) < 0.2 * level(right)
    else:
        np.testing.assert_allclose(got, right, atol=2e-4)


@pytest.mark.parametrize(
    ("layout", "shares"),
    [
        ("mono", [[1, 0]]),
        ("stereo", [[1, 0], [1, 0]]),
        ("stereo", [[1, 0], [0, 1]]),
        ("stereo", [[1, 0.4], [0.7, -0.4]]),
        ("stereo", [[1, 0], [-0.2, 0]]),
        ("stereo", [[0, 0], [0, 1]]),
        ("quad", [[1, 0], [0, 1], [0.2, 0.1], [0.1, 0.2]]),
        ("5.1", [[0.2, 0.1], [0.1, 0.2], [1, 0], [0, 1], [-0.1, 0.1], [0.1, -0.1]]),
        ("7.1", [[0.2, 0], [0, 0.2], [1, 0], [0, 0], [0.1, 0], [0, 0.1], [0, 0], [0, 0]]),
    ],
)
def test_ordinary_files_are_mixed_as_before(tmp_path: Path, layout: str, shares: list[list[float]]) -> None:
    one, other = speech_like(2, 44_100), speech_like(2, 44_100, 1)
    path = write(tmp_path / "a.wav", [(a * one + b * other).astype(np.float32) for a, b in shares], layout)
    got = read(path)
    assert level(got) > 0.01
    np.testing.assert_allclose(got, plainly_mixed(path)[: len(got)], atol=2e-6)


def test_an_inverted_channel_of_a_surround_file(tmp_path: Path) -> None:
    sound, rest = speech_like(2, 48_000), np.zeros(96_000, np.float32)
    both = read(write(tmp_path / "right.wav", [sound, sound, rest, rest, rest, rest], "5.1", 48_000))
    inverted = read(write(tmp_path / "inverted.wav", [sound, -sound, rest, rest, rest, rest], "5.1", 48_000))
    np.testing.assert_allclose(inverted, both, atol=2e-4)


def test_channels_that_ffmpeg_does_not_know_are_averaged() -> None:
    mixed = MonoMixer(np.full(9, 1 / 9, np.float32), SAMPLE_RATE_HZ).mix(np.full((9, 100), 0.3, np.float32))
    np.testing.assert_allclose(mixed, 0.3, atol=1e-6)


def test_an_inversion_that_starts_in_the_middle_is_followed_once_and_without_a_click() -> None:
    sound = speech_like(12)
    second = sound.copy()
    second[4 * SAMPLE_RATE_HZ : 8 * SAMPLE_RATE_HZ] *= -1
    mixer = MonoMixer(HALVES, SAMPLE_RATE_HZ)
    signs, parts = [], []
    for at in range(0, len(sound), 8_000):
        parts.append(mixer.mix(np.stack([sound, second])[:, at : at + 8_000]))
        signs.append(float(mixer._signs[1]))
    assert np.count_nonzero(np.diff(signs)) == 2
    mixed = np.concatenate(parts)
    assert level((mixed - sound)[6 * SAMPLE_RATE_HZ : 8 * SAMPLE_RATE_HZ]) < 1e-6
    assert level((mixed - sound)[9 * SAMPLE_RATE_HZ :]) < 1e-6
    tone = np.ones((2, SAMPLE_RATE_HZ), np.float32)
    tone[1] *= -1
    mixer = MonoMixer(HALVES, SAMPLE_RATE_HZ)
    steps = np.diff(np.concatenate([mixer.apply(tone[:, :800]), mixer.mix(tone[:, 800:])]))
    assert steps.max() == pytest.approx(1 / 80, rel=0.01)  # from silence to full level in 5 ms


def test_uncorrelated_and_wide_stereo_never_changes_the_signs() -> None:
    one, other = speech_like(20), speech_like(20, seed=5)
    for pair in ((one, other), (one + 0.8 * other, one - 0.8 * other), (one, -0.2 * one), (one, np.zeros_like(one))):
        mixer = MonoMixer(HALVES, SAMPLE_RATE_HZ)
        stereo = np.stack(pair).astype(np.float32)
        for at in range(0, stereo.shape[1], 8_000):
            part = stereo[:, at : at + 8_000]
            np.testing.assert_allclose(mixer.mix(part), part.mean(axis=0), atol=1e-6)


def test_a_decision_near_the_limit_does_not_alternate() -> None:
    one, other = speech_like(60), speech_like(60, seed=5)
    for part in (0.30, 0.33, 0.36, 0.40):  # the share of the sum around -10 dB
        mixer, signs = MonoMixer(HALVES, SAMPLE_RATE_HZ), []
        stereo = np.stack([one + part * other, -one + part * other]).astype(np.float32)
        for at in range(0, stereo.shape[1], 8_000):
            mixer.mix(stereo[:, at : at + 8_000])
            signs.append(float(mixer._signs[1]))
        assert np.count_nonzero(np.diff(signs[4:])) <= 1


def test_silence_changes_no_decision() -> None:
    sound = speech_like(2)
    mixer = MonoMixer(HALVES, SAMPLE_RATE_HZ)
    mixer.mix(np.stack([sound, -sound]))
    for _ in range(3_000):
        mixer.mix(np.zeros((2, 32_000), np.float32))
    np.testing.assert_allclose(mixer.apply(np.stack([sound, -sound])), sound, atol=1e-6)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_an_inverted_channel_in_a_stream_is_silent_for_20_ms_at_most(rate_hz: int) -> None:
    sound = speech_like(2, rate_hz)
    expected = Resampler(rate_hz).push(sound)
    stereo, rng = np.stack([sound, -sound], axis=1), np.random.default_rng(2)
    whole = Resampler(rate_hz).push(stereo)
    resampler, parts, at = Resampler(rate_hz), [], 0
    while at < len(stereo):
        size = int(rng.integers(0, 2_000))
        parts.append(resampler.push(stereo[at : at + size]))
        at += size
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)  # independent of the chunks
    np.testing.assert_allclose(whole[480:], expected[480:], atol=1e-5)  # 20 ms, the fade, and the filter


def test_a_stream_of_ordinary_stereo_is_averaged() -> None:
    one, other = speech_like(3), speech_like(3, seed=3)
    stereo = np.stack([one + other, one - 0.5 * other], axis=1)
    np.testing.assert_allclose(Resampler(SAMPLE_RATE_HZ).push(stereo), stereo.mean(axis=1), atol=1e-6)


def test_a_long_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    sound = speech_like(1)
    write(path, [np.tile(sound, 120), np.tile(-sound, 120)], "stereo", SAMPLE_RATE_HZ)
    audio = AudioFile(path)
    tracemalloc.start()
    longest = max(len(chunk) for chunk in audio.speech())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert longest < 16_000
    assert peak < 2**20  # the whole track has 7.7 MB
