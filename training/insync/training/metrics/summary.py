"""The metrics of an evaluation, their means over clips, and their table."""

from __future__ import annotations

from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

HEARD_LAG = 2  # frames; see `Metrics.heard_offset`
MAX_LAG = 5  # frames by which a clip's audio may lead or trail its picture
CONDITIONS = ("self", "shuffled", "silence", "cross", "untouched")  # first in the table of means, in this order
COMPARED = (
    "ssim_crop",
    "ssim",
    "psnr_db",
    "lmd",
    "aperture_corr",
    "aperture_std_ratio",
    "jitter",
)  # metrics that compare with the filmed mouth


@dataclass(frozen=True)
class Metrics:
    """The metrics of one clip in one condition; NaN where a metric is undefined, as those in `COMPARED` are in the condition `cross`.

    Attributes:
        clip: name of the clip.
        condition: self, shuffled, silence or untouched; cross, with other speech; or a perturbation of the frames with the clip's main audio.
        frames: number of dubbed frames.
        ssim_crop: structural similarity of the whole crop with the filmed one (Wang et al., 2004), 1 is equal.
        ssim: the same of the mouth region alone, all of which is rendered.
        psnr_db: peak signal-to-noise ratio of the mouth region.
        lmd: mean distance of the lips' landmarks from the filmed ones, in percent of the distance of the outer eye corners.
        aperture_corr: correlation of the mouth's aperture with the filmed one, at the clip's lag.
        lag: frames by which the clip's audio trails its picture; the lag at which `aperture_corr` is best.
        predicted_aperture_corr: correlation of the mouth's aperture with the aperture that the network predicted.
        aperture_std_ratio: standard deviation of the aperture over that of the filmed mouth.
        jitter: mean second difference of the lips' landmarks over that of the filmed ones.
        source_bleed: share of the filmed lips that stays visible, 1 minus alpha. If nothing covers the mouth, any value above 0 means that the
            filmed mouth remains visible whatever the audio: `aperture_corr` is then too high, and so is `aperture_std_ratio` in silence.
        identity: similarity of the person's appearance around the mouth, 1 for the same, 0 for another person
            (`insync.training.metrics.identity`; not face recognition).
        seam: gradients in the ring where alpha fades, divided by those of the source in the same ring; 1 is invisible.
        lse_c: confidence of our SyncNet that the mouth matches the audio it was dubbed with or, for silence, the clip's own audio
            (`insync.training.metrics.sync`); larger is better. Only comparable with values of this SyncNet.
        lse_d: smallest distance of our SyncNet; smaller is better.
        offset: frames of 40 ms by which that audio trails the picture, according to our SyncNet.
        heard_corr: correlation of the mouth's aperture with the one that the speech judge hears in that audio, at its best offset
            (`insync.training.metrics.speech_judge`). Filmed people, under `untouched`, are the yardstick.
        heard_offset: frames by which that audio trails the picture, according to the judge; at most ±2: the more offsets
            are tried on a short clip, the more a mouth correlates with any speech.
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
    heard_corr: float
    heard_offset: float


def correlation(a: Floats, b: Floats) -> float:
    """Compute Pearson's correlation over the frames where both are finite; NaN if one is constant."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 10 or a[known].std() < 1e-6 or b[known].std() < 1e-6:
        return float("nan")
    return float(np.corrcoef(a[known], b[known])[0, 1])


def lagged(a: Floats, b: Floats, lag: int) -> float:
    """Compute the correlation of a, read `lag` frames later, with b."""
    return correlation(a[max(0, lag) : len(a) + min(0, lag)], b[max(0, -lag) : len(b) - max(0, lag)])


def best_lag(a: Floats, b: Floats, most: int = MAX_LAG) -> int:
    """Return the lag, at most ±`most` frames, at which a and b correlate best; 0 if the correlation is undefined."""
    scores = {lag: lagged(a, b, lag) for lag in range(-most, most + 1)}
    known = {lag: score for lag, score in scores.items() if np.isfinite(score)}
    return max(known, key=lambda lag: known[lag]) if known else 0


def means(metrics: list[Metrics]) -> list[Metrics]:
    """Compute the means over clips for every condition, leaving out undefined values."""
    result = []
    known_conditions = {one.condition: None for one in metrics}
    for condition in [
        *(condition for condition in CONDITIONS if condition in known_conditions),
        *(condition for condition in known_conditions if condition not in CONDITIONS),
    ]:
        ones = [one for one in metrics if one.condition == condition]
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


def table(metrics: list[Metrics]) -> list[list[str]]:
    """Return the header, alignment and cells of a table of these metrics and of their means."""
    names = [field.name for field in fields(Metrics)]
    rows = [names, ["---"] * 2 + ["---:"] * (len(names) - 2)]
    for one in [*metrics, *means(metrics)]:
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
