"""Training of the audio projection layer and the audio mapping network, which predict mouth codes from 0.4 s of speech.

They learn from footage, and from a teacher (`insync.training.trainers.speech_targets`) that has heard the whole recording. Training runs over
sequences, at the cost of one window for each frame of the log-mel; serving runs over windows, with the same result.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from insync.core.mouth import MouthBasis
from insync.core.spec import MEL_BANDS, MEL_FRAMES
from insync.network.audio_mapping import AudioMapping
from insync.network.audio_projection import AudioProjection
from insync.training.data.dataset import Dataset
from insync.training.data.sequences import SILENCE, Spoken, of_footage
from insync.training.data.teacher import STEP_S, Features
from insync.training.metrics.closures import TOUCHING
from insync.training.trainers.losses import code_loss
from insync.training.trainers.run import Budget, Clock, Log, cosine, load_checkpoint, save_checkpoint, update_average
from insync.training.trainers.speech_targets import Draw, load_targets, padded, save_targets, targets, voiceless

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

MAX_OFFSET = 6  # frames
FRAME_STEPS = 2  # steps of 20 ms in a frame of 40 ms
STEPS = 75  # of each sequence in a batch: 1.5 s
LENGTH = MEL_FRAMES + 2 * (STEPS - 1)  # of its log-mel
READER_SHARE = 0.12  # of the minutes, for the reader of the teacher's features
OPEN = 0.05  # an ordinary aperture, in distances of the outer eye corners
DECIBELS = 9.8 / 0.2302585  # of one unit of log-mel


@dataclass(frozen=True)
class SpeechOptions:
    """Settings of the speech stage: audio projection layer and audio mapping network.

    Attributes:
        batch: sequences of 1.5 s in a batch.
        learning_rate: peak learning rate.
        weight_decay: weight decay of AdamW.
        filmed: weight of the loss on filmed mouth codes.
        read: weight of the loss on the mouth codes that the readers of the teacher's features expect, of footage and of other speech.
        closed: weight of the loss on filmed frames whose lips touch, where the predicted ones do not: an averaged mouth never closes.
        silent: share of the batch that is added as silence, noise or music without a voice, with the mouth at rest.
        mixed: share of the batch that noise or music is mixed into.
        ema: decay of the averaged weights, which are the result.
    """

    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.03
    filmed: float = 0.5
    read: float = 1.0
    closed: float = 0.3
    silent: float = 0.06
    mixed: float = 0.3
    ema: float = 0.998


class SpeechToMouth(nn.Module):
    """The audio projection layer, followed by the audio mapping network."""

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.mapping = AudioProjection(), AudioMapping()

    def forward(self, mel: Tensor) -> Tensor:
        """Predict mouth codes [B, 12] from log-mel windows [B, 80, 40]."""
        code: Tensor = self.mapping(self.projection(mel))
        return code

    def sequence(self, mel: Tensor) -> Tensor:
        """Predict mouth codes [B, N, 12] from log-mel [B, 80, 40 + 2 (N - 1)]."""
        codes: Tensor = self.mapping(self.projection.sequence(mel))
        return codes


def augment(mel: Tensor) -> Tensor:
    """Change loudness, tone and voice pitch of log-mel [B, 80, T], add room noise, and remove bands."""
    batch, _, columns = mel.shape
    mel = mel + (torch.rand(batch, 1, 1) - 0.5) * 0.5  # ± 11 dB
    mel = mel + (torch.rand(batch, 1, 1) - 0.5) * 0.4 * torch.linspace(-1, 1, MEL_BANDS)[None, :, None]
    noise = -1 + torch.rand(batch, 1, 1) * 0.55
    noise = noise + 0.1 * torch.randn(batch, MEL_BANDS, 1) + 0.04 * torch.randn(batch, MEL_BANDS, columns)
    noisy = torch.rand(batch, 1, 1) < 0.4
    mel = torch.where(noisy, torch.logaddexp(mel * 9.8, noise * 9.8) / 9.8, mel)
    quiet = (torch.rand(batch, 1, 1) < 0.15) * torch.rand(batch, 1, 1) * 0.7  # down to -30 dB
    mel = (mel - quiet).clamp(min=SILENCE)
    shift = int(torch.randint(-3, 4, ()))
    if shift:
        mel = torch.roll(mel, shift, dims=1)
    first, count = torch.randint(0, MEL_BANDS, (batch, 1)), torch.randint(0, 12, (batch, 1))
    band = torch.arange(MEL_BANDS)[None]
    hidden = (band >= first) & (band < first + count) & (torch.rand(batch, 1) < 0.3)
    return torch.where(hidden[:, :, None], mel.mean((1, 2), keepdim=True), mel)


class Noise:
    """Recorded music and noise, mixed into speech or alone.

    Args:
        recordings: float16 [80, T] each, log-mel; none leaves synthetic noise only.
        seed: random seed.
    """

    def __init__(self, recordings: Sequence[Features], seed: int) -> None:
        self._recordings, self._rng = [one for one in recordings if one.shape[1] > STEPS], np.random.default_rng(seed)

    def mix(self, mel: Tensor, share: float) -> Tensor:
        """Mix recordings into a share of log-mel [B, 80, T], 3 dB above the speech to 20 dB below it."""
        if not self._recordings:
            return mel
        for row in mel:
            if self._rng.random() < share:
                noise = self._part(row.shape[1])
                below = float(self._rng.uniform(-3, 20)) / DECIBELS
                noise = noise + _level(row) - _level(noise) - below
                row.copy_(torch.logaddexp(row * 9.8, noise.clamp(min=SILENCE) * 9.8) / 9.8)
        return mel

    def alone(self, count: int, columns: int) -> Tensor:
        """Return log-mel [count, 80, columns] without a voice: silence, hiss, music."""
        parts = []
        for _ in range(count):
            kind = self._rng.random()
            if kind < 0.25:
                parts.append(torch.full((MEL_BANDS, columns), SILENCE))
            elif kind < 0.5 or not self._recordings:
                parts.append(SILENCE + torch.rand(1) ** 2 * 0.5 + 0.05 * torch.randn(MEL_BANDS, columns))
            else:
                parts.append(self._part(columns) + float(self._rng.uniform(-0.5, 0.1)))
        return torch.stack(parts).clamp(min=SILENCE)

    def _part(self, columns: int) -> Tensor:
        """Draw a part of a recording, repeated if it is shorter."""
        one = self._recordings[self._rng.integers(len(self._recordings))]
        start = int(self._rng.integers(0, max(1, one.shape[1] - columns)))
        part = one[:, start : start + columns].astype(np.float32)
        return torch.from_numpy(np.tile(part, (1, -(-columns // part.shape[1])))[:, :columns])


def _level(mel: Tensor) -> float:
    """Return the mean power of log-mel, in its own units."""
    return float(torch.logsumexp(mel.flatten() * 9.8, 0) - np.log(mel.numel())) / 9.8


class _Training:
    """The state of the training: model, average, optimizer, step."""

    def __init__(self, options: SpeechOptions, state: dict[str, Any] | None) -> None:
        self.model = SpeechToMouth()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.average, self.first = copy.deepcopy(self.model), 0
        if state is not None:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.first = state["step"]

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def state(self, step: int, budget: Budget) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {**{name: p.state_dict() for name, p in self._parts().items()}, "step": step, "spent_s": budget.spent_s}

    def losses(
        self, parts: Sequence[tuple[Spoken, int, int]], noise: Noise, basis: MouthBasis, options: SpeechOptions
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch."""
        weights, aperture = torch.from_numpy(basis.deviation / basis.deviation[0]), torch.from_numpy(basis.aperture_row)
        mel = torch.from_numpy(np.stack([one.window(start, LENGTH) for one, start, _ in parts]))
        mel = augment(noise.mix(mel, options.mixed))
        silent = max(1, round(options.silent * len(parts)))
        codes = self.model.sequence(torch.cat([mel, noise.alone(silent, LENGTH)]))
        known = torch.arange(STEPS)[None] < torch.tensor([n for _, _, n in parts])[:, None]
        filmed = torch.tensor([one.filmed for one, _, _ in parts])[:, None] & known
        real = padded([(one.codes[start : start + n], n) for one, start, n in parts], STEPS)
        read = padded([(one.read[start : start + n], n) for one, start, n in parts], STEPS)
        losses = {"rest": 0.3 * (weights * codes[-silent:] ** 2).sum(2).mean() / weights.sum()}
        codes = codes[:-silent]
        for name, rows, wanted, weight in (
            ("filmed", filmed, real, options.filmed),
            ("read", known, read, options.read),
        ):
            if int(rows.sum()) > STEPS:
                losses[name] = weight * code_loss(codes[rows], wanted[rows], weights, aperture)
        touching = filmed & (real @ aperture < TOUCHING)
        if touching.any():
            apart = (codes[touching] @ aperture - TOUCHING).clamp(min=0) / OPEN
            losses["closed"] = options.closed * apart.square().mean()
        return losses


def train_speech(
    dataset: Dataset,
    basis: MouthBasis,
    out: Path,
    minutes: float,
    clock: Clock = time.monotonic,
    options: SpeechOptions | None = None,
    recordings: Path | None = None,
    noise: Path | None = None,
    seed: int = 0,
) -> None:
    """Train on a data set, and write `speech.pt` (projection and mapping), `speech.csv` and its plot into `out`.

    Args:
        dataset: the footage, curated: its manifest has the offsets and the segments with usable speech.
        basis: its mouth basis.
        out: run folder; an unfinished run there is resumed.
        minutes: training time, without the time that the teacher takes to hear everything once.
        clock: the source of time.
        options: settings.
        recordings: folder of audio files with speech, without a face, in any language.
        noise: folder of audio files without a voice.
        seed: random seed.

    Raises:
        ValueError: no segment's mouth matches its audio.
        FileNotFoundError: a folder has no audio, or the teacher's weights are not installed.
    """
    options = options or SpeechOptions()
    kept = out / "speech_targets.npz"
    last = load_checkpoint(out / "speech_last.pt")
    if not kept.exists():
        sequences = targets(dataset, basis, recordings, minutes * READER_SHARE, clock, seed)
        save_targets(sequences, [] if noise is None else voiceless(noise), kept)
    sequences, without_voice = load_targets(kept)
    draw, voices = Draw(sequences, seed), Noise(without_voice, seed)
    training = _Training(options, last)
    spent_s = minutes * READER_SHARE * 60 if last is None else float(last["spent_s"])
    budget, metrics = Budget(minutes, spent_s, clock), Log(out / "speech.csv")
    running: dict[str, float] = {}
    training.model.train()
    step = training.first
    for step, bar in budget.steps(training.first, "speech"):
        for group in training.optimizer.param_groups:
            group["lr"] = options.learning_rate * cosine(budget.share)
        losses = training.losses(draw(options.batch, STEPS), voices, basis, options)
        training.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
        training.optimizer.step()
        update_average(training.average, training.model, step, options.ema)
        for name, loss in losses.items():
            running[name] = 0.98 * running.get(name, float(loss.detach())) + 0.02 * float(loss.detach())
        if step % 100 == 0 and len(running) == 4:
            bar.set_postfix({name: f"{value:.3f}" for name, value in running.items()})
            metrics.write({"step": step, **dict(sorted(running.items())), "seconds": budget.spent_s})
            if step % 500 == 0:
                save_checkpoint(out / "speech_last.pt", training.state(step, budget))
                metrics.draw()
    save_checkpoint(out / "speech_last.pt", training.state(step, budget))
    metrics.draw()
    save_checkpoint(out / "speech.pt", {"model": training.average.state_dict()})


@torch.no_grad()
def predict(model: SpeechToMouth, sequence: Spoken) -> Floats:
    """Predict the mouth codes float32 [N, 12] at the steps of a sequence."""
    count = len(sequence.codes)
    mel = sequence.window(0, MEL_FRAMES + 2 * (count - 1))
    codes: Floats = model.eval().sequence(torch.from_numpy(mel)[None])[0].numpy()
    return codes


def offset_curve(predicted: Floats, real: Floats) -> Floats:
    """Compute the correlations of two aperture curves [T], the first shifted by -6 … 6 frames: float32 [13]; 0 if one is constant."""
    curve = []
    for offset in range(-MAX_OFFSET, MAX_OFFSET + 1):
        a = predicted[max(0, offset) : len(predicted) + min(0, offset)]
        b = real[max(0, -offset) : len(real) + min(0, -offset)]
        flat = len(a) < 10 or a.std() < 1e-6 or b.std() < 1e-6
        curve.append(0.0 if flat else float(np.corrcoef(a, b)[0, 1]))
    return np.array(curve, np.float32)


def evaluate(dataset: Dataset, basis: MouthBasis, model: SpeechToMouth) -> list[dict[str, Any]]:
    """Measure, for each segment that speaks, the correlation of the aperture at offset 0 and at its best offset, and the amplitude ratio."""
    aperture = basis.aperture_row
    table = []
    for sequence in of_footage(dataset, basis, None):
        if len(sequence.codes) < 3 * MAX_OFFSET * FRAME_STEPS:
            continue
        predicted, real = predict(model, sequence) @ aperture, sequence.codes @ aperture
        curve = offset_curve(predicted[::FRAME_STEPS], real[::FRAME_STEPS])
        table.append(
            {
                "clip": sequence.name,
                "start_s": sequence.first * STEP_S,
                "frames": len(sequence.codes) // FRAME_STEPS,
                "correlation": float(curve[MAX_OFFSET]),
                "best": float(curve.max()),
                "offset": int(curve.argmax()) - MAX_OFFSET,
                "amplitude": float(predicted.std() / max(float(real.std()), 1e-6)),
            }
        )
    return table


__all__ = ["SpeechOptions", "SpeechToMouth", "evaluate", "offset_curve", "predict", "train_speech"]
