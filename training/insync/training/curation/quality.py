"""Quality thresholds for training, and the decision on every segment with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from insync.network.syncnet import FRAME_S
from insync.training.data.manifest import Row
from insync.training.metrics.sync import MAX_OFFSET, SyncMetrics, metrics_of_curve


@dataclass(frozen=True)
class Gates:
    """The thresholds of curation.

    Attributes:
        min_frames: minimum length of a segment.
        min_sharpness: minimum variance of the mouth region's Laplacian, of grey values in [0, 255]; it is lower in dark pictures.
        min_visible: minimum visible share of the lips in the worst tenth of the frames.
        max_silence: maximum silent share of a segment's audio for learning speech from it.
        min_voice: minimum share of it with a voice.
        max_music: maximum share of it that has tonal sound under the speech, unless the confidence is high.
        min_confidence: minimum LSE-C of SyncNet at the best offset.
        sure_confidence: LSE-C from which a segment's own offset is trusted, and music does not matter.
        min_sync_frames: minimum number of mouths for trusting a segment's own offset; shorter segments use their clip's.
        max_offset: largest offset that is corrected, in frames of 40 ms; larger ones are assumed to be chance.
        held_out: share of people that are held out.
    """

    min_frames: int = 20
    min_sharpness: float = 4.0
    min_visible: float = 0.55
    max_silence: float = 0.8
    min_voice: float = 0.15
    max_music: float = 0.5
    min_confidence: float = 0.05
    sure_confidence: float = 0.1
    min_sync_frames: int = 75
    max_offset: int = 8
    held_out: float = 0.1


def picture_faults(row: Row, verdict: str, gates: Gates) -> list[str]:
    """Return the reasons why a segment's picture is not usable for training; an empty list if it is."""
    faults = [verdict] if verdict else []
    if row.stored and row.frames < gates.min_frames:
        faults.append(f"short: {row.frames} frames, must be at least {gates.min_frames}")
    if row.stored and row.sharpness < gates.min_sharpness:
        faults.append(f"blurred: sharpness {row.sharpness:.1f}, must be at least {gates.min_sharpness:g}")
    if row.stored and row.visible < gates.min_visible:
        faults.append(f"mouth covered: {row.visible:.0%} of the lips visible, must be at least {gates.min_visible:.0%}")
    if row.duplicate_of:
        faults.append(f"shows the same as {row.duplicate_of}")
    return faults


def clip_metrics(rows: list[Row]) -> SyncMetrics | None:
    """Return SyncNet's metrics of a whole clip, from the mean of its segments' curves weighted by length; None without any curve."""
    known = [row for row in rows if row.curve]
    if not known:
        return None
    curve = np.average([row.curve for row in known], axis=0, weights=[row.frames for row in known])
    return metrics_of_curve(curve.astype(np.float32), sum(row.frames for row in known))


def sound_verdict(row: Row, clip: SyncMetrics | None, gates: Gates) -> Row:
    """Return the row with its audio offset, whether speech can be learned from it, and the reason."""
    if not row.keep:
        return replace(row, speaks=False)
    if not row.has_sound:
        return replace(row, speaks=False, reason="no sound: picture only")
    if not row.curve or clip is None:
        return replace(row, speaks=False, reason="too short to measure its sync: picture only")
    own = metrics_of_curve(np.array(row.curve, np.float32), row.frames)
    alone = own.frames >= gates.min_sync_frames and own.lse_c >= gates.sure_confidence
    offset = own.offset if alone else clip.offset
    unsure = not alone and clip.lse_c < gates.sure_confidence
    curve = np.array(row.curve, np.float32)
    confidence = float(np.median(curve) - curve[offset + MAX_OFFSET])
    row = replace(row, lse_c=confidence, lse_d=float(curve[offset + MAX_OFFSET]))
    faults = []
    if row.silence > gates.max_silence:
        faults.append(f"silent for {row.silence:.0%} of the time")
    if row.voice < gates.min_voice:
        faults.append(f"a voice for {row.voice:.0%} of the time only")
    if confidence < gates.min_confidence:
        faults.append(
            f"mouth and sound do not match: confidence {confidence:.2f}, must be at least {gates.min_confidence:g}"
        )
    elif row.music > gates.max_music and confidence < gates.sure_confidence:
        faults.append(f"music for {row.music:.0%} of the time, and confidence {confidence:.2f} only")
    elif unsure:
        faults.append(
            f"offset uncertain in the segment and in its clip: confidence {clip.lse_c:.2f}, must be at least "
            f"{gates.sure_confidence:g}"
        )
    elif abs(offset) > gates.max_offset:
        faults.append(f"best offset {offset:+d} frames, at most {gates.max_offset} are corrected")
    if faults:
        return replace(row, speaks=False, reason="picture only: " + "; ".join(faults))
    if offset == 0:
        return replace(row, speaks=True, offset_s=0.0, reason="")
    source, plural = "" if alone else ", the offset of its clip", "" if abs(offset) == 1 else "s"
    return replace(
        row, speaks=True, offset_s=round(offset * FRAME_S, 3),
        reason=f"shifted: sound {'trails' if offset > 0 else 'leads'} by {abs(offset)} frame{plural} of 40 ms{source}",
    )  # fmt: skip
