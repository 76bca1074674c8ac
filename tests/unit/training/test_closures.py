"""Lip closures: the metric on synthetic mouths, GRID's word times, and when espeak-ng says what."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training.closures import SENTENCES, VOICES, grid_sounds, row
from benchmarks.training.espeak import Espeak, at, lead
from insync.core.spec import SAMPLE_RATE_HZ
from insync.training.metrics.closures import (
    TOUCHING,
    Sound,
    apart,
    closures_of,
    gaps,
    moments,
    narrowest,
    share_touching,
)

TIMES_S = np.arange(100, dtype=np.float32) / 25
OPEN, RESTING = 0.2, 0.01


def spoken() -> list[Sound]:
    """Return 4 s of speech with an m of 40 ms in the middle of each second."""
    sounds = []
    for second in range(4):
        sounds += [
            Sound("a", second, second + 0.48), Sound("m", second + 0.48, second + 0.52), Sound("a", second + 0.52, second + 1),
        ]  # fmt: skip
    return sounds


def mouth(*closed_at: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the apertures of a mouth that is open but for the frame nearest to each of these times."""
    apertures = np.full(len(TIMES_S), OPEN, np.float32)
    for time_s in closed_at:
        apertures[np.argmin(np.abs(TIMES_S - time_s))] = RESTING
    return apertures


@pytest.mark.parametrize(
    ("closed_at", "share"),
    [
        ((0.5, 1.5, 2.5, 3.5), 1.0),
        ((0.5, 1.5), 0.5),
        ((), 0.0),
        ((0.44, 1.56), 0.5),  # the frame before and the frame after the m
        ((0.36, 1.64), 0.0),
    ],
)
def test_share_of_closures(closed_at: tuple[float, ...], share: float) -> None:
    found = gaps(mouth(*closed_at), RESTING, TIMES_S, spoken())
    assert share_touching(found.closures) == share


def test_tolerance_of_two_frames() -> None:
    shares = [share_touching(gaps(mouth(0.4, 1.6), RESTING, TIMES_S, spoken(), n).closures) for n in (1, 2)]
    assert shares == [0.0, 0.5]


def test_random_moments_of_a_mouth_that_closes_as_it_should() -> None:
    """A closed frame is seen by moments of up to 40 ms that begin or end within 1.5 frames of it: 0.16 s of each second."""
    found = gaps(mouth(0.5, 1.5, 2.5, 3.5), RESTING, TIMES_S, spoken())
    assert share_touching(found.random) == pytest.approx(0.16, abs=0.02)
    assert share_touching(found.elsewhere) == 0


@pytest.mark.parametrize(("aperture", "share"), [(OPEN, 0.0), (RESTING + 0.9 * TOUCHING, 1.0)])
def test_mouth_that_never_moves_is_at_chance(aperture: float, share: float) -> None:
    found = gaps(np.full(100, aperture, np.float32), RESTING, TIMES_S, spoken())
    assert [share_touching(kind) for kind in found] == [share] * 3


def test_nothing_to_measure_is_nan() -> None:
    nothing = gaps(mouth(), RESTING, TIMES_S, [])
    assert all(np.isnan(share_touching(kind)) for kind in nothing)
    faceless = gaps(np.full(100, np.nan, np.float32), RESTING, TIMES_S, spoken())
    assert np.isnan(share_touching(faceless.closures))
    assert np.isnan(share_touching(gaps(mouth()[:0], RESTING, TIMES_S[:0], spoken()).closures))
    assert row("nothing", [])[1:4] == ("0", "–", "–")


def test_closures_outside_the_clip_or_without_a_face_are_unknown() -> None:
    apertures = mouth(0.5)
    apertures[:10] = np.nan
    found = narrowest(apertures, TIMES_S, np.array([[0.1, 0.2], [0.48, 0.52], [3.9, 4.2]], np.float32))
    np.testing.assert_array_equal(found, np.array([np.nan, RESTING, np.nan], np.float32))


def test_variants_are_closures_and_neighbours_are_one() -> None:
    names = ("pʰ", "ˈa", "mː", "b", "", "ph", "n", "f", "β")
    sounds = [Sound(name, index / 10, (index + 1) / 10) for index, name in enumerate(names)]
    np.testing.assert_allclose(closures_of(sounds), [[0, 0.1], [0.2, 0.4], [0.5, 0.6]], rtol=1e-6)


def test_moments_leave_out_pauses_and_closures() -> None:
    sounds = [Sound("a", 0, 1), Sound("", 1, 2), Sound("m", 2, 2.1), Sound("a", 2.1, 3)]
    found = moments(sounds, 0.1)
    middles = found.mean(axis=1)
    assert ((middles < 1) | (middles > 1.99)).all()
    left = apart(found, closures_of(sounds), 0.12)
    assert len(left) < len(found)
    assert not ((left[:, 1] > 1.88 + 1e-4) & (left[:, 0] < 2.22 - 1e-4)).any()


def test_word_times_of_grid(tmp_path: Path) -> None:
    path = tmp_path / "bgam2p.align"
    path.write_text(
        "0 5000 sil\n5000 10000 bin\n10000 15000 green\n15000 20000 at\n20000 25000 m\n25000 30000 please\n"
    )
    closures = closures_of(grid_sounds(path))
    np.testing.assert_allclose(
        closures, [[0.2, 0.28], [0.92, 1.08]], rtol=1e-5
    )  # that of m goes over into that of please


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    if find_spec("espeakng_loader") is None:
        pytest.skip("needs espeakng-loader")
    return Espeak()


def test_espeak_says_when_it_closes_the_lips(espeak: Espeak) -> None:
    audio, sounds = espeak("A pop, a mob.", "en+f2")
    assert [name for name, *_ in sounds if name[:1] in "pbm" and name] == ["p", "p", "m", "b"]
    assert sounds[-1].end_s == pytest.approx(len(audio) / SAMPLE_RATE_HZ, abs=1e-3)
    assert all(one.end_s == other.start_s for one, other in itertools.pairwise(sounds))

    def loudness(start_s: float, end_s: float) -> float:
        return float(np.abs(audio[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]).max())

    stop = next(sound for sound in sounds if sound.name == "p")
    assert stop.end_s - stop.start_s > 0.04  # with the silence before it is released
    assert loudness(stop.start_s, stop.start_s + 0.02) < 0.1 * loudness(0, len(audio))


def test_espeak_says_every_voice(espeak: Espeak) -> None:
    for voice in VOICES:
        speech = espeak(SENTENCES[voice.partition("+")[0]], voice)
        assert len(closures_of(speech.sounds)) >= 15
    with pytest.raises(ValueError, match="no voice xx"):
        espeak("a", "xx")


def test_later_speech() -> None:
    assert at([Sound("m", 0, 1)], 0.5) == [Sound("m", 0.5, 1.5)]
    assert len(lead(np.ones(10, np.float32), 0.5)) == 10 + SAMPLE_RATE_HZ // 2
