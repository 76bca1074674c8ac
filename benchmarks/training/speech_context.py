"""How much speech a frame's mouth needs: `python -m benchmarks.training.speech_context RUN DATASET --minutes M`.

Small networks that hear more or less of the past, or of what is said next, learn from the same targets for the same time, and predict the mouths of
people that none of them has seen. RUN is the folder of a speech stage (it holds `speech_targets.npz`); DATASET is a curated data set of other people.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks import reports
from insync.core.mouth import MouthBasis
from insync.core.spec import MEL_BANDS, MOUTH
from insync.network.blocks import activation
from insync.training.data.dataset import Dataset
from insync.training.data.sequences import MEL_PER_STEP, PAST_MEL, Spoken, of_footage
from insync.training.trainers.losses import code_loss
from insync.training.trainers.run import Budget, cosine, update_average
from insync.training.trainers.speech import FRAME_STEPS, MAX_OFFSET, STEPS, Noise, augment, offset_curve
from insync.training.trainers.speech_targets import Draw, load_targets, padded

Floats = npt.NDArray[np.float32]

REPORT = "speech_context"
REPOSITORY = reports.SAMPLES.parent / "model_repository"
SERVED = (280, 120)  # ms of the past and ahead that the served network hears
PASTS = (80, 280, 680, 1480)  # with 120 ms ahead
AHEADS = (0, 40, 120, 280, 520)  # with 280 ms of the past
MS_PER_COLUMN = 10
CHANNELS, BLOCKS, BATCH, LEARNING_RATE = 128, 5, 32, 2e-3


class Student(nn.Module):
    """The audio projection layer in small, with as much context as asked for.

    Its parameters are as many for every context: wider contexts have wider gaps between a convolution's inputs (dilation), and a wider last layer.

    Args:
        past: columns of log-mel before a frame's time.
        ahead: columns after it.
    """

    def __init__(self, past: int, ahead: int) -> None:
        super().__init__()
        self.past, self.columns = past, past + ahead
        steps = (self.columns - 4) // 2
        gaps = [round((steps - 4) / 2 * (n + 1) / (BLOCKS * (BLOCKS + 1) / 2)) for n in range(BLOCKS)]
        left = steps - 2 * sum(gaps)
        self.front = nn.Sequential(
            nn.Conv1d(MEL_BANDS, CHANNELS, 3), nn.BatchNorm1d(CHANNELS), activation(),
            nn.Conv1d(CHANNELS, CHANNELS, 4, 2), nn.BatchNorm1d(CHANNELS), activation(),
        )  # fmt: skip
        self.gaps = gaps
        self.convs = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 3 if g else 1, dilation=max(g, 1)) for g in gaps)
        self.norms = nn.ModuleList(nn.BatchNorm1d(CHANNELS) for _ in gaps)
        self.act = activation()
        self.out = nn.Sequential(
            nn.Dropout(0.1), nn.Conv1d(CHANNELS, CHANNELS, left), activation(), nn.Conv1d(CHANNELS, MOUTH, 1)
        )

    def forward(self, mel: Tensor) -> Tensor:
        """Predict mouth codes [B, N, 12] from log-mel [B, 80, columns + 2 (N - 1)]."""
        features = self.front(mel)
        for gap, conv, norm in zip(self.gaps, self.convs, self.norms, strict=True):
            inner = features[..., gap : features.shape[-1] - gap]
            features = self.act(inner + norm(conv(features)))
        codes: Tensor = self.out(features)
        return codes.transpose(1, 2)

    def hear(self, one: Spoken, start: int, count: int) -> Floats:
        """Return the log-mel that predicts `count` codes of a sequence from `start` on."""
        shift = (self.past - PAST_MEL) // MEL_PER_STEP
        return one.window(start - shift, self.columns + 2 * (count - 1))


def train(student: Student, sequences: Sequence[Spoken], noise: Noise, basis: MouthBasis, minutes: float) -> Student:
    """Train as the speech stage does; return the averaged student."""
    draw, average = Draw(sequences, 0), copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.03)
    weights, row = torch.from_numpy(basis.deviation / basis.deviation[0]), torch.from_numpy(basis.aperture_row)
    budget = Budget(minutes, clock=time.process_time)
    for step, _ in budget.steps(
        0, f"{student.past * MS_PER_COLUMN} ms + {(student.columns - student.past) * MS_PER_COLUMN} ms"
    ):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(budget.share)
        parts = draw(BATCH, STEPS)
        mel = torch.from_numpy(np.stack([student.hear(one, start, STEPS) for one, start, _ in parts]))
        codes = student(augment(noise.mix(mel, 0.3)))
        known = torch.arange(STEPS)[None] < torch.tensor([n for _, _, n in parts])[:, None]
        filmed = torch.tensor([one.filmed for one, _, _ in parts])[:, None] & known
        real = padded([(one.codes[start : start + n], n) for one, start, n in parts], STEPS)
        read = padded([(one.read[start : start + n], n) for one, start, n in parts], STEPS)
        loss = code_loss(codes[known], read[known], weights, row)
        if int(filmed.sum()) > STEPS:
            loss = loss + 0.5 * code_loss(codes[filmed], real[filmed], weights, row)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        update_average(average, student, step, 0.99)
    return average.eval()


@torch.no_grad()
def score(student: Student, people: Sequence[Spoken], basis: MouthBasis) -> tuple[float, float]:
    """Return the mean correlation of the aperture over sequences, at offset 0 and at the best offset of each."""
    curves = []
    for one in people:
        if len(one.codes) < 3 * MAX_OFFSET * FRAME_STEPS:
            continue
        heard = torch.from_numpy(student.hear(one, 0, len(one.codes)))[None]
        predicted, real = student(heard)[0].numpy() @ basis.aperture_row, one.codes @ basis.aperture_row
        curves.append(offset_curve(predicted[::FRAME_STEPS], real[::FRAME_STEPS]))
    return fmean(float(curve[MAX_OFFSET]) for curve in curves), fmean(float(curve.max()) for curve in curves)


def draw(found: dict[tuple[int, int], tuple[float, float]], path: Path) -> None:
    """Plot both curves."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, values, name, key in (
        (axes[0], PASTS, "ms before the frame, with 120 ms after it", lambda past: (past, SERVED[1])),
        (axes[1], AHEADS, "ms after the frame, with 280 ms before it", lambda ahead: (SERVED[0], ahead)),
    ):
        for number, label in enumerate(("no offset", "best offset")):
            axis.plot(values, [found[key(value)][number] for value in values], marker="o", label=label)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("correlation of the aperture")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a speech stage")
    parser.add_argument("dataset", type=Path, help="curated data set of other people")
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="processor time to train each network for (default: 4)"
    )
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER, help="folder of the report")
    options = parser.parse_args()
    torch.set_num_threads(1)
    basis = MouthBasis.load(REPOSITORY / "lipsync_twin" / "1" / "mouth_basis.npz")
    try:
        sequences, voiceless = load_targets(options.run / "speech_targets.npz")
        people = of_footage(Dataset(options.dataset, pictures=False), basis, None)
    except (OSError, ValueError) as error:
        print(f"{REPORT}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    found = {}
    for past, ahead in dict.fromkeys([*((p, SERVED[1]) for p in PASTS), *((SERVED[0], a) for a in AHEADS)]):
        torch.manual_seed(0)
        student = Student(past // MS_PER_COLUMN, ahead // MS_PER_COLUMN)
        found[past, ahead] = score(
            train(student, sequences, Noise(voiceless, 0), basis, options.minutes), people, basis
        )
    draw(found, options.out / f"{REPORT}.png")
    rows = [
        (f"{past} ms", f"{ahead} ms", *(f"{value:.2f}" for value in scores))
        for (past, ahead), scores in sorted(found.items())
    ]
    parts = [
        f"Correlation of the predicted aperture with the filmed one, mean over {len(people)} segments of people that no network has learned from. Every network "
        f"has {CHANNELS} channels and learned from the same targets for {options.minutes:g} minutes of one processor, one seed: differences below 0.02 mean nothing. The served network "
        f"hears {SERVED[0]} ms before a frame and {SERVED[1]} ms after it; it is larger and learned longer.",
        reports.table(("before the frame", "after it", "r, no offset", "r, best offset"), rows),
        f"![Two curves]({REPORT}.png)",
    ]
    command = f"python -m benchmarks.training.speech_context RUN DATASET --minutes {options.minutes:g}"
    reports.write(options.out / f"{REPORT}.md", "How much speech a frame's mouth needs", command, parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
