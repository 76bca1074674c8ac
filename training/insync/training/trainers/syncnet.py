"""Training of SyncNet on a curated data set, which also corrects the offsets of the data set.

First, two networks are trained, each on half of the people, and each then measures the offsets of the other half, because a network that
was trained on a clip with a wrong offset has learned that offset. Then one network is trained on all takes with corrected offsets. The
initial offsets come from the manifest of the data set.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.mouth import MouthBasis
from insync.core.spec import MOUTH
from insync.network.blocks import channels_last
from insync.network.syncnet import EMBEDDING, MOUTH_FRAMES, MOUTH_SIZE, SyncNet
from insync.training.data.dataset import Dataset, half_of
from insync.training.metrics.sync import MAX_OFFSET, curve_of, frame_grid, metrics_of_curve, mouths_of, save_weights
from insync.training.trainers.run import Budget, Log, cosine, load_checkpoint, save_checkpoint
from insync.training.trainers.speech import augment

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

MARGIN = 12  # pixels around the mouths, for augmentation
SEGMENTS = 12  # segments in a batch
PICTURES = 8  # pictures of each segment
REACH = 40  # frames: length of the part of a segment that these are drawn from
STRETCH = 20  # frames of it whose audio is contrasted with each picture
STILL_SHARE = 0.15  # share of pictures that are one frame five times, so that single rendered frames can be measured
LEARNING_RATE = 2e-3
NEAR = (0.6, 0.2)  # target probabilities of the frame itself and of each neighbour: 40 ms are hardly distinguishable
CODE_WEIGHT = 0.3  # loss weight of predicting the mouth code from both embeddings, which makes them depend on lips instead of people
FOLD_SHARE = 0.2  # share of the time for each of the two networks that correct offsets
MIN_FRAMES = 30  # minimum length of a segment whose offset is measured
MIN_CONFIDENCE = 0.03  # LSE-C below which a segment is not used
MAX_CORRECTED = 8  # frames; larger offsets are assumed to be chance


@dataclass(frozen=True)
class Take:
    """A segment for SyncNet, at 25 frames per second.

    Attributes:
        name: clip and number of the segment.
        person: name of the person, for the split into two halves.
        mouths: rows of the five mouths of each time, int64 [T, 5].
        sounds: rows of the log-mel of each time, int64 [T]; without the offset.
        offset: frames of 40 ms by which the audio trails the picture.
        in_sync: whether picture and audio match at that offset.
    """

    name: str
    person: str
    mouths: Rows
    sounds: Rows
    offset: int
    in_sync: bool


class Footage:
    """The training data of SyncNet in memory: mouths uint8 [N, 68, 68], log-mel float16 [N, 80, 40], mouth codes float32 [N, 12], and takes."""

    def __init__(self, dataset: Dataset, basis: MouthBasis) -> None:
        self.mouths = np.concatenate(
            [mouths_of(dataset.crops[i : i + 512], MARGIN) for i in range(0, len(dataset.time_s), 512)]
        )
        self.mel = dataset.mel
        plain, mirror = dataset.codes(basis)
        self.codes: Floats = (plain + mirror) / 2  # left and right need not be distinguished
        self.takes: list[Take] = []
        for number, segment in enumerate(dataset.segments):
            rows = dataset.rows(number)
            grid, nearest = _grid(dataset.time_s[rows])
            if not segment.has_sound or len(grid) < 2 * MOUTH_FRAMES:
                continue
            self.takes.append(
                Take(
                    f"{segment.clip} {number}",
                    dataset.people[number],
                    rows.start + nearest,
                    rows.start + nearest[:, MOUTH_FRAMES // 2],
                    0,
                    bool(dataset.speaks[number]),
                )
            )

    def halves(self) -> tuple[list[int], list[int]]:
        """Split the takes by person into two halves, by a hash of the name, so that the split stays the same when footage is added."""
        sides: tuple[list[int], list[int]] = ([], [])
        for number, take in enumerate(self.takes):
            sides[half_of(take.person)].append(number)
        return sides


def _grid(times_s: Floats) -> tuple[Floats, Rows]:
    """Resample to 25 frames per second as `frame_grid` does; empty if there are too few frames."""
    return frame_grid(times_s) if len(times_s) > MOUTH_FRAMES else (np.zeros(0, np.float32), np.zeros((0, 5), np.int64))


class _Heads(nn.Module):
    """SyncNet with the parts that only its training needs: a temperature, and layers that predict mouth codes from both embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.net = channels_last(SyncNet())
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # of the cosines
        self.code = nn.ModuleList([nn.Linear(EMBEDDING, MOUTH) for _ in range(2)])


def distort(mouths: Tensor, rng: np.random.Generator) -> Tensor:
    """Augment pose, camera and light: mouths [B, 5, 68, 68] in [0, 1] → [B, 5, 56, 56], with the same change for all five of a row."""
    batch = len(mouths)

    def draw(low: float, high: float) -> Tensor:
        """Draw a uniform random number for each row."""
        return torch.from_numpy(rng.uniform(low, high, batch).astype(np.float32))

    angle, flip = draw(-0.14, 0.14), torch.from_numpy(np.where(rng.random(batch) < 0.5, -1.0, 1.0).astype(np.float32))
    scale = draw(0.88, 1.1) * (MOUTH_SIZE / (MOUTH_SIZE + MARGIN))
    stretch = draw(0.93, 1.07)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    matrix = torch.stack([cos * stretch * flip, -sin, draw(-0.1, 0.1), sin * flip, cos, draw(-0.1, 0.1)], 1).view(
        -1, 2, 3
    )
    grid = F.affine_grid(matrix, [batch, MOUTH_FRAMES, MOUTH_SIZE, MOUTH_SIZE], align_corners=False)
    seen = F.grid_sample(mouths, grid, padding_mode="border", align_corners=False)
    bend = draw(-0.5, 0.5).view(-1, 1, 1, 1)
    seen = seen * (1 + bend - bend * seen)
    soft = F.avg_pool2d(seen, 3, 1, 1, count_include_pad=False)
    if rng.random() < 0.5:
        soft = F.avg_pool2d(soft, 3, 1, 1, count_include_pad=False)
    seen = torch.lerp(seen, soft, (draw(-1.0, 1.0).clamp(min=0)).view(-1, 1, 1, 1))
    noise = 0.03 * draw(0, 1).view(-1, 1, 1, 1) * torch.randn(batch, MOUTH_FRAMES, MOUTH_SIZE, MOUTH_SIZE)
    seen = seen + noise
    # An occluder in front of part of the mouth region, in a third of the rows.
    for row in np.flatnonzero(rng.random(batch) < 0.3):
        height, width = rng.integers(6, 24, 2)
        y, x = rng.integers(0, MOUTH_SIZE - height), rng.integers(0, MOUTH_SIZE - width)
        seen[row, :, y : y + height, x : x + width] = float(rng.random())
    return seen


def _loss(heads: _Heads, footage: Footage, takes: list[int], chance: Floats, rng: np.random.Generator) -> Tensor:
    """Compute the loss of a random batch."""
    chosen = rng.choice(takes, min(SEGMENTS, len(takes)), replace=False, p=chance)
    pictures, sounds, at = [], [], []
    for number in chosen:
        take = footage.takes[number]
        # Pairs of one take at the corrected offset; the audio of one part of the take is contrasted with its pictures.
        offset, count = take.offset, len(take.sounds)
        index = np.arange(max(0, -offset), min(count, count - offset))
        start = int(rng.integers(0, max(1, len(index) - REACH + 1)))
        index = index[start : start + REACH]
        index = rng.choice(index, STRETCH, replace=len(index) < STRETCH)
        own = np.arange(PICTURES)
        rows = take.mouths[index[own]].copy()
        still = rng.random(PICTURES) < STILL_SHARE
        rows[still] = rows[still][:, [MOUTH_FRAMES // 2] * MOUTH_FRAMES]
        pictures.append(rows)
        sounds.append(take.sounds[index + offset])
        at.append((own, index))
    rows, audio_rows = np.concatenate(pictures), np.concatenate(sounds)
    mouths = distort(torch.from_numpy(footage.mouths[rows]).float() / 255, rng)
    mel = augment(torch.from_numpy(footage.mel[audio_rows]).float())
    seen = heads.net.seen(mouths.contiguous(memory_format=torch.channels_last))
    audio = heads.net.embed_audio(mel)
    logits = (seen @ audio.T) * heads.log_scale.clamp(max=3.7).exp()
    groups = len(chosen)
    target = torch.zeros(len(seen), STRETCH)
    for g, (own, index) in enumerate(at):
        apart = np.abs(index[own][:, None] - index[None])
        target[g * PICTURES : (g + 1) * PICTURES] = torch.from_numpy(
            (NEAR[0] * (apart == 0) + NEAR[1] * (apart == 1)).astype(np.float32)
        )
    target = target / target.sum(1, keepdim=True)
    blocks = torch.stack(
        [logits[g * PICTURES : (g + 1) * PICTURES, g * STRETCH : (g + 1) * STRETCH] for g in range(groups)]
    ).flatten(0, 1)
    within = -(target * blocks.log_softmax(1)).sum(1).mean()
    # The reverse direction: which of the take's pictures matches this audio?
    per_group = blocks.view(groups, PICTURES, STRETCH)
    hit = target.view(groups, PICTURES, STRETCH)
    spoken = hit.sum(1) > 0.5
    backward = -(hit / hit.sum(1, keepdim=True).clamp(min=1e-6) * per_group.log_softmax(1)).sum(1)[spoken].mean()
    # And against the audio of all takes in the batch.
    everything = torch.zeros_like(logits)
    for g in range(groups):
        everything[g * PICTURES : (g + 1) * PICTURES, g * STRETCH : (g + 1) * STRETCH] = target[
            g * PICTURES : (g + 1) * PICTURES
        ]
    across = -(everything * logits.log_softmax(1)).sum(1).mean()
    codes = torch.from_numpy(footage.codes[rows[:, MOUTH_FRAMES // 2]])
    truth = torch.from_numpy(
        np.concatenate([footage.codes[footage.takes[n].sounds[i]] for n, (_, i) in zip(chosen, at, strict=True)])
    )
    read = F.smooth_l1_loss(heads.code[0](seen) * 4, codes) + F.smooth_l1_loss(heads.code[1](audio) * 4, truth)
    return within + 0.5 * backward + 0.5 * across + CODE_WEIGHT * read


def fit(
    footage: Footage, takes: list[int], minutes: float, path: Path, description: str, seed: int, metrics: Log
) -> SyncNet:
    """Train one SyncNet on some takes, or resume from the checkpoint at `path`; return it in evaluation mode."""
    usable = [n for n in takes if footage.takes[n].in_sync]
    if len(usable) < 2:
        raise ValueError(
            f"{len(usable)} segments have a mouth that matches its audio; SyncNet needs at least two segments: use more, or other, footage"
        )
    lengths = np.sqrt([len(footage.takes[n].sounds) for n in usable])
    chance = (lengths / lengths.sum()).astype(np.float64)
    heads = _Heads()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    last = load_checkpoint(path)
    spent, first = 0.0, 0
    if last is not None:
        heads.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
        spent, first = float(last["spent_s"]), int(last["step"])
    budget, running = Budget(minutes, spent), 0.0
    rng = np.random.default_rng([seed, first])
    heads.train()
    step = first

    def state() -> dict[str, Any]:
        """Return everything that a checkpoint contains."""
        return {
            "model": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step + 1,
            "spent_s": budget.spent_s,
        }

    for step, bar in budget.steps(first, description):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(budget.share)
        loss = _loss(heads, footage, usable, chance, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimizer.step()
        running = float(loss.detach()) if step == first else 0.98 * running + 0.02 * float(loss.detach())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{running:.3f}")
            metrics.write({"step": step, "loss": running, "seconds": budget.spent_s})
        if step % 100 == 99:
            save_checkpoint(path, state())
            metrics.draw()
    metrics.draw()
    if step > first or last is None:
        save_checkpoint(path, state())
    return heads.net.eval()


@torch.no_grad()
def distance_curve(net: SyncNet, footage: Footage, take: Take) -> Floats:
    """Compute the mean distance of a take's mouths and audio at offsets of -15 … 15 frames, ignoring the take's offset: float32 [31]."""
    inner = slice(MARGIN // 2, MARGIN // 2 + MOUTH_SIZE)
    mouths = footage.mouths[take.mouths][:, :, inner, inner]
    seen = net.seen(torch.from_numpy(mouths).float() / 255).numpy()
    audio = net.embed_audio(torch.from_numpy(footage.mel[take.sounds]).float()).numpy()
    blank = np.zeros((MAX_OFFSET, EMBEDDING), np.float32)
    sounding = np.pad(np.ones(len(audio), bool), MAX_OFFSET)
    curve, _ = curve_of(seen, np.concatenate([blank, audio, blank]), sounding)
    return curve


def correct_offsets(net: SyncNet, footage: Footage, takes: list[int]) -> list[dict[str, Any]]:
    """Set the offsets of takes to those that a network measures, and return one row of metrics for each take."""
    rows = []
    for number in takes:
        take = footage.takes[number]
        if len(take.sounds) < MIN_FRAMES:
            continue
        found = metrics_of_curve(distance_curve(net, footage, take), len(take.sounds))
        sure = found.lse_c >= MIN_CONFIDENCE and abs(found.offset) <= MAX_CORRECTED
        rows.append(
            {
                "take": take.name,
                "frames": found.frames,
                "before": take.offset if take.in_sync else None,
                "offset": found.offset,
                "lse_c": round(found.lse_c, 4),
                "lse_d": round(found.lse_d, 4),
                "teaches": sure,
            }
        )
        footage.takes[number] = replace(take, offset=found.offset if sure else take.offset, in_sync=sure)
    return rows


def train_syncnet(dataset: Dataset, basis: MouthBasis, out: Path, minutes: float, seed: int = 0) -> None:
    """Train SyncNet, and write `syncnet.npz`, `syncnet_offsets.json` and `syncnet*.csv` into `out`; resume an unfinished run there.

    Args:
        dataset: the footage; its crops are not needed any more once the training runs.
        basis: the mouth basis.
        out: run folder.
        minutes: training time, of which a fifth is for each of the two networks that correct offsets.
        seed: random seed.

    Raises:
        ValueError: the data set has no manifest; fewer than two segments have a mouth that matches its audio.
    """
    if not dataset.has_manifest:
        raise ValueError(
            f"{dataset.folder.name} has no manifest, which has the audio offsets: run `insync curate` again"
        )
    footage = Footage(dataset, basis)
    log.info("SyncNet: %d takes, %d of them in sync", len(footage.takes), sum(take.in_sync for take in footage.takes))
    report = out / "syncnet_offsets.json"
    halves = footage.halves()
    if min(len(half) for half in halves) >= 4:
        table = []
        nets = [
            fit(
                footage, half, FOLD_SHARE * minutes, out / f"syncnet_half{i}.pt", f"SyncNet, half {i + 1}", seed + i,
                Log(out / f"syncnet_half{i}.csv"),
            )
            for i, half in enumerate(halves)
        ]  # fmt: skip
        for net, other in zip(nets, reversed(halves), strict=True):
            table += correct_offsets(net, footage, other)
        report.write_text(json.dumps(table, indent=1))
        log.info("%d takes in sync after the correction of offsets", sum(take.in_sync for take in footage.takes))
        minutes *= 1 - 2 * FOLD_SHARE
    all_takes = list(range(len(footage.takes)))
    net = fit(footage, all_takes, minutes, out / "syncnet_last.pt", "SyncNet", seed + 2, Log(out / "syncnet.csv"))
    save_weights(net, out / "syncnet.npz")
