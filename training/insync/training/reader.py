"""Trains the mouth reader, which then judges the renderer: the lip shape that a picture of a mouth shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from insync.ensemble.mouth import MouthBasis
from insync.network import mask
from insync.network.blocks import channels_last
from insync.network.mouth_reader import MouthReader
from insync.training.batches import Light, to_tensor
from insync.training.dataset import Dataset, mirrored
from insync.training.progress import Budget, Log, cosine, load_checkpoint, mixed_precision, save_checkpoint

BATCH = 48
LEARNING_RATE = 1e-3
JITTER = 6  # pixels


def train_reader(dataset: Dataset, basis: MouthBasis, out: Path, minutes: float, seed: int = 0) -> None:
    """Trains on real frames; writes `reader.pt` and `reader.csv` into out, and goes on with an unfinished run there."""
    rng = np.random.default_rng(seed)
    differences = dataset.shapes - basis.rest
    shapes = [
        torch.from_numpy((d.reshape(len(d), -1) @ basis.components.T / basis.deviation).astype(np.float32))
        for d in (differences, mirrored(differences, basis.rest))
    ]
    weights = torch.from_numpy(basis.deviation / basis.deviation[0]).sqrt()
    model = channels_last(MouthReader())
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    last = load_checkpoint(out / "reader_last.pt")
    if last is not None:
        model.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
    budget = Budget(minutes, 0.0 if last is None else float(last["spent_s"]))
    figures, first = Log(out / "reader.csv"), 0 if last is None else int(last["step"])
    running = 0.0
    for step, bar in budget.steps(first, "mouth reader"):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(budget.share)
        index, flip = rng.integers(0, len(differences), BATCH), bool(rng.random() < 0.5)
        dy, dx = rng.integers(-JITTER, JITTER + 1, 2)
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
            figures.write({"step": step, "loss": running, "seconds": budget.spent_s})
        if step % 500 == 499:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent_s": budget.spent_s,
            }
            save_checkpoint(out / "reader_last.pt", state)
    save_checkpoint(out / "reader.pt", {"model": model.state_dict()})
