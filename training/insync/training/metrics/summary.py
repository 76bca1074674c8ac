"""What evaluation measures, and how it is put down."""

from __future__ import annotations

from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MAX_LAG = 5  # frames by which a clip's sound may lead or trail its picture
CONDITIONS = ("self", "shuffled", "silence", "cross", "untouched")  # in the order of the means; others follow
COMPARED = (
    "ssim_crop",
    "ssim",
    "psnr_db",
    "lmd",
    "aperture_corr",
    "aperture_std_ratio",
    "jitter",
)  # with a filmed mouth


@dataclass(frozen=True)
class Metrics:
    """What was measured of one condition to dub one clip; NaN where a figure has no meaning, as `COMPARED` have in `cross`.

    Attributes:
        clip: its name.
        condition: self, shuffled, silence, untouched; cross, with speech that is not its own; or its first condition with a robustness change.
        frames: drawn.
        ssim_crop: structural similarity of the whole crop with the filmed one (Wang et al., 2004), 1 is equal.
        ssim: the same of the mouth region alone, where everything is drawn.
        psnr_db: peak signal-to-noise ratio of the mouth region.
        lmd: mean distance of the lips' landmarks from the filmed ones, in percent of the distance of the outer eye corners.
        aperture_corr: correlation of the mouth's aperture with the filmed one, at the clip's lag.
        lag: frames by which the clip's sound trails its picture, where `follows` is best.
        predicted_aperture_corr: correlation of the mouth's aperture with the aperture that the network predicted.
        aperture_std_ratio: standard deviation of the aperture over that of the filmed mouth.
        jitter: mean second difference of the lips' landmarks over that of the filmed ones.
        source_bleed: share of the filmed lips that the patch lets through, 1 minus alpha. Where nothing covers the mouth, anything above 0 is a
            filmed mouth that goes on speaking, whatever the sound: `follows` is then too good, and silence too lively.
        identity: how alike the person looks around the mouth, 1 is the same, 0 a stranger (`insync.training.metrics.identity`; no face recognition).
        seam: gradients in the ring where alpha fades, over those of the source in the same ring; 1 is invisible.
        lse_c: confidence of our SyncNet that the mouth speaks the sound that drove it, or, where that was silence, the clip's own
            (`insync.training.metrics.sync`); larger is better. Compares with figures of this SyncNet only.
        lse_d: its smallest distance; smaller is better.
        offset: frames of 40 ms by which it finds that sound trailing.
    """

    clip: str
    condition: str
    frames: int
    ssim_crop: float
    ssim: float
    psnr_db: float
    lmd: float
    aperture_corr: float
    lag: int
    predicted_aperture_corr: float
    aperture_std_ratio: float
    jitter: float
    source_bleed: float
    identity: float
    seam: float
    lse_c: float
    lse_d: float
    offset: float


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's, over the frames where both are known; NaN where one is constant."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 10 or a[known].std() < 1e-6 or b[known].std() < 1e-6:
        return float("nan")
    return float(np.corrcoef(a[known], b[known])[0, 1])


def lagged(a: Floats, b: Floats, lag: int) -> float:
    """Correlation of a, read `lag` frames later, with b."""
    return correlation(a[max(0, lag) : len(a) + min(0, lag)], b[max(0, -lag) : len(b) - max(0, lag)])


def best_lag(a: Floats, b: Floats) -> int:
    """The lag of at most ±5 frames at which a follows b best; 0 where nothing is known."""
    scores = {lag: lagged(a, b, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
    known = {lag: score for lag, score in scores.items() if np.isfinite(score)}
    return max(known, key=lambda lag: known[lag]) if known else 0


def means(figures: list[Metrics]) -> list[Metrics]:
    """The mean over clips of every condition, over the clips where a figure has a meaning."""
    result = []
    known_conditions = {one.condition: None for one in figures}
    for condition in [
        *(condition for condition in CONDITIONS if condition in known_conditions),
        *(condition for condition in known_conditions if condition not in CONDITIONS),
    ]:
        ones = [one for one in figures if one.condition == condition]
        values: dict[str, Any] = {
            "clip": "mean",
            "condition": condition,
            "frames": sum(one.frames for one in ones),
            "lag": 0,
        }
        for field in fields(Metrics):
            if field.name not in values:
                known = [v for v in (getattr(one, field.name) for one in ones) if np.isfinite(v)]
                values[field.name] = fmean(known) if known else float("nan")
        result.append(Metrics(**values))
    return result


def table(figures: list[Metrics]) -> list[list[str]]:
    """Head, alignment and cells of the table of these figures and of their means."""
    names = [field.name for field in fields(Metrics)]
    rows = [names, ["---"] * 2 + ["---:"] * (len(names) - 2)]
    for one in [*figures, *means(figures)]:
        cells = []
        for name in names:
            value = getattr(one, name)
            cells.append(
                value if isinstance(value, str)
                else "–" if name == "lag" and (one.clip == "mean" or not np.isfinite(one.aperture_corr))
                else f"{value:+d}" if name == "lag"
                else str(value) if isinstance(value, int)
                else f"{value:.2f}" if np.isfinite(value)
                else "–"
            )  # fmt: skip
        rows.append(cells)
    return rows
