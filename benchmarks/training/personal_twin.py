"""Fine-tuning for one person: `python -m benchmarks.training.personal_twin CLIPS --run RUN --work FOLDER` trains a small part of the decoder on one clip.

The first two thirds of each clip are curated, and the generic network is fine-tuned on them. The last third, which it has not seen, is drawn with
the filmed mouths' codes, before and after. RUN holds `reader.pt`, `occlusion.pt`, `speech.pt` and `renderer_last.pt`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import av
import numpy as np
import numpy.typing as npt
import torch

from benchmarks import reports
from benchmarks.training.drawing import TorchGraphs, filmed_codes, sheet
from insync.core.mouth import MouthBasis
from insync.network.model import LipSync
from insync.training.curation.pipeline import curate
from insync.training.data.dataset import Dataset
from insync.training.evaluation.evaluate import Evaluation, Footage
from insync.training.metrics.summary import Metrics
from insync.training.trainers.checkpoint import load_network
from insync.training.trainers.renderer import RendererOptions, RendererTraining
from insync.training.trainers.run import load_checkpoint, save_checkpoint

Picture = npt.NDArray[np.uint8]

REPORT = "personal_twin"
REPOSITORY = reports.SAMPLES.parent / "model_repository"
TRAINED = 2 / 3  # of a clip
EVALUATED = 75  # frames, at most
SEED = 7
PARTS = {
    "FiLM layers": ("inpainter.fine.film", "inpainter.coarse", "inpainter.merged.film"),
    "half-resolution layers": ("inpainter.to_half", "inpainter.beside", "inpainter.half_body", "inpainter.to_full"),
}
USUAL = RendererOptions(
    people=1, targets=6, answer_leak_prob=0, adversarial_from=2.0, learning_rate=2e-4, ema=0.98, sheet_every=10**9,
    checkpoint_every=10**9,
)  # fmt: skip
COLUMNS = ("ssim", "psnr_db", "lmd", "aperture_corr", "identity", "lse_c")


def copy_beginning(clip: Path, seconds: float, out: Path) -> None:
    """Copy the first seconds of a clip, with its sound."""
    with av.open(str(clip)) as source, av.open(str(out), "w") as sink:
        streams = {
            s.index: sink.add_stream_from_template(s) for s in (*source.streams.video[:1], *source.streams.audio[:1])
        }
        for packet in source.demux(*(source.streams[index] for index in streams)):
            if packet.dts is not None and packet.pts is not None and float(packet.pts * packet.time_base) < seconds:
                packet.stream = streams[packet.stream.index]
                sink.mux(packet)


def fine_tune(
    data: Callable[[], Dataset],
    basis: MouthBasis,
    run: Path,
    start: Path,
    out: Path,
    options: RendererOptions,
    minutes: float,
) -> LipSync:
    """Fine-tune a part of the network on a data set, unless the result exists already; return the network."""
    if not (out / "renderer.pt").exists():
        out.mkdir(parents=True, exist_ok=True)
        for stage in ("reader", "occlusion", "speech"):
            shutil.copy(run / f"{stage}.pt", out)
        torch.manual_seed(SEED)
        dataset = data()
        RendererTraining(dataset, basis, out, options, dataset, start).run(minutes, time.process_time)
    return load_network(out)


def evaluate(
    network: LipSync, name: str, condition: str, footage: Footage, basis: MouthBasis
) -> tuple[Metrics, Picture]:
    """Return metrics of frames that the network draws with the filmed mouths' codes, and the pictures."""
    graphs = TorchGraphs(network)
    evaluation = Evaluation(REPOSITORY, 1, graphs)
    graphs.codes = iter(filmed_codes(footage, evaluation.neutral(footage), basis))
    drawing = evaluation.draw(footage, footage.sound)
    return evaluation.measure(name, condition, footage, drawing, 0, footage.sound), drawing.results


def shortened(footage: Footage, frames: int) -> Footage:
    """Return the footage with only `frames` consecutive frames, from the middle, after those that register the twin."""
    spare = len(footage.crops) - footage.first - frames
    if spare <= 0:
        return footage
    keep = np.r_[: footage.first, footage.first + spare // 2 : footage.first + spare // 2 + frames]
    parts = {name: getattr(footage, name)[keep] for name in ("crops", "heads", "landmarks", "apertures", "times_s")}
    return replace(footage, **parts)


class Report:
    """The report so far; it is written after every person."""

    def __init__(self, path: Path, minutes: float) -> None:
        self._path, self._minutes = path, minutes
        self._rows: list[list[str]] = []
        self._gains: dict[str, list[float]] = {}
        self._filmed: list[Picture] = []
        self._columns: dict[str, list[Picture]] = {}

    def add(
        self, clip: str, seen: bool, trained_s: float, real: Picture, drawn: dict[str, tuple[Metrics, Picture]]
    ) -> None:
        """Add a person's metrics and pictures, those of the generic network first."""
        generic = next(iter(drawn.values()))[0]
        self._filmed.append(real)
        for name, (measured, pictures) in drawn.items():
            self._columns.setdefault(name, []).append(pictures)
            self._gains.setdefault(name, []).append(measured.ssim - generic.ssim)
            cells = [f"{getattr(measured, column):.3f}" for column in COLUMNS]
            self._rows.append([clip, "yes" if seen else "no", f"{trained_s:.1f}", str(measured.frames), name, *cells])
        self._write()

    def _write(self) -> None:
        head = ("clip", "in training set", "trained on, s", "frames evaluated", "network", *COLUMNS)
        gain = [
            [name, *(f"{statistic(gains):+.4f}" for statistic in (fmean, min, max))]
            for name, gains in self._gains.items()
            if name != "generic"
        ]
        sheet(self._filmed, self._columns, self._path.with_suffix(".jpg"))
        reports.write(
            self._path, "Fine-tuning for one person",
            "python -m benchmarks.training.personal_twin CLIPS --run RUN --everybody DATASET --work FOLDER",
            [
                f"A small part of the decoder is fine-tuned on one person, {self._minutes:g} minutes of processor time, one thread, on the first two thirds "
                f"of a clip; the last third is evaluated, at most {EVALUATED} consecutive frames, drawn with the filmed mouths' codes and references "
                "from the first two thirds. *Everybody*: the same part and time on all people of the training set, which separates the gain from "
                "the person from that of longer training. Metrics as in `insync evaluate`.",
                reports.table(head, self._rows),
                "Gain in SSIM of the mouth over the generic network:",
                reports.table(("network", "mean", "min", "max"), gain),
                f"![Filmed, then a column for each network]({self._path.stem}.jpg)",
            ],
        )  # fmt: skip


def main() -> int:
    """Fine-tune, evaluate and write the report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument(
        "--everybody", type=Path, help="data set of many people: the same part is trained on it for the same time"
    )
    parser.add_argument("--seen", nargs="*", default=[], help="clips that the generic network was trained on")
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="processor time for each person (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each clip, at most")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs; finished runs in it are reused")
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / f"{REPORT}.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    basis = MouthBasis.load(REPOSITORY / "lipsync_twin" / "1" / "mouth_basis.npz")
    reader, start = Evaluation(REPOSITORY, 1), options.run / "renderer_last.pt"
    report, work = Report(options.out, options.minutes), options.work
    general = work / "generic"
    shutil.copytree(
        options.run, general, ignore=shutil.ignore_patterns("sheets", "*_last.pt", "*.csv"), dirs_exist_ok=True
    )
    state = load_checkpoint(start)
    save_checkpoint(general / "renderer.pt", {"model": state["average"] if state else {}})
    networks = {"generic": load_network(general)}
    if options.everybody:
        for part, names in PARTS.items():
            settings, folder = replace(USUAL, people=3, targets=2, trained=names), work / f"{part} everybody"
            networks[f"{part}, everybody"] = fine_tune(
                partial(Dataset, options.everybody, "train"),
                basis,
                options.run,
                start,
                folder,
                settings,
                options.minutes,
            )
    for clip in options.clips:
        whole = reader.read(clip, options.seconds, TRAINED)
        footage, trained_s = shortened(whole, EVALUATED), float(whole.times_s[whole.first])
        folder = work / clip.stem
        if not (folder / "data" / "frames.npz").exists():
            (folder / "clips").mkdir(parents=True)
            copy_beginning(clip, trained_s, folder / "clips" / clip.name)
            curate(folder / "clips", folder / "data", REPOSITORY / "lipsync_face" / "1", basis.rigid)
        own = {
            part: fine_tune(
                partial(Dataset, folder / "data"), basis, options.run, start, folder / part,
                replace(USUAL, trained=names), options.minutes,
            )
            for part, names in PARTS.items()
        }  # fmt: skip
        drawn = {
            name: evaluate(network, clip.name, name, footage, basis) for name, network in {**networks, **own}.items()
        }
        report.add(clip.name, clip.name in options.seen, trained_s, footage.crops[footage.first :], drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
