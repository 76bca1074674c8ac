"""Trains SyncNet on a curated data set, and mends the offsets that it was given while it does so.

First two networks are trained, each on half of the people, and each is asked for the offsets of the other half: a network that has seen
a clip with a wrong offset has learned that offset. Then one network learns from everybody, mended. Offsets come from the
manifest of the data set, or, where it has none, from the `speech` stage, which follows the aperture of the mouth.
"""

from __future__ import annotations

import json
import logging
import zlib
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
from insync.training.data.dataset import Dataset
from insync.training.metrics.sync import MAX_OFFSET, curve_of, frame_grid, metrics_of_curve, mouths_of, save_weights
from insync.training.trainers.run import Budget, Log, cosine, load_checkpoint, save_checkpoint
from insync.training.trainers.speech import augment

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

ROOM = 12  # pixels around the mouths, for augmentation
SEGMENTS = 12  # of a batch
PICTURES = 8  # of each segment
REACH = 40  # frames: the stretch of a segment that these come from
STRETCH = 20  # frames of it whose sounds compete for each of the pictures
STILL_SHARE = 0.15  # of pictures are one frame five times, so that single drawn frames can be judged
LEARNING_RATE = 2e-3
NEAR = (0.6, 0.2)  # of the target belong to the frame itself and to each neighbour: 40 ms can hardly be told apart
CODE_WEIGHT = 0.3  # of reading the mouth code off both embeddings, which ties them to lips instead of to people
FOLD_SHARE = 0.2  # of the time, for each of the two that mend offsets
EDGE = 6  # frames: the farthest that the speech stage looks; a best offset there is none
MIN_FRAMES = 30  # of a segment that is asked for its offset
MIN_CONFIDENCE = 0.03  # LSE-C below which a segment teaches nothing
MAX_MENDED = 8  # frames; what lies further is chance


@dataclass(frozen=True)
class Take:
    """A segment for SyncNet, at 25 frames per second.

    Attributes:
        name: clip and number of the segment.
        person: who is seen, for the two halves.
        mouths: rows of the five mouths of each time, int64 [T, 5].
        sounds: rows whose log-mel belongs to the times, int64 [T]; the offset is not in it.
        offset: frames of 40 ms by which the sound trails the picture.
        teaches: whether picture and sound belong together at all.
    """

    name: str
    person: str
    mouths: Rows
    sounds: Rows
    offset: int
    teaches: bool


class Footage:
    """What SyncNet learns from, in memory: mouths uint8 [N, 68, 68], log-mel float16 [N, 80, 40], mouth codes float32 [N, 12], and takes."""

    def __init__(self, dataset: Dataset, basis: MouthBasis, offsets: dict[int, int] | None) -> None:
        self.mouths = np.concatenate(
            [mouths_of(dataset.crops[i : i + 512], ROOM) for i in range(0, len(dataset.time_s), 512)]
        )
        self.mel = dataset.mel
        plain, mirror = dataset.codes(basis)
        self.codes: Floats = (plain + mirror) / 2  # neither tower has to tell left from right
        self.takes: list[Take] = []
        for number, segment in enumerate(dataset.segments):
            rows = dataset.rows(number)
            grid, nearest = _grid(dataset.time_s[rows])
            if not segment.has_sound or len(grid) < 2 * MOUTH_FRAMES:
                continue
            known = dataset.speaks[number] if offsets is None else number in offsets
            self.takes.append(
                Take(
                    f"{segment.clip} {number}",
                    dataset.people[number],
                    rows.start + nearest,
                    rows.start + nearest[:, MOUTH_FRAMES // 2],
                    0 if offsets is None else offsets.get(number, 0),
                    bool(known),
                )
            )

    def halves(self) -> tuple[list[int], list[int]]:
        """Takes of two halves of the people, by a hash of the person, so that they stay the same when footage is added."""
        sides: tuple[list[int], list[int]] = ([], [])
        for number, take in enumerate(self.takes):
            sides[zlib.crc32(take.person.encode()) & 1].append(number)
        return sides


def _grid(times_s: Floats) -> tuple[Floats, Rows]:
    return frame_grid(times_s) if len(times_s) > MOUTH_FRAMES else (np.zeros(0, np.float32), np.zeros((0, 5), np.int64))


class _Heads(nn.Module):
    """SyncNet with what only its training needs: a temperature, and mouth codes read off both embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.net = channels_last(SyncNet())
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # of the cosines
        self.code = nn.ModuleList([nn.Linear(EMBEDDING, MOUTH) for _ in range(2)])


def distort(mouths: Tensor, rng: np.random.Generator) -> Tensor:
    """Other heads, cameras and light: mouths [B, 5, 68, 68] in [0, 1] → [B, 5, 56, 56], the five of a row changed alike."""
    batch = len(mouths)

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, batch).astype(np.float32))

    angle, flip = draw(-0.14, 0.14), torch.from_numpy(np.where(rng.random(batch) < 0.5, -1.0, 1.0).astype(np.float32))
    scale = draw(0.88, 1.1) * (MOUTH_SIZE / (MOUTH_SIZE + ROOM))
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
    # Something before part of the mouth region, in a third of the rows.
    for row in np.flatnonzero(rng.random(batch) < 0.3):
        height, width = rng.integers(6, 24, 2)
        y, x = rng.integers(0, MOUTH_SIZE - height), rng.integers(0, MOUTH_SIZE - width)
        seen[row, :, y : y + height, x : x + width] = float(rng.random())
    return seen


def _loss(heads: _Heads, footage: Footage, takes: list[int], chance: Floats, rng: np.random.Generator) -> Tensor:
    chosen = rng.choice(takes, min(SEGMENTS, len(takes)), replace=False, p=chance)
    pictures, sounds, at = [], [], []
    for number in chosen:
        take = footage.takes[number]
        # Pairs of one take, mended; a stretch of them competes.
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
    rows, heard_rows = np.concatenate(pictures), np.concatenate(sounds)
    mouths = distort(torch.from_numpy(footage.mouths[rows]).float() / 255, rng)
    mel = augment(torch.from_numpy(footage.mel[heard_rows]).float())
    seen = heads.net.seen(mouths.contiguous(memory_format=torch.channels_last))
    heard = heads.net.embed_audio(mel)
    logits = (seen @ heard.T) * heads.log_scale.clamp(max=3.7).exp()
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
    # The other way: which of the take's pictures was this sound's?
    per_group = blocks.view(groups, PICTURES, STRETCH)
    hit = target.view(groups, PICTURES, STRETCH)
    spoken = hit.sum(1) > 0.5
    backward = -(hit / hit.sum(1, keepdim=True).clamp(min=1e-6) * per_group.log_softmax(1)).sum(1)[spoken].mean()
    # And against everybody's sounds.
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
    read = F.smooth_l1_loss(heads.code[0](seen) * 4, codes) + F.smooth_l1_loss(heads.code[1](heard) * 4, truth)
    return within + 0.5 * backward + 0.5 * across + CODE_WEIGHT * read


def fit(
    footage: Footage, takes: list[int], minutes: float, path: Path, description: str, seed: int, figures: Log
) -> SyncNet:
    """Trains one SyncNet on some takes, or goes on with the checkpoint at path; returns it in evaluation mode."""
    taught = [n for n in takes if footage.takes[n].teaches]
    if len(taught) < 2:
        raise ValueError("SyncNet needs at least two segments whose mouths follow their sound: more, or other, footage")
    lengths = np.sqrt([len(footage.takes[n].sounds) for n in taught])
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
        return {
            "model": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step + 1,
            "spent_s": budget.spent_s,
        }

    for step, bar in budget.steps(first, description):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(budget.share)
        loss = _loss(heads, footage, taught, chance, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimizer.step()
        running = float(loss.detach()) if step == first else 0.98 * running + 0.02 * float(loss.detach())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{running:.3f}")
            figures.write({"step": step, "loss": running, "seconds": budget.spent_s})
        if step % 100 == 99:
            save_checkpoint(path, state())
            figures.draw()
    figures.draw()
    if step > first or last is None:
        save_checkpoint(path, state())
    return heads.net.eval()


@torch.no_grad()
def judge(net: SyncNet, footage: Footage, take: Take) -> Floats:
    """Mean distance of a take's mouths and sound at offsets -15 … 15 frames, its own offset not taken into account: float32 [31]."""
    inner = slice(ROOM // 2, ROOM // 2 + MOUTH_SIZE)
    mouths = footage.mouths[take.mouths][:, :, inner, inner]
    seen = net.seen(torch.from_numpy(mouths).float() / 255).numpy()
    heard = net.embed_audio(torch.from_numpy(footage.mel[take.sounds]).float()).numpy()
    blank = np.zeros((MAX_OFFSET, EMBEDDING), np.float32)
    sounding = np.pad(np.ones(len(heard), bool), MAX_OFFSET)
    curve, _ = curve_of(seen, np.concatenate([blank, heard, blank]), sounding)
    return curve


def mend(net: SyncNet, footage: Footage, takes: list[int]) -> list[dict[str, Any]]:
    """Gives takes the offsets that a network finds, and says what changed: one row of figures for each."""
    rows = []
    for number in takes:
        take = footage.takes[number]
        if len(take.sounds) < MIN_FRAMES:
            continue
        found = metrics_of_curve(judge(net, footage, take), len(take.sounds))
        sure = found.lse_c >= MIN_CONFIDENCE and abs(found.offset) <= MAX_MENDED
        rows.append(
            {
                "take": take.name,
                "frames": found.frames,
                "before": take.offset if take.teaches else None,
                "offset": found.offset,
                "lse_c": round(found.lse_c, 4),
                "lse_d": round(found.lse_d, 4),
                "teaches": sure,
            }
        )
        footage.takes[number] = replace(take, offset=found.offset if sure else take.offset, teaches=sure)
    return rows


def train_syncnet(dataset: Dataset, basis: MouthBasis, out: Path, minutes: float, seed: int = 0) -> None:
    """Trains SyncNet; writes `syncnet.npz`, `syncnet_offsets.json` and `syncnet*.csv` into out, and goes on with an unfinished run there.

    Args:
        dataset: the footage; its crops may be forgotten by the caller once this has begun.
        basis: the mouth basis.
        out: run folder.
        minutes: training time, of which a fifth goes to each half of the people first.
        seed: of the draws.

    Raises:
        FileNotFoundError: the data set has no manifest, and the run no `offsets.csv`.
        ValueError: hardly any segment's mouth follows its sound.
    """
    footage = Footage(dataset, basis, None if dataset.mended else read_offsets(out / "offsets.csv"))
    log.info("SyncNet: %d takes, %d of them in step", len(footage.takes), sum(take.teaches for take in footage.takes))
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
            table += mend(net, footage, other)
        report.write_text(json.dumps(table, indent=1))
        log.info("%d takes in step after mending", sum(take.teaches for take in footage.takes))
        minutes *= 1 - 2 * FOLD_SHARE
    everybody = list(range(len(footage.takes)))
    net = fit(footage, everybody, minutes, out / "syncnet_last.pt", "SyncNet", seed + 2, Log(out / "syncnet.csv"))
    save_weights(net, out / "syncnet.npz")


def read_offsets(path: Path) -> dict[int, int]:
    """Segments in step, and their offsets in frames, as the `speech` stage found them.

    Raises:
        FileNotFoundError: that stage has not been run here.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not in the run's folder: finish the speech stage first")
    rows = np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True))
    return {int(row["segment"]): int(row["offset"]) for row in rows if row["kept"] and abs(row["offset"]) < EDGE}
