"""What the speech stage learns from: filmed mouth codes of footage, and, for any other speech, the codes that a reader of the teacher's features gives.

Readers (`FeaturesToMouth`) are trained on the footage first. They hear whole recordings through the teacher. What they expect of any speech is a
target of the student, which hears 0.4 s (distillation; Hinton et al., 2015): a filmed mouth is one way to say it, theirs is the usual one. Each of
the two readers learns from half of the people and reads the other half, because it would repeat what it was shown.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from insync.core.mouth import MouthBasis
from insync.ensemble.models.log_mel import LogMel
from insync.training.data.dataset import Dataset, half_of
from insync.training.data.sequences import UNHEARD, Spoken, of_footage, of_recordings, read_recordings
from insync.training.data.teacher import STEP_S, Features, Teacher
from insync.training.metrics.speech_judge import REACH, TEACHER, WEIGHTS, FeaturesToMouth, save_judge
from insync.training.trainers.losses import code_loss
from insync.training.trainers.run import Budget, Clock, cosine, update_average

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

BATCH, STEPS = 24, 75  # sequences in a batch, and their length
FEWER_LONG = 0.7  # exponent of a sequence's length in its chance to be drawn


class Draw:
    """Draws parts of sequences; longer sequences more often, but less than in proportion."""

    def __init__(self, sequences: Sequence[Spoken], seed: int) -> None:
        if not sequences:
            raise ValueError(
                "no segment has a mouth that matches its audio at any offset: use more, or other, footage with speech"
            )
        self._sequences, self._rng = sequences, np.random.default_rng(seed)
        weight = np.array([len(one.codes) ** FEWER_LONG for one in sequences])
        for filmed in (True, False):  # as much footage as other speech
            of_kind = np.array([one.filmed is filmed for one in sequences])
            weight[of_kind] /= max(weight[of_kind].sum(), 1e-9)
        self._chance = weight / weight.sum()

    def __call__(self, count: int, steps: int) -> list[tuple[Spoken, int, int]]:
        """Return `count` sequences, each with the first step of a part, and the number of its steps, at most `steps`."""
        chosen = self._rng.choice(len(self._sequences), count, p=self._chance)
        parts = []
        for one in (self._sequences[i] for i in chosen):
            start = int(self._rng.integers(0, max(1, len(one.codes) - steps + 1)))
            parts.append((one, start, min(steps, len(one.codes) - start)))
        return parts


def padded(parts: Sequence[tuple[Floats | Features, int]], steps: int) -> Tensor:
    """Stack parts [n, C] of sequences, with zeros after their end: [B, steps, C]."""
    result = np.zeros((len(parts), steps, parts[0][0].shape[1]), np.float32)
    for row, (values, count) in zip(result, parts, strict=True):
        row[:count] = values[:count]
    return torch.from_numpy(result)


def train_reader_of_features(
    sequences: Sequence[Spoken], basis: MouthBasis, budget: Budget, seed: int = 0, learning_rate: float = 2e-3
) -> FeaturesToMouth:
    """Train a reader on filmed sequences with features, until the budget is used up.

    Raises:
        ValueError: there is no sequence.
    """
    around = ((REACH, REACH), (0, 0))
    draw = Draw([replace(one, features=np.pad(one.features, around)) for one in sequences], seed)
    reader = FeaturesToMouth(sequences[0].features.shape[1])
    average = copy.deepcopy(reader)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=learning_rate, weight_decay=0.03)
    weights, aperture = torch.from_numpy(basis.deviation / basis.deviation[0]), torch.from_numpy(basis.aperture_row)
    reader.train()
    for step, bar in budget.steps(0, "reader of features"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine(budget.share)
        parts = draw(BATCH, STEPS)
        real = padded([(one.codes[start : start + n], n) for one, start, n in parts], STEPS)
        heard = [(one.features[start : start + n + 2 * REACH], n + 2 * REACH) for one, start, n in parts]
        features = padded(heard, STEPS + 2 * REACH).transpose(1, 2)
        known = torch.arange(STEPS)[None] < torch.tensor([n for _, _, n in parts])[:, None]
        loss = code_loss(reader(features)[known], real[known], weights, aperture)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        update_average(average, reader, step, 0.998)
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    return average.eval()


def targets(
    dataset: Dataset, basis: MouthBasis, recordings: Path | None, minutes: float, clock: Clock, seed: int = 0
) -> list[Spoken]:
    """Return all sequences of the speech stage.

    Args:
        dataset: the footage.
        basis: its mouth basis.
        recordings: folder of speech without a face, or None.
        minutes: training time of the readers; what the teacher takes comes on top.
        clock: the source of time.
        seed: random seed.

    Raises:
        ValueError: no segment's mouth matches its audio.
        FileNotFoundError: `recordings` has no audio, or the teacher's weights are not installed.
    """
    teacher = Teacher()
    filmed = of_footage(dataset, basis, teacher)
    halves = [[one for one in filmed if half_of(one.person) == half] for half in (0, 1)]
    if not all(halves):  # one person: better what a reader was shown than nothing
        halves = [filmed, filmed]
    readers = [
        train_reader_of_features(half, basis, Budget(minutes / 2, clock=clock), seed + number)
        for number, half in enumerate(halves)
    ]
    sequences = [
        replace(one, read=reader.read(one.features), features=UNHEARD)
        for half, reader in zip(halves, reversed(readers), strict=True)
        for one in half
    ]
    if recordings is not None:
        audio = read_recordings(recordings)
        features = teacher(list(audio.values()), "teacher, recordings")
        sequences += of_recordings(audio, [(readers[0].read(one) + readers[1].read(one)) / 2 for one in features])
    log.info(
        "%.1f minutes of footage, %.1f of other speech",
        *(sum(len(s.codes) for s in sequences if s.filmed is f) * STEP_S / 60 for f in (True, False)),
    )
    return sequences


def train_judge(dataset: Dataset, basis: MouthBasis, out: Path, minutes: float, seed: int = 0) -> None:
    """Train the speech judge on a data set of people whom no other stage has seen, and write `speech_judge.npz` into `out`.

    Raises:
        ValueError: no segment's mouth matches its audio.
        FileNotFoundError: the teacher's weights are not installed.
    """
    filmed = of_footage(dataset, basis, Teacher(TEACHER))
    save_judge(train_reader_of_features(filmed, basis, Budget(minutes), seed), out / WEIGHTS.name)


def voiceless(folder: Path) -> list[Features]:
    """Return the log-mel [80, T] of recordings without a voice: music and noise."""
    recordings = read_recordings(folder)
    return [mel.astype(np.float16) for mel in LogMel.of_recordings(recordings.values())]


def save_targets(sequences: Sequence[Spoken], noise: Sequence[Features], path: Path) -> None:
    """Write sequences and noise, so that a resumed run need not ask the teacher again."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name in ("mel", "codes", "read"):
        values = [getattr(one, name) for one in sequences]
        arrays[name] = np.concatenate([v.T if name == "mel" else v for v in values])
        arrays[f"{name}_sizes"] = np.array([v.shape[1] if name == "mel" else len(v) for v in values])
    arrays["first"] = np.array([one.first for one in sequences])
    arrays["filmed"] = np.array([one.filmed for one in sequences])
    arrays["names"] = np.array([one.name for one in sequences])
    arrays["noise"] = np.concatenate([one.T for one in noise]) if noise else np.zeros((0, 80), np.float16)
    arrays["noise_sizes"] = np.array([one.shape[1] for one in noise], int)
    with open(path.with_suffix(".part"), "wb") as sink:
        np.savez(sink, **arrays)
    path.with_suffix(".part").replace(path)


def load_targets(path: Path) -> tuple[list[Spoken], list[Features]]:
    """Read what `save_targets` wrote."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}

    def parts(name: str) -> list[npt.NDArray[np.generic]]:
        """Split an array into those of the sequences."""
        return np.split(arrays[name], np.cumsum(arrays[f"{name}_sizes"])[:-1]) if len(arrays[f"{name}_sizes"]) else []

    columns = zip(
        arrays["names"], parts("mel"), arrays["first"], parts("codes"), parts("read"), arrays["filmed"], strict=True
    )
    sequences = [
        Spoken(str(name), np.ascontiguousarray(mel.T), int(first), codes, read, UNHEARD, bool(filmed))
        for name, mel, first, codes, read, filmed in columns
    ]
    return sequences, [np.ascontiguousarray(one.T) for one in parts("noise")]
