"""Bilabial closures: at p, b and m the lips of a speaker touch, so those of a dub must too.

The mouth aperture that landmarks report for touching lips is not 0, and frames may miss the moment of touch. `TOUCHING` is therefore measured, on
filmed people: of 40 sentences of GRID's speaker s1 (61 closures), it is the gap above the resting aperture at which the shares of closures and
of other moments of speech differ most (95 % against 51 %). As far away from closures as speech gets, lips are often this near as well, so
a share says something only beside the one for random moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TOUCHING = (
    0.0175  # aperture above the resting one, in distances of the outer eye corners, up to which lips count as touching
)
BILABIALS = ("p", "b", "m")
MARKS = "ˈˌ"  # stress, which stands before a sound
STEP_S = 0.01  # between the moments that closures are compared with


class Sound(NamedTuple):
    """A sound of speech: its name in the phonetic alphabet, and its interval in seconds. A pause has no name."""

    name: str
    start_s: float
    end_s: float


def closures_of(sounds: Sequence[Sound]) -> Floats:
    """Return the intervals of p, b, m and their variants (pʰ, mː, …), float32 [K, 2] in seconds.

    Sounds that follow each other without a gap, as in «jump back», are one closure.
    """
    found: list[list[float]] = []
    for name, start_s, end_s in sounds:
        if not name.lstrip(MARKS).startswith(BILABIALS):
            continue
        if found and start_s <= found[-1][1] + 1e-6:
            found[-1][1] = end_s
        else:
            found.append([start_s, end_s])
    return np.array(found, np.float32).reshape(-1, 2)


def moments(sounds: Sequence[Sound], duration_s: float) -> Floats:
    """Return intervals of one duration, float32 [K, 2], one every 10 ms, whose middles lie in sounds and not in pauses.

    They stand for random moments of the speech.
    """
    middles = [np.arange(start_s, end_s, STEP_S) for name, start_s, end_s in sounds if name]
    middle = np.concatenate([np.zeros(0), *middles])
    return np.asarray(np.stack([middle - duration_s / 2, middle + duration_s / 2], axis=1), np.float32)


def apart(intervals: Floats, closures: Floats, margin_s: float) -> Floats:
    """Return those of the intervals [N, 2] that lie at least `margin_s` away from every closure [K, 2]."""
    before = intervals[:, None, 1] + margin_s <= closures[None, :, 0]
    after = intervals[:, None, 0] - margin_s >= closures[None, :, 1]
    return np.asarray(intervals[(before | after).all(axis=1)], np.float32)


def narrowest(apertures: Floats, times_s: Floats, intervals: Floats, tolerance: int = 1) -> Floats:
    """Find the smallest aperture within each interval and some frames around it.

    Args:
        apertures: float32 [N], mouth apertures; NaN where no face was found.
        times_s: float32 [N], times of the frames, rising.
        intervals: float32 [K, 2], in seconds of the same clock.
        tolerance: frames before and after the interval that also count. The frame nearest to its start or end always does.

    Returns:
        float32 [K]; NaN for an interval that the clip does not hold whole, or in which no frame shows a face.
    """
    found = np.full(len(intervals), np.nan, np.float32)
    if len(times_s) < 2:
        return found
    step_s = float(np.median(np.diff(times_s)))
    reach_s = (tolerance + 0.5) * step_s
    for row, (start_s, end_s) in enumerate(intervals):
        inside = (times_s >= start_s - reach_s) & (times_s <= end_s + reach_s) & np.isfinite(apertures)
        if start_s >= times_s[0] and end_s <= times_s[-1] + step_s and inside.any():
            found[row] = apertures[inside].min()
    return found


def share_touching(gaps: Floats, level: float = TOUCHING) -> float:
    """Return the share of the known gaps, `narrowest` minus the resting aperture, that are at most `level`; NaN if there are none."""
    known = gaps[np.isfinite(gaps)]
    return float(np.mean(known <= level)) if known.size else float("nan")


class Gaps(NamedTuple):
    """The smallest gaps between the lips, float32, above the resting aperture.

    Attributes:
        closures: at each closure.
        random: at random moments of the same speech, as long as its median closure.
        elsewhere: at those of them whose frames, with the tolerance, are none of a closure's.
    """

    closures: Floats
    random: Floats
    elsewhere: Floats


def gaps(apertures: Floats, resting: float, times_s: Floats, sounds: Sequence[Sound], tolerance: int = 1) -> Gaps:
    """Measure the gaps between the lips of a mouth that says `sounds`.

    Args:
        apertures: float32 [N], mouth apertures; NaN where no face was found.
        resting: the person's resting aperture.
        times_s: float32 [N], times of the frames, rising.
        sounds: what is said, in seconds of the same clock.
        tolerance: frames around each interval that also count.
    """
    closures = closures_of(sounds)
    if not len(closures) or len(times_s) < 2:
        nothing = np.zeros(0, np.float32)
        return Gaps(nothing, nothing, nothing)
    random = moments(sounds, float(np.median(closures[:, 1] - closures[:, 0])))
    margin_s = 2 * (tolerance + 0.5) * float(np.median(np.diff(times_s)))
    return Gaps(
        *(
            narrowest(apertures, times_s, intervals, tolerance) - np.float32(resting)
            for intervals in (closures, random, apart(random, closures, margin_s))
        )
    )
