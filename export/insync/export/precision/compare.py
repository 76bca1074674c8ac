"""`insync export precision`: the effect of TF32, BF16 and FP16 on the picture and the mouth's movement, and a decision on each.

Real clips are rendered by the served graphs and by graphs that round like each precision (`insync.export.precision.rounding`);
the results are compared frame by frame. This is an emulation: it needs no GPU, and does not run a GPU's kernels.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from insync.core import settings
from insync.core.spec import WINDOW_COLUMNS, WINDOW_ROWS
from insync.ensemble.repository.tensorrt_plans import GRAPHS
from insync.export.precision.rounding import PRECISIONS, rounded_graph
from insync.training.evaluation.evaluate import Evaluation, Footage
from insync.training.metrics.summary import best_lag, correlation, lagged

BLOCK = 16  # pixels
REPORT = "precision.json"
MIXED = "fp16_mixed"  # FP16, except computations with the landmarks' places: see `rounded_graph`
VARIANTS = (*PRECISIONS, MIXED)
_PLACES = ("PLACES", "REFERENCE_PLACES")
_TITLES = {"jpeg": "SYNCED's JPEG only", MIXED: "FP16, the landmarks' flow in FP32"}
_MOUTH = (slice(*WINDOW_ROWS), slice(*WINDOW_COLUMNS))  # of the crop: the network renders nothing else
_AMPLIFIED = 16  # factor of differences in the pictures of worst cases
_ENLARGED = 2  # factor of the pictures' size

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Threshold:
    """Limits on what a precision may change, in every frame of every clip, to be served.

    Attributes:
        ssim: minimum structural similarity of a frame's mouth to FP32's.
        block_levels: maximum mean difference in a block of 16 × 16 pixels, in levels of 255. SYNCED's JPEG, which is
            accepted, changes more (its row in the report).
        agreement: minimum correlation of the mouth's apertures with FP32's.
        aperture_corr: maximum loss of the correlation of the mouth's aperture with the filmed one.
    """

    ssim: float = 0.99
    block_levels: float = 3.0
    agreement: float = 0.99
    aperture_corr: float = 0.01


@dataclass(frozen=True)
class Change:
    """What one precision changed, over all clips; NaN if unknown.

    Attributes:
        ssim, worst_ssim: structural similarity of the mouth to FP32's, mean and minimum over all frames.
        worst_block: largest mean difference in a block, in levels; at `worst_clip`, `worst_frame` and `worst_at` (row and
            column in the crop).
        worst_pixel: largest difference of a pixel, in levels.
        agreement: correlation of the mouth's apertures with FP32's, minimum over the clips.
        predicted_aperture_corr: correlation of the apertures with those that the network predicted from speech, mean over the clips.
        aperture_corr: correlation of the apertures with the filmed ones at FP32's lag, mean over the clips that have sound.
        aperture_corr_lost: how much aperture_corr fell, maximum over the clips.
        failed: the limits that it exceeds; empty if it passed.
    """

    ssim: float
    worst_ssim: float
    worst_block: float
    worst_clip: str
    worst_frame: int
    worst_at: tuple[int, int]
    worst_pixel: int
    agreement: float
    predicted_aperture_corr: float
    aperture_corr: float
    aperture_corr_lost: float
    failed: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the precision may be served."""
        return not self.failed


@dataclass(frozen=True)
class _Drawn:
    """One clip rendered in one precision: crops uint8 [N, 256, 256, 3], rendered and predicted apertures float32 [N]."""

    crops: Picture
    apertures: Floats
    predicted: Floats


def compare(
    clips: Sequence[Path],
    out: Path,
    repository: Path,
    speech: Path | None = None,
    seconds: float = 6.0,
    threads: int = 2,
    threshold: Threshold | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, Change]:
    """Render clips in each precision; write `precision.json`, `precision.md` and a picture of each one's worst case.

    Args:
        clips: videos that show one face each.
        out: folder for the files.
        repository: the model repository whose graphs are compared.
        speech: speech for clips without sound.
        seconds: length used of each clip.
        threads: CPU threads.
        threshold: limits on the changes.
        log: called with a message for each step.

    Returns:
        What each of `VARIANTS` changed, and for comparison "jpeg": what SYNCED's encoding alone changes.

    Raises:
        ValueError: a clip shows too few faces, or is silent and no speech is given.
    """
    threshold = threshold or Threshold()
    exact = Evaluation(repository, threads)
    footages = {path.name: exact.read(path, seconds) for path in clips}
    sounds = {name: _sound(name, footage, speech) for name, footage in footages.items()}
    drawn: dict[str, dict[str, _Drawn]] = {}
    for precision in ("fp32", *VARIANTS):
        log(f"{precision}: rendering")
        with tempfile.TemporaryDirectory() as scratch:
            drawing = exact
            if precision != "fp32":
                drawing = Evaluation(_rounded_repository(repository, Path(scratch), precision), threads)
            drawn[precision] = {name: _draw(drawing, exact, footages[name], sounds[name]) for name in footages}
    drawn["jpeg"] = {name: _as_jpeg(exact, one) for name, one in drawn["fp32"].items()}
    own = {name: footage for name, footage in footages.items() if footage.sound.size}
    changes = {key: _change(drawn["fp32"], results, own, threshold) for key, results in drawn.items() if key != "fp32"}
    out.mkdir(parents=True, exist_ok=True)
    for key, change in changes.items():
        original, result = (drawn[which][change.worst_clip].crops[change.worst_frame] for which in ("fp32", key))
        cv2.imwrite(str(out / f"worst_{key}.png"), cv2.cvtColor(_picture(original, result, change), cv2.COLOR_RGB2BGR))
    frames = sum(len(one.crops) for one in drawn["fp32"].values())
    document = _document(changes, repository, list(footages), frames, threshold)
    (out / REPORT).write_text(json.dumps(document, indent=1) + "\n")
    (out / "precision.md").write_text(_page(document, changes))
    return changes


def _sound(name: str, footage: Footage, speech: Path | None) -> Floats:
    if footage.sound.size:
        return footage.sound
    if speech is None:
        raise ValueError(f"{name} has no sound: give a file with speech (--speech)")
    from insync.client.media.audio_reader import AudioFile

    return np.concatenate(list(AudioFile(speech).speech())).astype(np.float32)


def _rounded_repository(repository: Path, folder: Path, precision: str) -> Path:
    """Write a model repository for `Evaluation` whose graphs round like one of `VARIANTS`; return its folder."""
    for name in GRAPHS:
        (folder / name / "1").mkdir(parents=True)
        proto = onnx.load(str(repository / name / "1" / "model.onnx"))
        graph = rounded_graph(proto, "fp16", _PLACES) if precision == MIXED else rounded_graph(proto, precision)
        onnx.save(graph, str(folder / name / "1" / "model.onnx"))
    for name in ("lipsync_face", "lipsync_twin"):
        (folder / name).symlink_to(repository.resolve() / name)
    return folder


def _draw(evaluation: Evaluation, exact: Evaluation, footage: Footage, sound: Floats) -> _Drawn:
    with np.errstate(all="ignore"):  # overflows show in the picture
        crops, _, _, predicted = evaluation.draw(footage, sound)
    return _Drawn(crops, exact.apertures(crops), predicted)


def _as_jpeg(exact: Evaluation, drawn: _Drawn) -> _Drawn:
    quality = [cv2.IMWRITE_JPEG_QUALITY, settings.load().jpeg_quality]
    crops = np.stack([cv2.imdecode(cv2.imencode(".jpg", crop, quality)[1], cv2.IMREAD_COLOR) for crop in drawn.crops])
    return _Drawn(crops, exact.apertures(crops), drawn.predicted)


def _change(
    exact: dict[str, _Drawn], results: dict[str, _Drawn], own: dict[str, Footage], threshold: Threshold
) -> Change:
    """Compare results with FP32's, clip by clip; `own` are the clips that have sound."""
    similar: list[float] = []
    worst: tuple[float, str, int, tuple[int, int]] = (-1.0, "", 0, (0, 0))
    pixel = 0
    agreement, predicted_aperture_corr, aperture_corr, lost = [], [], [], []
    for name, result in results.items():
        for frame, (want, got) in enumerate(zip(exact[name].crops, result.crops, strict=True)):
            similar.append(float(structural_similarity(want[_MOUTH], got[_MOUTH], channel_axis=2)))
            difference = cv2.absdiff(want, got)
            pixel = max(pixel, int(difference.max()))
            block, at = worst_block(difference)
            worst = max(worst, (block, name, frame, at))
        agreement.append(correlation(result.apertures, exact[name].apertures))
        predicted_aperture_corr.append(correlation(result.apertures, result.predicted))
        if name in own:
            filmed = own[name].apertures[own[name].first :]
            lag = best_lag(exact[name].apertures, filmed)
            aperture_corr.append(lagged(result.apertures, filmed, lag))
            lost.append(lagged(exact[name].apertures, filmed, lag) - aperture_corr[-1])
    metrics = {
        "worst_ssim": min(similar),
        "agreement": min(agreement) if np.isfinite(agreement).all() else float("nan"),
        "aperture_corr_lost": max(lost) if lost and np.isfinite(lost).all() else float("nan"),
    }
    failed = []
    # Each condition is negated, so that not-a-number fails.
    if not metrics["worst_ssim"] >= threshold.ssim:
        failed.append(f"SSIM of the worst frame {metrics['worst_ssim']:.4f} < {threshold.ssim}")
    if not worst[0] <= threshold.block_levels:
        failed.append(f"worst block {worst[0]:.2f} > {threshold.block_levels} levels")
    if not metrics["agreement"] >= threshold.agreement:
        failed.append(f"apertures correlate by {metrics['agreement']:.4f} < {threshold.agreement}")
    if own and not metrics["aperture_corr_lost"] <= threshold.aperture_corr:
        failed.append(f"aperture_corr falls by {metrics['aperture_corr_lost']:.4f} > {threshold.aperture_corr}")
    return Change(
        float(np.mean(similar)), metrics["worst_ssim"], worst[0], worst[1], worst[2], worst[3], pixel,
        metrics["agreement"], float(np.mean(predicted_aperture_corr)), float(np.mean(aperture_corr)) if aperture_corr else float("nan"),
        metrics["aperture_corr_lost"], tuple(failed),
    )  # fmt: skip


def worst_block(difference: Picture) -> tuple[float, tuple[int, int]]:
    """Return the largest mean of a block of 16 × 16 pixels in a difference uint8 [H, W, 3], and its row and column."""
    means = cv2.boxFilter(difference.astype(np.float32).mean(2), -1, (BLOCK, BLOCK), anchor=(0, 0))
    inside = means[: 1 - BLOCK, : 1 - BLOCK]
    row, column = (int(k) for k in np.unravel_index(int(inside.argmax()), inside.shape))
    return float(inside[row, column]), (row, column)


def _picture(exact: Picture, result: Picture, change: Change) -> Picture:
    """Draw FP32's frame, the other precision's, and their difference times 16; the worst block is framed."""
    difference = np.clip(cv2.absdiff(exact, result).astype(int) * _AMPLIFIED, 0, 255).astype(np.uint8)
    row, column = change.worst_at
    panels = []
    for panel in (exact, result, difference):
        framed = cv2.rectangle(panel.copy(), (column - 1, row - 1), (column + BLOCK, row + BLOCK), (255, 220, 0), 1)
        window = framed[_MOUTH]
        panels.append(cv2.resize(window, None, fx=_ENLARGED, fy=_ENLARGED, interpolation=cv2.INTER_NEAREST))
    return np.asarray(np.hstack(panels), np.uint8)


def _document(
    changes: dict[str, Change], repository: Path, clips: list[str], frames: int, threshold: Threshold
) -> dict[str, Any]:
    hashes = {
        name: hashlib.sha256((repository / name / "1" / "model.onnx").read_bytes()).hexdigest() for name in GRAPHS
    }
    precisions = {name: {**asdict(change), "passed": change.passed} for name, change in changes.items()}
    jpeg = precisions.pop("jpeg")
    return {
        "emulated": True,
        "graphs": hashes,
        "clips": clips,
        "frames": frames,
        "threshold": asdict(threshold),
        "precisions": precisions,
        "jpeg": jpeg,
        "decision": _decision(changes),
    }


def _decision(changes: dict[str, Change]) -> str:
    passed = [_title(name) for name in VARIANTS if changes[name].passed]
    if not passed:
        return "Only FP32: every lower precision misses the threshold."
    refused = [_title(name) for name in VARIANTS if not changes[name].passed]
    others = f" Not: {'; '.join(refused)}." if refused else ""
    return f"FP32 stays the default. With these weights, these may be tried on a GPU: {'; '.join(passed)}.{others}"


def _title(name: str) -> str:
    return _TITLES.get(name, name.upper())


def _page(document: dict[str, Any], changes: dict[str, Change]) -> str:
    head = (
        "", "SSIM", "worst frame's SSIM", "worst block", "worst pixel", "aperture agreement", "predicted_aperture_corr", "aperture_corr", "passed",
    )  # fmt: skip
    rows = [head, ("---", *["---:"] * (len(head) - 1))]
    for name, change in changes.items():
        numbers = (change.ssim, change.worst_ssim, change.worst_block)
        rows.append(
            (
                _title(name),
                *(f"{number:.{digits}f}" for number, digits in zip(numbers, (5, 4, 2), strict=True)),
                str(change.worst_pixel),
                *(
                    _known(number)
                    for number in (change.agreement, change.predicted_aperture_corr, change.aperture_corr)
                ),
                "–" if name == "jpeg" else "yes" if change.passed else "no",
            )
        )
    limit = document["threshold"]
    parts = [
        "# Precision",
        f"`insync export precision`: {document['frames']} frames of {', '.join(document['clips'])}, "
        "rendered by the served graphs in FP32 and by the same graphs with rounded weights and activations. "
        "**Emulated on the CPU: no GPU kernels were run.** Differences are from FP32's result, inside the patch's window; "
        "blocks are 16 × 16 pixels, in levels of 255. Aperture agreement, predicted_aperture_corr and aperture_corr are correlations "
        "of the mouth's aperture: with FP32's, with the predicted one, with the filmed one. The landmarks' flow is what the decoder "
        "computes from PLACES and REFERENCE_PLACES, except convolutions, up to the coordinates at which references are sampled.",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        f"Threshold, for every frame of every clip: SSIM at least {limit['ssim']}, no block changed by more than "
        f"{limit['block_levels']:g} levels, an aperture agreement of at least {limit['agreement']}, and an aperture_corr that falls "
        f"by at most {limit['aperture_corr']}.",
        f"**{document['decision']}**",
        *(
            f"{_title(name)}: {'; '.join(change.failed)}."
            for name, change in changes.items()
            if change.failed and name != "jpeg"
        ),
        f"Worst cases; from the left: FP32, the other precision, and their difference × {_AMPLIFIED}, the worst block framed:",
        *(
            f"{_title(name)}, frame {change.worst_frame} of {change.worst_clip}:\n\n![{name}](worst_{name}.png)"
            for name, change in changes.items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _known(number: float) -> str:
    return f"{number:.4f}" if np.isfinite(number) else "–"
