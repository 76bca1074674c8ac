"""Training of the audio projection layer and the audio mapping network, which predict mouth codes from speech.

Audio that leads or trails its picture leads to averaged predictions. So a first, short training finds each segment's offset, segments
without correlation at any offset are dropped, and the actual training starts from scratch on the corrected data.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from insync.core.mouth import MouthBasis
from insync.network.audio_mapping import AudioMapping
from insync.network.audio_projection import AudioProjection
from insync.training.data.dataset import Dataset
from insync.training.trainers.run import Budget, Clock, Log, cosine, load_checkpoint, save_checkpoint, update_average

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

MAX_OFFSET = 6  # frames
MIN_CORRELATION = 0.25  # of a segment's aperture with the prediction at its best offset
SILENCE = -1.0  # log-mel of digital silence


@dataclass(frozen=True)
class SpeechOptions:
    """Settings of the speech stage: audio projection layer and audio mapping network.

    Attributes:
        batch: frames in a batch.
        learning_rate: peak learning rate.
        weight_decay: weight decay of AdamW.
        silent: share of a batch that is silence or faint noise, with the mouth at rest.
        ema: decay of the averaged weights, which are the result.
    """

    batch: int = 256
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    silent: float = 0.06
    ema: float = 0.998


class SpeechToMouth(nn.Module):
    """The audio projection layer, followed by the audio mapping network."""

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.mapping = AudioProjection(), AudioMapping()

    def forward(self, mel: Tensor) -> Tensor:
        """Predict mouth codes [B, 12] from log-mel [B, 80, 40]."""
        code: Tensor = self.mapping(self.projection(mel))
        return code


def augment(mel: Tensor) -> Tensor:
    """Change loudness and voice pitch of log-mel windows [B, 80, 40], add room noise, and remove bands."""
    batch = len(mel)
    mel = mel + (torch.rand(batch, 1, 1) - 0.5) * 0.5  # ± 12 dB
    noise = -1 + torch.rand(batch, 1, 1) * 0.55 + 0.1 * torch.randn(batch, 80, 1) + 0.04 * torch.randn(batch, 80, 40)
    noisy = torch.rand(batch, 1, 1) < 0.5
    mel = torch.where(noisy, torch.logaddexp(mel * 9.8, noise * 9.8) / 9.8, mel).clamp(min=SILENCE)
    shift = int(torch.randint(-3, 4, ()))
    if shift:
        mel = torch.roll(mel, shift, dims=1)
    first, count = torch.randint(0, 80, (batch, 1)), torch.randint(0, 12, (batch, 1))
    band = torch.arange(80)[None]
    hidden = (band >= first) & (band < first + count) & (torch.rand(batch, 1) < 0.3)
    return torch.where(hidden[:, :, None], mel.mean((1, 2), keepdim=True), mel)


def code_loss(predicted: Tensor, real: Tensor, weights: Tensor, aperture: Tensor) -> Tensor:
    """Compute the weighted squared error, plus one minus the concordance (Lin, 1989) of the aperture, which penalizes too little movement."""
    error = (weights * (predicted - real) ** 2).sum(1).mean() / weights.sum()
    a, b = predicted @ aperture, real @ aperture
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    concordance = 2 * covariance / (a.var() + b.var() + (a.mean() - b.mean()) ** 2 + 1e-8)
    return error + 0.5 * (1 - concordance)


def _pairs(dataset: Dataset, offsets: dict[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of pictures, and the rows of the audio that matches them, for the segments with an offset."""
    if not offsets:
        raise ValueError(
            "no segment has a mouth that matches its audio at any offset: use more, or other, footage with speech"
        )
    pictures, sounds = [], []
    for segment, offset in offsets.items():
        rows = dataset.rows(segment)
        index = np.arange(rows.start, rows.stop)
        audio_rows = index + offset
        inside = (audio_rows >= rows.start) & (audio_rows < rows.stop)
        pictures.append(index[inside])
        sounds.append(audio_rows[inside])
    return np.concatenate(pictures), np.concatenate(sounds)


def _fit(
    model: SpeechToMouth,
    mel: Tensor,
    codes: Tensor,
    basis: MouthBasis,
    budget: Budget,
    state: dict[str, Any] | None,
    out: Path | None,
    options: SpeechOptions,
) -> None:
    """Train a model in place until the budget is used up; its final weights are the averaged ones."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    average = copy.deepcopy(model)
    weights = torch.from_numpy(basis.deviation / basis.deviation[0])
    aperture = torch.from_numpy(basis.aperture_row)
    first = 0
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    metrics = None if out is None else Log(out / "speech.csv")
    model.train()
    running = 0.0
    for step, bar in budget.steps(first, "speech" if out else "speech, to find offsets"):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * cosine(budget.share)
        index = torch.randint(0, len(mel), (options.batch,))
        inputs, real = augment(mel[index].float()), codes[index].clone()
        silent = round(options.silent * options.batch)
        inputs[:silent] = (SILENCE + torch.rand(silent, 1, 1) ** 2 * 0.5 + 0.05 * torch.randn(silent, 80, 40)).clamp(
            min=SILENCE
        )
        inputs[: silent // 3] = SILENCE
        real[:silent] = 0
        loss = code_loss(model(inputs), real, weights, aperture)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_average(average, model, step, options.ema)
        running = 0.98 * running + 0.02 * float(loss.detach()) if step > first else float(loss.detach())
        if metrics is not None and out is not None and step % 100 == 0:
            bar.set_postfix(loss=f"{running:.3f}")
            metrics.write({"step": step, "loss": running, "seconds": budget.spent_s})
            if step % 1000 == 0:
                save_checkpoint(out / "speech_last.pt", _state(model, average, optimizer, step, budget))
                metrics.draw()
    if metrics is not None:
        metrics.draw()
    model.load_state_dict(average.state_dict())
    model.eval()


def _state(
    model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int, budget: Budget
) -> dict[str, Any]:
    parts: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer}
    return {**{name: part.state_dict() for name, part in parts.items()}, "step": step, "spent_s": budget.spent_s}


@torch.no_grad()
def predict(model: SpeechToMouth, mel: npt.NDArray[np.float16]) -> Floats:
    """Predict mouth codes float32 [N, MOUTH] from log-mel [N, 80, 40]."""
    model.eval()
    parts = [model(torch.from_numpy(mel[i : i + 1024].astype(np.float32))).numpy() for i in range(0, len(mel), 1024)]
    return np.concatenate(parts)


def offset_curve(predicted: Floats, real: Floats) -> Floats:
    """Compute the correlations of two aperture curves [T], the first shifted by -6 … 6 frames: float32 [13]; 0 if one is constant."""
    curve = []
    for offset in range(-MAX_OFFSET, MAX_OFFSET + 1):
        a = predicted[max(0, offset) : len(predicted) + min(0, offset)]
        b = real[max(0, -offset) : len(real) + min(0, -offset)]
        flat = len(a) < 10 or a.std() < 1e-6 or b.std() < 1e-6
        curve.append(0.0 if flat else float(np.corrcoef(a, b)[0, 1]))
    return np.array(curve, np.float32)


def find_offsets(
    dataset: Dataset, model: SpeechToMouth, basis: MouthBasis, codes: Floats
) -> dict[int, tuple[int, float]]:
    """Return the best offset in frames (positive: the audio trails the picture) and its correlation, for each segment with audio."""
    aperture = basis.aperture_row
    result = {}
    for number, segment in enumerate(dataset.segments):
        if segment.has_sound and segment.frames > 3 * MAX_OFFSET:
            rows = dataset.rows(number)
            curve = offset_curve(predict(model, dataset.mel[rows]) @ aperture, codes[rows] @ aperture)
            result[number] = (int(curve.argmax()) - MAX_OFFSET, float(curve.max()))
    return result


def train_speech(
    dataset: Dataset,
    basis: MouthBasis,
    out: Path,
    minutes: float,
    clock: Clock = time.monotonic,
    options: SpeechOptions | None = None,
) -> None:
    """Train on a data set, and write `speech.pt` (projection and mapping), `offsets.csv`, `speech.csv` and its plot into `out`.

    Args:
        dataset: the footage.
        basis: its mouth basis.
        out: run folder; an unfinished run there is resumed.
        minutes: training time; if the data set has no manifest with the offsets, finding them takes another quarter of it.
        clock: the source of time.
        options: settings.
    """
    options = options or SpeechOptions()
    plain, mirror = dataset.codes(basis)
    # Left and right cannot be predicted from audio, so the target is the mean of both.
    codes = (plain + mirror) / 2
    last = load_checkpoint(out / "speech_last.pt")
    if dataset.has_manifest:  # curation has found the offsets and the segments with usable speech
        offsets = {n: 0 for n, speaks in enumerate(dataset.speaks) if speaks}
    elif last is None or not (out / "offsets.csv").exists():
        offsets = {n: 0 for n, s in enumerate(dataset.segments) if s.has_sound}
        for _ in range(2):
            scout = SpeechToMouth()
            pictures, sounds = _pairs(dataset, offsets)
            _fit(
                scout,
                torch.from_numpy(dataset.mel[sounds]),
                torch.from_numpy(codes[pictures]),
                basis,
                Budget(minutes / 8, clock=clock),
                None,
                None,
                options,
            )
            found = find_offsets(dataset, scout, basis, codes)
            offsets = {n: offset for n, (offset, correlation) in found.items() if correlation >= MIN_CORRELATION}
        table = Log(out / "offsets.csv")
        for number, (offset, correlation) in found.items():
            table.write(
                {"segment": number, "offset": offset, "correlation": correlation, "kept": float(number in offsets)}
            )
            if offset or number not in offsets:
                log.info("%s: offset %+d, correlation %.2f", dataset.segments[number].clip, offset, correlation)
    if not dataset.has_manifest:
        rows = np.atleast_1d(np.genfromtxt(out / "offsets.csv", delimiter=",", names=True))
        offsets = {int(row["segment"]): int(row["offset"]) for row in rows if row["kept"]}
    pictures, sounds = _pairs(dataset, offsets)
    log.info("speech is trained on %d frames of %d segments", len(pictures), len(offsets))
    model = SpeechToMouth()
    spent = 0.0 if last is None else float(last["spent_s"])
    _fit(
        model,
        torch.from_numpy(dataset.mel[sounds]),
        torch.from_numpy(codes[pictures]),
        basis,
        Budget(minutes, spent, clock),
        last,
        out,
        options,
    )
    save_checkpoint(out / "speech.pt", {"model": model.state_dict()})


def evaluate(dataset: Dataset, basis: MouthBasis, model: SpeechToMouth) -> list[dict[str, Any]]:
    """Measure, for each segment with audio, the correlation of the aperture at offset 0 and at its best offset, and the amplitude ratio."""
    codes = dataset.codes(basis)[0]
    aperture = basis.aperture_row
    table = []
    for number, segment in enumerate(dataset.segments):
        if not segment.has_sound or segment.frames < 3 * MAX_OFFSET:
            continue
        rows = dataset.rows(number)
        predicted, real = predict(model, dataset.mel[rows]) @ aperture, codes[rows] @ aperture
        curve = offset_curve(predicted, real)
        table.append(
            {
                "clip": segment.clip,
                "frames": segment.frames,
                "correlation": float(curve[MAX_OFFSET]),
                "best": float(curve.max()),
                "offset": int(curve.argmax()) - MAX_OFFSET,
                "amplitude": float(predicted.std() / max(float(real.std()), 1e-6)),
            }
        )
    return table


__all__ = ["SpeechToMouth", "evaluate", "find_offsets", "predict", "train_speech"]
