"""Training of the mouth reader, which predicts the lip shape from a picture of a mouth and is then a loss of the renderer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from insync.core.mouth import MouthBasis
from insync.network import mask
from insync.network.blocks import channels_last
from insync.network.mouth_reader import MouthReader
from insync.training.data.batches import Light, to_tensor
from insync.training.data.dataset import Dataset, mirrored
from insync.training.trainers.run import Budget, Log, cosine, load_checkpoint, mixed_precision, save_checkpoint


@dataclass(frozen=True)
class ReaderOptions:
    """Settings of the mouth reader's training.

    Attributes:
        batch: frames in a batch.
        learning_rate: peak learning rate.
        jitter: maximum random shift of a mouth, in pixels.
    """

    batch: int = 48
    learning_rate: float = 1e-3
    jitter: int = 6


def train_reader(
    dataset: Dataset, basis: MouthBasis, out: Path, minutes: float, seed: int = 0, options: ReaderOptions | None = None
) -> None:
    """Train on real frames, and write `reader.pt`, `reader.csv` and its plot into `out`; resume an unfinished run there."""
    options = options or ReaderOptions()
    rng = np.random.default_rng(seed)
    differences = dataset.shapes - basis.rest
    shapes = [
        torch.from_numpy((d.reshape(len(d), -1) @ basis.components.T / basis.deviation).astype(np.float32))
        for d in (differences, mirrored(differences, basis.rest))
    ]
    weights = torch.from_numpy(basis.deviation / basis.deviation[0]).sqrt()
    model = channels_last(MouthReader())
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    last = load_checkpoint(out / "reader_last.pt")
    if last is not None:
        model.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
    budget = Budget(minutes, 0.0 if last is None else float(last["spent_s"]))
    metrics, first = Log(out / "reader.csv"), 0 if last is None else int(last["step"])
    running = 0.0
    for step, bar in budget.steps(first, "mouth reader"):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * cosine(budget.share)
        index, flip = rng.integers(0, len(differences), options.batch), bool(rng.random() < 0.5)
        dy, dx = rng.integers(-options.jitter, options.jitter + 1, 2)
        rows = slice(mask.MOUTH_ROWS[0] + dy, mask.MOUTH_ROWS[1] + dy)
        columns = slice(mask.MOUTH_COLUMNS[0] + dx, mask.MOUTH_COLUMNS[1] + dx)
        mouths = Light(rng)(to_tensor(dataset.crops[np.sort(index)][:, rows, columns]))
        if flip:
            mouths = mouths.flip(-1)
        with mixed_precision(torch.device("cpu")):
            read, _ = model(mouths.contiguous(memory_format=torch.channels_last))
        loss = F.smooth_l1_loss(read.float() * weights, shapes[int(flip)][np.sort(index)] * weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running = float(loss.detach()) if step == first else 0.98 * running + 0.02 * float(loss.detach())
        if step % 50 == 0:
            bar.set_postfix(loss=f"{running:.3f}")
            metrics.write({"step": step, "loss": running, "seconds": budget.spent_s})
        if step % 500 == 499:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent_s": budget.spent_s,
            }
            save_checkpoint(out / "reader_last.pt", state)
            metrics.draw()
    metrics.draw()
    save_checkpoint(out / "reader.pt", {"model": model.state_dict()})
