"""`insync train`: from a curated data set to a network, stage by stage; every stage resumes where it was stopped."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

from insync.core.mouth import MouthBasis
from insync.ensemble.repository.locate import default_repository
from insync.training.trainers import config

log = logging.getLogger("insync.training")

DESCRIPTION = """Trains the network, stage by stage; every stage resumes where it was stopped.

    all FOOTAGE RUN --minutes M          the whole way: curation, speech, reader, occlusion, renderer
    speech DATASET RUN --minutes M       audio projection layer and audio mapping network
    reader DATASET RUN --minutes M       the mouth reader that judges the renderer
    occlusion DATASET RUN --minutes M    what lies over or beside the mouth and must stay
    renderer DATASET RUN --minutes M     encoders, alignment network, inpainter
    syncnet DATASET RUN --minutes M      which mouths and sounds belong together, and offsets
    basis DATASET                        fit the mouth basis anew
    settings                             print every setting with its default, for --config

DATASET is what `insync curate FOOTAGE -o DATASET` makes. RUN gets checkpoints, figures (CSV and PNG), sample sheets, and the
settings that were used (training.toml). Then: `insync export onnx RUN --crops VIDEO`."""


def main(argv: list[str] | None = None) -> int:
    """Runs one stage, or all of them; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="insync train", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, help="model repository: face networks and mouth basis")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name in ("all", "speech", "reader", "occlusion", "renderer", "syncnet"):
        stage = stages.add_parser(name)
        stage.add_argument("data", metavar="FOOTAGE" if name == "all" else "DATASET", type=Path)
        stage.add_argument("run", metavar="RUN", type=Path)
        stage.add_argument("--minutes", type=float, required=True, help="training time, earlier runs in RUN counted in")
        stage.add_argument(
            "--config", metavar="FILE", type=Path,
            help="settings (TOML); without it, those that RUN was begun with, else the defaults",
        )  # fmt: skip
        stage.add_argument("--seed", type=int, help="in place of the settings'")
        if name in ("renderer", "occlusion"):
            last = "renderer_last.pt" if name == "renderer" else "occlusion.pt"
            stage.add_argument("--start", type=Path, help=f"begin with the networks of this `{last}`")
        if name == "renderer":
            stage.add_argument(
                "--validation", type=Path, help="data set for the sample sheets (default: the training set)"
            )
    basis = stages.add_parser(
        "basis", help="fit the mouth basis anew: twins registered with another one must be registered again"
    )
    basis.add_argument("data", metavar="DATASET", type=Path)
    stages.add_parser("settings")
    options = parser.parse_args(argv)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    try:
        _run(options)
    except (OSError, ValueError) as error:
        print(f"insync train: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("insync train: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def settings(options: argparse.Namespace) -> config.Config:
    """The settings of a run: named ones, else those in its folder, else the defaults; written into the folder.

    Raises:
        FileNotFoundError: the file that is named does not exist.
        ValueError: it cannot be understood.
    """
    kept = options.run / config.FILE
    before = config.read(kept) if kept.exists() else None
    chosen = config.read(options.config) if options.config else before or config.Config()
    if options.seed is not None:
        chosen = replace(chosen, seed=options.seed)
    for line in config.differences(before, chosen) if before else ():
        log.info("changed since this run was begun: %s", line)
    options.run.mkdir(parents=True, exist_ok=True)
    config.write(chosen, kept)
    return chosen


def _run(options: argparse.Namespace) -> None:
    if options.stage == "settings":
        print(config.text(config.Config()), end="")  # noqa: T201
        return
    from insync.training.curation.pipeline import curate
    from insync.training.data.dataset import Dataset, fit_basis
    from insync.training.trainers.mouth_reader import train_reader
    from insync.training.trainers.occlusion import train_occlusion
    from insync.training.trainers.renderer import train_renderer
    from insync.training.trainers.speech import train_speech
    from insync.training.trainers.syncnet import train_syncnet

    repository = options.repository or default_repository()
    basis_path = repository / "lipsync_twin" / "1" / "mouth_basis.npz"
    basis = MouthBasis.load(basis_path)
    if options.stage == "basis":
        fit_basis(Dataset(options.data), basis.rigid).save(basis_path)
        return
    chosen, data = settings(options), options.data
    torch.manual_seed(chosen.seed)
    if options.stage == "all":
        data = options.run / "data"
        curate(options.data, data, repository / "lipsync_face" / "1", basis.rigid)
    dataset = Dataset(data, "train")  # those held out are for validation; older data sets hold nobody out

    def minutes(stage: str) -> float:
        share: float = getattr(chosen.shares, stage) if options.stage == "all" else 1.0
        return share * float(options.minutes)

    def wanted(stage: str) -> bool:
        return options.stage in (stage, "all")

    start = getattr(options, "start", None)
    if wanted("speech"):
        train_speech(dataset, basis, options.run, minutes("speech"), options=chosen.speech)
    if wanted("reader"):
        train_reader(dataset, basis, options.run, minutes("reader"), chosen.seed, chosen.reader)
    if wanted("occlusion"):
        train_occlusion(dataset, basis, options.run, minutes("occlusion"), chosen.seed, start, chosen.occlusion)
    if wanted("renderer"):
        shown = getattr(options, "validation", None)
        validation = Dataset(shown) if shown else dataset
        train_renderer(dataset, basis, options.run, minutes("renderer"), validation, chosen.renderer, start)
    if options.stage == "syncnet":
        train_syncnet(dataset, basis, options.run, options.minutes, chosen.seed)
    log.info("done: %s", options.run)


if __name__ == "__main__":
    sys.exit(main())
