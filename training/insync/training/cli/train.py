"""The command line of `insync train`: it trains the network on a curated data set, stage by stage, and resumes interrupted stages."""

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

DESCRIPTION = """Train the network, stage by stage. An interrupted stage is resumed.

    all FOOTAGE RUN --minutes M          curation and all stages: speech, reader, occlusion, renderer
    speech DATASET RUN --minutes M       audio projection layer and audio mapping network
    reader DATASET RUN --minutes M       mouth reader, which is a loss of the renderer
    occlusion DATASET RUN --minutes M    occlusion branch, which keeps what covers or surrounds the mouth
    renderer DATASET RUN --minutes M     encoders, alignment network, inpainter
    syncnet DATASET RUN --minutes M      SyncNet, which measures lip sync and audio offsets
    judge DATASET RUN --minutes M        speech judge of `insync evaluate`: give it people whom no other stage has seen
    basis DATASET                        fit a new mouth basis
    settings                             print every setting with its default, for --config

DATASET is the output of `insync curate FOOTAGE -o DATASET`. RUN receives checkpoints, training metrics (CSV and PNG), sample sheets
and the settings in use (training.toml). The next step is `insync export onnx RUN --crops VIDEO`."""


def main(argv: list[str] | None = None) -> int:
    """Run one stage, or all of them, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="insync train", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, help="model repository with the face networks and the mouth basis")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name in ("all", "speech", "reader", "occlusion", "renderer", "syncnet", "judge"):
        stage = stages.add_parser(name)
        stage.add_argument("data", metavar="FOOTAGE" if name == "all" else "DATASET", type=Path)
        stage.add_argument("run", metavar="RUN", type=Path)
        stage.add_argument("--minutes", type=float, required=True, help="training time, including earlier runs in RUN")
        stage.add_argument(
            "--config", metavar="FILE", type=Path,
            help="settings (TOML); default: those in RUN if there are any, else the built-in defaults",
        )  # fmt: skip
        stage.add_argument("--seed", type=int, help="random seed, overrides the one in the settings")
        if name in ("all", "speech"):
            stage.add_argument(
                "--recordings", type=Path, metavar="FOLDER", help="speech without a face, to learn from too"
            )
            stage.add_argument(
                "--noise", type=Path, metavar="FOLDER", help="music and noise without a voice, to mix into the speech"
            )
        if name in ("renderer", "occlusion"):
            last = "renderer_last.pt" if name == "renderer" else "occlusion.pt"
            stage.add_argument("--start", type=Path, help=f"initialize the networks from this `{last}`")
        if name == "renderer":
            stage.add_argument(
                "--validation", type=Path, help="data set for the sample sheets (default: the training set)"
            )
    basis = stages.add_parser(
        "basis", help="fit a new mouth basis; twins registered with the old one must be registered again"
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
        print("insync train: interrupted; repeat the command to resume from the last checkpoint", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def settings(options: argparse.Namespace) -> config.Config:
    """Return the settings of a run, and write them into its folder: those of --config, else those in the folder, else the defaults.

    Raises:
        FileNotFoundError: the file given by --config does not exist.
        ValueError: a settings file is not valid.
    """
    kept = options.run / config.FILE
    before = config.read(kept) if kept.exists() else None
    chosen = config.read(options.config) if options.config else before or config.Config()
    if options.seed is not None:
        chosen = replace(chosen, seed=options.seed)
    for line in config.differences(before, chosen) if before else ():
        log.info("changed since the run started: %s", line)
    options.run.mkdir(parents=True, exist_ok=True)
    config.write(chosen, kept)
    return chosen


def _run(options: argparse.Namespace) -> None:
    """Run the chosen stages."""
    if options.stage == "settings":
        print(config.text(config.Config()), end="")  # noqa: T201
        return
    from insync.training.curation.pipeline import curate
    from insync.training.data.dataset import Dataset, fit_basis
    from insync.training.trainers.mouth_reader import train_reader
    from insync.training.trainers.occlusion import train_occlusion
    from insync.training.trainers.renderer import train_renderer
    from insync.training.trainers.speech import train_speech
    from insync.training.trainers.speech_targets import train_judge
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
    heard_only = options.stage in ("speech", "judge")
    # Held-out people are for validation; older data sets have none. The judge's whole data set is held out.
    dataset = Dataset(data, None if options.stage == "judge" else "train", pictures=not heard_only)

    def minutes(stage: str) -> float:
        """Return the training time of a stage."""
        share: float = getattr(chosen.shares, stage) if options.stage == "all" else 1.0
        return share * float(options.minutes)

    def wanted(stage: str) -> bool:
        """Return whether to run a stage."""
        return options.stage in (stage, "all")

    start = getattr(options, "start", None)
    if wanted("speech"):
        train_speech(
            dataset, basis, options.run, minutes("speech"), options=chosen.speech, recordings=options.recordings,
            noise=options.noise, seed=chosen.seed,
        )  # fmt: skip
    if wanted("reader"):
        train_reader(dataset, basis, options.run, minutes("reader"), chosen.seed, chosen.reader)
    if wanted("occlusion"):
        train_occlusion(dataset, basis, options.run, minutes("occlusion"), chosen.seed, start, chosen.occlusion)
    if wanted("renderer"):
        shown = getattr(options, "validation", None)
        validation = Dataset(shown) if shown else dataset
        train_renderer(dataset, basis, options.run, minutes("renderer"), validation, chosen.renderer, start)
    if options.stage == "judge":
        train_judge(dataset, basis, options.run, options.minutes, chosen.seed)
    if options.stage == "syncnet":
        train_syncnet(dataset, basis, options.run, options.minutes, chosen.seed)
    log.info("done: %s", options.run)


if __name__ == "__main__":
    sys.exit(main())
