"""Ablation study of training, by short runs that each leave one part out: `python -m benchmarks.training.ablation DATASET RUN CLIPS --held-out DATASET --work FOLDER`.

All runs have the same processor time, seed and number of threads. Those of the renderer start from the same checkpoint: RUN's `renderer_last.pt`,
or `--start`. RUN holds `reader.pt`, `occlusion.pt` and `speech.pt` too. Renderers are evaluated on CLIPS, never trained on, with the metrics of
`insync evaluate`; the speech stage on `--held-out`, a data set curated from such clips.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import reports
from benchmarks.training.drawing import TorchGraphs, filmed_codes, sheet
from insync.core.mouth import MouthBasis
from insync.ensemble.models.log_mel import LogMel
from insync.network.model import LipSync
from insync.training.data.audio import read_stored, windows
from insync.training.data.dataset import Dataset
from insync.training.data.manifest import FILE, read_manifest
from insync.training.evaluation.evaluate import Evaluation, Footage, clips_of
from insync.training.metrics.summary import Metrics, means
from insync.training.trainers.checkpoint import load_network
from insync.training.trainers.renderer import RendererOptions, RendererTraining
from insync.training.trainers.run import load_checkpoint, save_checkpoint
from insync.training.trainers.speech import SpeechToMouth, train_speech
from insync.training.trainers.speech import evaluate as evaluate_speech

Picture = npt.NDArray[np.uint8]

REPORT = "ablation"
REPOSITORY = reports.SAMPLES.parent / "model_repository"
SEED = 7


@dataclass(frozen=True)
class Variant:
    """One run of the renderer.

    Attributes:
        name: in the table.
        options: of the training; None: the start checkpoint, without training.
        selective: whether twins are registered with references that the selective frame sampler chose, or with five random ones.
        trained_as: the variant whose weights are used instead of training.
    """

    name: str
    options: RendererOptions | None
    selective: bool = True
    trained_as: str = ""


USUAL = RendererOptions(
    people=3, targets=3, answer_leak_prob=0, adversarial_from=0.0, ema=0.98, sheet_every=10**9, checkpoint_every=10**9
)
VARIANTS = (
    Variant("start checkpoint", None),
    Variant("baseline", USUAL),
    Variant("with SyncNet loss", replace(USUAL, sync=1.0)),
    Variant("without discriminators", replace(USUAL, adversarial_from=2.0)),
    Variant("random references, trained and registered", replace(USUAL, selective=False), selective=False),
    Variant("random references, registered only", None, selective=False, trained_as="baseline"),
)
COLUMNS = ("ssim", "psnr_db", "lmd", "aperture_corr", "aperture_std_ratio", "jitter", "identity", "lse_c", "lse_d")


def train(
    variant: Variant, dataset: Dataset, basis: MouthBasis, run: Path, start: Path, out: Path, minutes: float
) -> int:
    """Train a variant in a run folder of its own; return the number of steps."""
    out.mkdir(parents=True, exist_ok=True)
    for stage in ("reader", "occlusion", "speech"):
        shutil.copy(run / f"{stage}.pt", out)
    checkpoint = load_checkpoint(start)
    if checkpoint is None:
        raise FileNotFoundError(f"{start} does not exist")
    if variant.options is None:
        save_checkpoint(out / "renderer.pt", {"model": checkpoint["average"]})
        return 0
    torch.manual_seed(SEED)
    training = RendererTraining(dataset, basis, out, variant.options, dataset, start)
    training.run(minutes, time.process_time)
    return training.steps


def evaluate(
    network: LipSync, clips: dict[str, Footage], basis: MouthBasis, selective: bool
) -> tuple[Metrics, list[Picture]]:
    """Return the mean metrics of frames drawn with the filmed mouths' codes, and the pictures of each clip."""
    graphs = TorchGraphs(network)
    evaluation = Evaluation(REPOSITORY, 1, graphs)
    rng = np.random.default_rng(SEED)
    measured: list[Metrics] = []
    pictures = []
    for name, whole in clips.items():
        chosen = sorted(rng.choice(len(whole.frames), 5, replace=False))
        footage = whole if selective else replace(whole, frames=[whole.frames[i] for i in chosen])
        graphs.codes = iter(filmed_codes(footage, evaluation.neutral(footage), basis))
        drawing = evaluation.draw(footage, footage.sound)
        measured.append(evaluation.measure(name, "codes", footage, drawing, 0, footage.sound))
        pictures.append(drawing.results)
    return means(measured)[0], pictures


def uncorrected(folder: Path) -> Dataset:
    """Return the data set as if curation had estimated no audio offsets and had not checked that segments hold speech."""
    dataset = Dataset(folder, "train")
    stored = [row for row in read_manifest(folder / FILE) if row.stored and row.kept and row.split == "train"]
    mel = LogMel()
    for number, row in enumerate(stored):
        if row.has_sound and row.used_offset_s:
            rows = dataset.rows(number)
            dataset.mel[rows] = mel(windows(read_stored(folder, row.clip), dataset.time_s[rows]))
    dataset.speaks = [row.has_sound for row in stored]
    return dataset


def speech_rows(
    data: Path, held_out: Path, basis: MouthBasis, out: Path, minutes: float, seeds: int
) -> list[list[str]]:
    """Train the speech stage with and without corrected audio offsets; return rows of the table."""
    held = Dataset(held_out)
    rows = []
    for name, dataset in (
        ("corrected offsets", Dataset(data, "train")),
        ("offsets of the original footage", uncorrected(data)),
    ):
        found = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            folder = out / f"{name} {seed}"
            folder.mkdir(parents=True)
            train_speech(dataset, basis, folder, minutes, time.process_time)
            model = SpeechToMouth()
            state = load_checkpoint(folder / "speech.pt")
            model.load_state_dict(state["model"] if state else {})
            found.append(evaluate_speech(held, basis, model))
        frames = sum(row["frames"] for row in found[0])
        values = [[fmean(row[key] for row in table) for table in found] for key in ("correlation", "best", "amplitude")]
        rows.append(
            [name, str(sum(dataset.speaks)), str(frames), *(" / ".join(f"{v:.2f}" for v in value) for value in values)]
        )
    return rows


def main() -> int:
    """Train, evaluate and write the report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--held-out", type=Path, required=True, help="data set of people never trained on")
    parser.add_argument("--start", type=Path, help="`renderer_last.pt` to start from (default: that of RUN)")
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time of each run (default: %(default)s)")
    parser.add_argument("--speech-minutes", type=float, default=1.5)
    parser.add_argument("--seeds", type=int, default=2, help="number of runs of the speech stage")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each clip")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs; finished runs in it are reused")
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / f"{REPORT}.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    basis = MouthBasis.load(REPOSITORY / "lipsync_twin" / "1" / "mouth_basis.npz")
    reader = Evaluation(REPOSITORY, 1)
    read = {path.name: reader.read(path, options.seconds) for path in clips_of(options.clips)}
    clips = {name: footage for name, footage in read.items() if footage.speaks}
    start = options.start or options.run / "renderer_last.pt"
    dataset = Dataset(options.dataset, "train")
    rows: list[list[str]] = []
    columns: dict[str, list[Picture]] = {}
    for variant in VARIANTS:
        folder = options.work / (variant.trained_as or variant.name)
        steps = 0
        if not (folder / "renderer.pt").exists():
            steps = train(variant, dataset, basis, options.run, start, folder, options.minutes)
            (folder / "steps").write_text(str(steps))
        steps = int((folder / "steps").read_text())
        measured, columns[variant.name] = evaluate(load_network(folder), clips, basis, variant.selective)
        rows.append([variant.name, str(steps), *(f"{getattr(measured, name):.3f}" for name in COLUMNS)])
        print(reports.table(("variant", "steps", *COLUMNS), rows), flush=True)  # noqa: T201
    del dataset
    spoken = speech_rows(
        options.dataset, options.held_out, basis, options.work / "speech", options.speech_minutes, options.seeds
    )
    filmed = [footage.crops[footage.first :] for footage in clips.values()]
    sheet(filmed, columns, options.out.with_suffix(".jpg"))
    reports.write(
        options.out, "Ablation study of training", "python -m benchmarks.training.ablation DATASET RUN CLIPS --held-out DATASET --work FOLDER",
        [
            f"Renderer: {options.minutes:g} minutes of processor time for each run, one thread, seed {SEED}, all from the same checkpoint. Evaluated on "
            f"{len(clips)} clips never trained on ({', '.join(clips)}), {sum(map(len, filmed))} frames, drawn with the filmed mouths' codes: so "
            "the renderer alone is evaluated. Metrics as in `insync evaluate`, means over clips.",
            reports.table(("variant", "steps", *COLUMNS), rows),
            f"![The same frames, drawn with the filmed mouths' codes: filmed, then a column for each variant]({options.out.stem}.jpg)",
            f"Speech: {options.speech_minutes:g} minutes of processor time for each run, {options.seeds} seeds (a value for each). Correlation of the "
            "mouth's aperture with the filmed one on people never trained on, at the offset that curation found and at the best one within "
            "six frames; amplitude is the predicted aperture's standard deviation over the filmed one's.",
            reports.table(("speech stage", "segments", "frames evaluated", "correlation", "best", "amplitude"), spoken),
        ],
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
