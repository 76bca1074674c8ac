"""Adversarial training of the renderer on mouth codes of real frames: source and reference encoders, alignment network and inpainter.

Losses: colours and their gradients (L1), weighted towards the lips; the flow of the copying, against landmarks; the mouth reader's features
and predicted lip shape; a local and a global discriminator, conditioned on the mouth code, with the non-saturating loss (Goodfellow et al., 2014),
lazy R1 (Karras et al., 2020), feature matching (Wang et al., 2018) and an adaptive weight that keeps their gradient in proportion to that of
the other losses (after Esser et al., 2021). Alpha is trained separately (`occlusion`).
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.mouth import MouthBasis
from insync.network import mask
from insync.network.blocks import channels_last
from insync.network.copying import pixels_of, taken
from insync.network.discriminators import Discriminator, global_view, local_view
from insync.network.inpainter import Painted
from insync.network.model import LipSync
from insync.network.mouth_reader import MouthReader
from insync.network.syncnet import MOUTH_FRAMES
from insync.training.data.batches import Batch, Batches
from insync.training.data.dataset import Dataset
from insync.training.metrics.sync import SyncLoss
from insync.training.trainers.checkpoint import OCCLUSION_PARTS, RENDERER_PARTS
from insync.training.trainers.losses import MouthReaderLoss, flow_error, picture_loss, squared_gradient
from insync.training.trainers.run import (
    Budget,
    Clock,
    Log,
    cosine,
    load_checkpoint,
    mixed_precision,
    save_checkpoint,
    update_average,
)

log = logging.getLogger(__name__)


# Weight of inpainted colours outside the lips, where they are rarely used.
BESIDE = 0.1
# Weight of colours outside the face: alpha hides them, but not completely at the edge.
SURROUNDINGS = 0.4


@dataclass(frozen=True)
class RendererOptions:
    """Settings of the renderer's training.

    Attributes:
        selective: whether references are selected for different mouth shapes, as registration does, or at random.
        photos: share of people whose references are a single photo, five times, in most cases with the mouth at rest.
        occluded: share of frames with an occluder in front of the mouth.
        sync: weight of the SyncNet loss (Prajwal et al., 2020), on five consecutive rendered frames and their audio; 0 disables it.
        sync_every: steps between the batches of five consecutive frames that it needs.
        trained: prefixes of the names of trained parameters; the others keep their initial values.
        people: people in a batch.
        targets: frames of each person.
        learning_rate: peak learning rate of the generator.
        discriminator_rate: peak learning rate of the discriminators.
        adversarial_from: share of the time after which the discriminators are used; at once if they are already trained; 1 or more: never.
        answer_leak_prob: initial probability that a person's references include the target; falls to 0.
        hinted_until: share of the time after which that probability is 0.
        realism: gradient of the adversarial loss at the picture's colours, relative to that of the other losses.
        r1: weight of the gradient penalty.
        lazy_every: steps between gradient penalties, and between measurements for `realism`.
        ema: decay of the averaged weights, which are the result.
        sheet_every: steps between sample sheets.
        checkpoint_every: steps between checkpoints.
    """

    selective: bool = True
    photos: float = 0.5
    occluded: float = 0.3
    sync: float = 0.0
    sync_every: int = 2
    trained: tuple[str, ...] = RENDERER_PARTS
    people: int = 3
    targets: int = 4
    learning_rate: float = 4e-4
    discriminator_rate: float = 4e-4
    adversarial_from: float = 0.12
    answer_leak_prob: float = 0.7
    hinted_until: float = 0.3
    realism: float = 0.5
    r1: float = 0.05
    lazy_every: int = 16
    ema: float = 0.998
    sheet_every: int = 250
    checkpoint_every: int = 200


def _finished(out: Path, stage: str) -> dict[str, Any]:
    """Load the result of another stage."""
    state = load_checkpoint(out / f"{stage}.pt")
    if state is None:
        raise FileNotFoundError(f"{stage}.pt is not in the run's folder: train that stage first (insync train {stage})")
    return state


def _load_fitting(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the tensors whose names and shapes agree."""
    own = module.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    missing = sorted(own.keys() - fitting.keys())
    if missing:
        log.info("%d of %d tensors keep their random initialization: %s", len(missing), len(own), ", ".join(missing))
    module.load_state_dict(fitting, strict=False)


class RendererTraining:
    """A training run: its networks, optimizers and state.

    Args:
        dataset: the footage.
        basis: its mouth basis.
        out: run folder with `reader.pt` and `occlusion.pt`; receives `renderer_last.pt`, `renderer.pt`, `renderer.csv` and `sheets/`.
        options: settings.
        validation: footage for the sample sheets.
        start: `renderer_last.pt` of another run, to initialize the networks as far as shapes agree.
    """

    def __init__(
        self,
        dataset: Dataset,
        basis: MouthBasis,
        out: Path,
        options: RendererOptions,
        validation: Dataset,
        start: Path | None = None,
    ) -> None:
        self._out, self._options, self._basis = out, options, basis
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        seed = torch.initial_seed() % 2**31
        self._batches = Batches(
            dataset, basis, options.people, options.targets, seed, options.selective, options.photos, options.occluded
        )
        self._shown = Batches(validation, basis, min(8, len(validation.segments)), 1, seed=1)
        self._network = channels_last(LipSync()).to(self._device)
        self._local, self._global = (channels_last(Discriminator()).to(self._device) for _ in range(2))
        self._joining = options.adversarial_from
        if start is not None:
            beginning = load_checkpoint(start)
            if beginning is None:
                raise FileNotFoundError(f"{start} does not exist")
            _load_fitting(self._network, beginning["average"])
            for name, part in (("local", self._local), ("global", self._global)):
                if name in beginning:
                    _load_fitting(part, beginning[name])
                    self._joining = 0.0 if options.adversarial_from < 1 else 1.0
        self._network.load_state_dict(_finished(out, "occlusion")["model"], strict=False)
        self._network.placing.follow(basis)
        self._average = copy.deepcopy(self._network).eval().requires_grad_(False)
        reader = MouthReader()
        reader.load_state_dict(_finished(out, "reader")["model"])
        self._judge = MouthReaderLoss(channels_last(reader).to(self._device), basis)
        self._sync = SyncLoss().to(self._device) if options.sync > 0 else None
        trained = [p for name, p in self._network.named_parameters() if name.startswith(options.trained)]
        self._optimizer = torch.optim.Adam(trained, lr=options.learning_rate, betas=(0.5, 0.99))
        critics = [*self._local.parameters(), *self._global.parameters()]
        self._critic_optimizer = torch.optim.Adam(critics, lr=options.discriminator_rate, betas=(0.5, 0.99))
        self._step, self._spent_s, self._answer_leak_prob = 0, 0.0, options.answer_leak_prob
        self._feather = mask.feather()[..., slice(*mask.ROWS), slice(*mask.COLUMNS)].to(self._device)
        self._metrics: dict[str, float] = {}
        self._log = Log(out / "renderer.csv")
        self._pull: float | None = None

    def _parts(self) -> dict[str, Any]:
        """Return everything that a checkpoint contains."""
        return {
            "network": self._network, "average": self._average, "local": self._local, "global": self._global,
            "optimizer": self._optimizer, "critic_optimizer": self._critic_optimizer,
        }  # fmt: skip

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self._step

    def resume(self) -> None:
        """Resume from the checkpoint of an earlier run in the same folder."""
        state = load_checkpoint(self._out / "renderer_last.pt")
        if state is not None:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self._step, self._spent_s = int(state["step"]), float(state["spent_s"])
            log.info("resumed at step %d", self._step)

    def run(self, minutes: float, clock: Clock = time.monotonic) -> None:
        """Train until `minutes`, including earlier runs, have passed on the clock; then write `renderer.pt`."""
        budget = Budget(minutes, self._spent_s, clock)
        for step, bar in budget.steps(self._step, "renderer"):
            self._step = step
            factor = cosine(budget.share)
            for optimizer, rate in (
                (self._optimizer, self._options.learning_rate),
                (self._critic_optimizer, self._options.discriminator_rate),
            ):
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
            self._answer_leak_prob = self._options.answer_leak_prob * max(
                0.0, 1 - budget.share / self._options.hinted_until
            )
            self._train_step(adversarial=min(1.0, max(0.0, budget.share - self._joining) / 0.05))
            if self._step % 20 == 0:
                bar.set_postfix(
                    **{
                        key: f"{value:.3f}"
                        for key, value in self._metrics.items()
                        if key in ("colour", "code", "astray", "real", "fake")
                    }
                )
                self._log.write({"step": self._step, "seconds": budget.spent_s, **self._metrics})
            if self._step % self._options.sheet_every == 0:
                self.sheet(self._out / "sheets" / f"{self._step:06d}.jpg")
            if self._step % self._options.checkpoint_every == self._options.checkpoint_every - 1:
                self._save(budget)
        self._save(budget)
        model = {
            name: value
            for name, value in self._average.state_dict().items()
            if name.startswith(RENDERER_PARTS) and not name.startswith(OCCLUSION_PARTS)
        }
        save_checkpoint(self._out / "renderer.pt", {"model": model})
        self.sheet(self._out / "sheets" / "last.jpg")

    def _save(self, budget: Budget) -> None:
        """Write a checkpoint and the plot of the metrics."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        self._log.draw()
        save_checkpoint(self._out / "renderer_last.pt", {**state, "step": self._step + 1, "spent_s": budget.spent_s})

    def _render(self, network: LipSync, batch: Batch, codes: Tensor, hidden: Tensor | None) -> Painted:
        """Render a batch."""
        references = batch.references.to(self._device)
        features, identity = network.reference(references, batch.reference_codes.to(self._device))
        repeat = len(codes) // len(features)
        crops = batch.crops.to(self._device).contiguous(memory_format=torch.channels_last)
        painted = network.render(
            crops,
            features.repeat_interleave(repeat, 0).float(),
            identity.repeat_interleave(repeat, 0),
            pixels_of(references).repeat_interleave(repeat, 0),
            batch.reference_places.to(self._device).repeat_interleave(repeat, 0),
            batch.places.to(self._device),
            codes,
            hidden,
        )
        return Painted(*(part.float() for part in painted))

    def _train_step(self, adversarial: float) -> None:
        """Take one step; `adversarial` is the weight of the adversarial losses, 0 to 1."""
        spoken = self._sync is not None and self._step % self._options.sync_every == 0
        batch = self._batches.draw(answer_leak_prob=self._answer_leak_prob, spoken=spoken)
        codes, real = batch.codes.to(self._device), batch.real.to(self._device)
        window = real[..., slice(*mask.ROWS), slice(*mask.COLUMNS)]
        lips = batch.lips.to(self._device)
        face = batch.face.to(self._device)
        cover = self._feather * face
        with mixed_precision(self._device):
            painted = self._render(self._network, batch, codes, batch.hidden.to(self._device))
            colours = painted.colours
            shown = cover * colours + (1 - cover) * window
            weight = self._feather * (SURROUNDINGS + (1 - SURROUNDINGS) * face) * (1 + 4 * lips)
            colour, edges = picture_loss(colours, window, weight)
            perceptual, reading = self._judge(local_view(shown), local_view(window))
            copied, _ = picture_loss(painted.copied, window, weight)
            copied_points = batch.reference_points.to(self._device)
            copied_points = copied_points.repeat_interleave(len(codes) // len(copied_points), 0).flatten(2)
            copied_points = taken(painted.chosen, copied_points).unflatten(2, (-1, 2))
            astray = flow_error(painted.places, batch.points.to(self._device), copied_points)
            # The inpainter is trained inside the mouth even where everything is copied; otherwise it would never come into use.
            own, own_edges = picture_loss(painted.own, window, self._feather * (BESIDE + lips))
            loss = 4 * colour + 4 * edges + 0.5 * perceptual + 1.5 * reading + copied + 0.1 * astray
            loss = loss + own + own_edges
            self._metrics = {
                "colour": float(colour.detach()), "edges": float(edges.detach()), "perceptual": float(perceptual.detach()),
                "code": float(reading.detach()), "copied": float(copied.detach()), "own": float(own.detach()), "astray": float(astray.detach()),
                "painted": float((weight * (1 - painted.kept.detach())).sum() / weight.sum()),
                "matching": 0.0, "adversarial": 0.0, "pull": 0.0, "real": 0.0, "fake": 0.0,
            }  # fmt: skip
            if self._sync is not None:
                unsynced = self._unsynced(self._sync, shown, batch) if spoken else torch.zeros((), device=self._device)
                loss = loss + self._options.sync * unsynced
                self._metrics["unsynced"] = float(unsynced.detach())
            if adversarial > 0:
                matching, fooled = self._fool(shown, window, real, codes)
                pull = self._measured_pull(loss, fooled, colours)
                loss = loss + adversarial * (0.5 * matching + pull * fooled)
                self._metrics |= {
                    "matching": float(matching.detach()), "adversarial": float(fooled.detach()), "pull": pull,
                }  # fmt: skip
        self._optimizer.zero_grad()
        loss.backward()
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, 2.0)
        self._optimizer.step()
        if adversarial > 0:
            self._train_critics(shown.detach(), window, real, codes)
        update_average(self._average, self._network, self._step, self._options.ema)

    def _measured_pull(self, loss: Tensor, fooled: Tensor, colours: Tensor) -> float:
        """Return the weight of `fooled` at which its gradient at the picture's colours is `realism` times that of the other losses."""
        if self._pull is None or self._step % self._options.lazy_every == 0:
            others, own = (torch.autograd.grad(part, colours, retain_graph=True)[0].norm() for part in (loss, fooled))
            now = min(10.0, self._options.realism * float(others) / (float(own) + 1e-8))
            self._pull = now if self._pull is None else 0.8 * self._pull + 0.2 * now
        return self._pull

    def _unsynced(self, loss: SyncLoss, shown: Tensor, batch: Batch) -> Tensor:
        """Compute the SyncNet loss."""
        mel = batch.mel.to(self._device)[MOUTH_FRAMES // 2 :: MOUTH_FRAMES]
        value: Tensor = loss(local_view(shown).unflatten(0, (-1, MOUTH_FRAMES)), mel)
        return value

    def _views(self, shown: Tensor, real: Tensor) -> tuple[tuple[Discriminator, Tensor], ...]:
        """Return each discriminator with its view of a batch."""
        return (self._local, local_view(shown)), (self._global, global_view(real, shown))

    def _fool(self, shown: Tensor, window: Tensor, real: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the generator's feature matching loss and adversarial loss."""
        matching, fooled = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        for (critic, fake_view), (_, real_view) in zip(
            self._views(shown, real), self._views(window, real), strict=True
        ):
            critic.requires_grad_(False)
            score, maps = critic(fake_view, codes)
            with torch.no_grad():
                _, real_maps = critic(real_view, codes)
            matching = (
                matching
                + torch.stack(
                    [
                        (a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-6)
                        for a, b in zip(maps, real_maps, strict=True)
                    ]
                ).mean()
            )
            fooled = fooled + F.softplus(-score.float()).mean()
            critic.requires_grad_(True)
        return matching, fooled

    def _train_critics(self, shown: Tensor, window: Tensor, real: Tensor, codes: Tensor) -> None:
        """Take one step of the discriminators."""
        # A real mouth with the code of another frame also counts as fake (Reed et al., 2016), so that the mouth must match its code.
        wrong = torch.roll(codes, 1, 0)
        differs = ((wrong - codes).abs().mean(1) > 0.5).float()[:, None, None, None]
        with mixed_precision(self._device):
            loss = torch.zeros((), device=self._device)
            for (critic, fake_view), (_, real_view) in zip(
                self._views(shown, real), self._views(window, real), strict=True
            ):
                true, _ = critic(real_view, codes)
                false, _ = critic(fake_view, codes)
                mismatch, _ = critic(real_view, wrong)
                loss = loss + F.softplus(-true.float()).mean() + 0.75 * F.softplus(false.float()).mean()
                loss = loss + 0.25 * (differs * F.softplus(mismatch.float())).mean()
                self._metrics |= {
                    "real": float(true.detach().float().mean()),
                    "fake": float(false.detach().float().mean()),
                }
        if self._step % self._options.lazy_every == 0:
            for critic, view in self._views(window, real):
                loss = loss + self._options.lazy_every * self._options.r1 / 2 * squared_gradient(critic, view, codes)
        self._critic_optimizer.zero_grad()
        loss.backward()
        self._critic_optimizer.step()

    @torch.no_grad()
    def sheet(self, path: Path) -> None:
        """Draw a sample sheet from the validation footage; rows: real, rendered, the copied colours, and the share of these that is kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._shown._rng = np.random.default_rng(1)
        batch = self._shown.draw(augmented=False)
        painted = Painted(
            *(part.cpu() for part in self._render(self._average, batch, batch.codes.to(self._device), None))
        )
        window = batch.real[..., slice(*mask.ROWS), slice(*mask.COLUMNS)]
        mixed = painted.alpha * painted.colours + (1 - painted.alpha) * window
        rows = [batch.real]
        for part in (mixed, painted.copied, painted.kept.expand(-1, 3, -1, -1)):
            shown = batch.real.clone()
            shown[..., slice(*mask.ROWS), slice(*mask.COLUMNS)] = part
            rows.append(shown)
        sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
        picture: npt.NDArray[np.uint8] = (sheet.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def train_renderer(
    dataset: Dataset,
    basis: MouthBasis,
    out: Path,
    minutes: float,
    validation: Dataset,
    options: RendererOptions | None = None,
    start: Path | None = None,
) -> None:
    """Train the renderer, or resume an unfinished run in `out`; see `RendererTraining`."""
    training = RendererTraining(dataset, basis, out, options or RendererOptions(), validation, start)
    training.resume()
    training.run(minutes)


__all__ = ["RendererOptions", "RendererTraining", "train_renderer"]
