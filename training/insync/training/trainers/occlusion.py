"""Training of the encoder's occlusion branch, which determines alpha and what is hidden from the encoder.

It learns from synthetic occluders and from the face's outline: alpha falls to 0 where an object or the surroundings of the face are visible.
No other loss trains it, so it has its own stage, which is fast because it needs no rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from insync.core.mouth import MouthBasis
from insync.network import mask
from insync.network.blocks import channels_last
from insync.network.model import LipSync
from insync.training.data.batches import Batches
from insync.training.data.dataset import Dataset
from insync.training.trainers.checkpoint import OCCLUSION_PARTS
from insync.training.trainers.run import Budget, Log, cosine, load_checkpoint, mixed_precision, save_checkpoint


@dataclass(frozen=True)
class OcclusionOptions:
    """Settings of the occlusion branch's training.

    Attributes:
        batch: frames in a batch.
        learning_rate: peak learning rate.
        bare_weight: loss weight of uncovered skin relative to occluders: taking a beard for a hand is worse than painting over a hand.
        lips_weight: additional loss weight of uncovered lips: teeth, tongue and moustaches look like objects, and it is worst if the filmed
            mouth remains visible.
    """

    batch: int = 16
    learning_rate: float = 2e-3
    bare_weight: float = 2.0
    lips_weight: float = 2.0


def train_occlusion(
    dataset: Dataset,
    basis: MouthBasis,
    out: Path,
    minutes: float,
    seed: int = 0,
    start: Path | None = None,
    options: OcclusionOptions | None = None,
) -> None:
    """Train until the time is used up, and write `occlusion.pt`, `occlusion.csv` and its plot into `out`; resume an unfinished run there.

    Args:
        dataset: the footage.
        basis: its mouth basis.
        out: run folder.
        minutes: training time, including earlier runs in `out`.
        seed: random seed.
        start: `occlusion.pt` of another run, to initialize the weights.
        options: settings.
    """
    options = options or OcclusionOptions()
    network = channels_last(LipSync())
    if start is not None:
        beginning = load_checkpoint(start)
        if beginning is None:
            raise FileNotFoundError(f"{start} does not exist")
        network.load_state_dict(beginning["model"], strict=False)
    trained = {name: p for name, p in network.named_parameters() if name.startswith(OCCLUSION_PARTS)}
    optimizer = torch.optim.Adam(trained.values(), lr=options.learning_rate)
    last = load_checkpoint(out / "occlusion_last.pt")
    if last is not None:
        network.load_state_dict(last["model"], strict=False)
        optimizer.load_state_dict(last["optimizer"])
    batches = Batches(dataset, basis, 1, 1, seed)
    hole = (mask.window(mask.hole()) > 0).float()
    budget = Budget(minutes, 0.0 if last is None else float(last["spent_s"]))
    metrics, first = Log(out / "occlusion.csv"), 0 if last is None else int(last["step"])
    running = 0.0
    for step, bar in budget.steps(first, "occlusion"):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * cosine(budget.share)
        crops, bare, lips = batches.draw_covered(options.batch)
        with mixed_precision(torch.device("cpu")):
            everywhere = network.source.occluders(crops.contiguous(memory_format=torch.channels_last))
        bare_64 = mask.feature_window(everywhere.float())
        logits = F.interpolate(bare_64, scale_factor=4.0, mode="bilinear", align_corners=False)
        weight = hole * (1 + (options.bare_weight - 1 + options.lips_weight * lips) * bare)
        loss = (F.binary_cross_entropy_with_logits(logits, bare, reduction="none") * weight).sum() / (
            hole.sum() * len(crops)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running = float(loss.detach()) if step == first else 0.98 * running + 0.02 * float(loss.detach())
        if step % 50 == 0:
            bar.set_postfix(loss=f"{running:.3f}")
            metrics.write({"step": step, "loss": running, "seconds": budget.spent_s})
        if step % 500 == 499:
            state = {"optimizer": optimizer.state_dict(), "step": step, "spent_s": budget.spent_s}
            save_checkpoint(out / "occlusion_last.pt", {"model": {k: v.detach() for k, v in trained.items()}, **state})
            metrics.draw()
    metrics.draw()
    save_checkpoint(out / "occlusion.pt", {"model": {name: p.detach() for name, p in trained.items()}})
