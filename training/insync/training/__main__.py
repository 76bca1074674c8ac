"""`python -m insync.training`: from footage to a network, stage by stage; every stage resumes where it was stopped.

    curate CLIPS -o DATA                       `insync curate` with its usual thresholds
    speech DATA RUN --minutes M                 audio projection layer and audio mapping network
    syncnet DATA RUN --minutes M                which mouths and sounds belong together, and offsets
    reader DATA RUN --minutes M                 the mouth reader that judges the renderer
    occlusion DATA RUN --minutes M              what lies over or beside the mouth and must stay
    renderer DATA RUN --minutes M               encoders, alignment network, inpainter
    all CLIPS RUN --minutes M                   the whole way

Then: `insync export onnx RUN --crops VIDEO`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from insync.ensemble.mouth import MouthBasis

log = logging.getLogger("insync.training")

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"
# Shares of the time in `all`.
SHARES = {"speech": 0.07, "reader": 0.05, "occlusion": 0.08, "renderer": 0.8}


def main(argv: list[str] | None = None) -> int:
    """Runs one stage; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m insync.training", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="model repository: face networks and mouth basis"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    stages = parser.add_subparsers(dest="stage", required=True)
    curate = stages.add_parser("curate", help="footage → data set")
    curate.add_argument("clips", type=Path)
    curate.add_argument("-o", "--out", type=Path, required=True)
    for name in ("speech", "syncnet", "reader", "renderer", "occlusion"):
        stage = stages.add_parser(name)
        stage.add_argument("data", type=Path)
        stage.add_argument("run", type=Path)
        stage.add_argument("--minutes", type=float, required=True, help="training time, earlier runs in RUN counted in")
        if name in ("renderer", "occlusion"):
            last = "renderer_last.pt" if name == "renderer" else "occlusion.pt"
            stage.add_argument("--start", type=Path, help=f"begin with the networks of this `{last}`")
        if name == "renderer":
            stage.add_argument(
                "--validation", type=Path, help="data set for the sample sheets (default: the training set)"
            )
    everything = stages.add_parser("all", help="every stage, one after the other")
    everything.add_argument("clips", type=Path)
    everything.add_argument("run", type=Path)
    everything.add_argument("--minutes", type=float, required=True)
    basis = stages.add_parser(
        "basis", help="fit the mouth basis anew: twins registered with another one must be registered again"
    )
    basis.add_argument("data", type=Path)
    options = parser.parse_args(argv)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    try:
        _run(options)
    except (FileNotFoundError, ValueError) as error:
        print(f"insync.training: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    from insync.training.curate import curate
    from insync.training.dataset import Dataset, fit_basis
    from insync.training.occlusion import train_occlusion
    from insync.training.reader import train_reader
    from insync.training.renderer import RendererOptions, train_renderer
    from insync.training.speech import train_speech
    from insync.training.syncnet import train_syncnet

    basis_path = options.repository / "lipsync_twin" / "1" / "mouth_basis.npz"
    face_models = options.repository / "lipsync_face" / "1"
    basis = MouthBasis.load(basis_path)
    if options.stage == "curate":
        curate(options.clips, options.out, face_models, basis.rigid)
    elif options.stage == "basis":
        fit_basis(Dataset(options.data), basis.rigid).save(basis_path)
    elif options.stage == "all":
        data = options.run / "data"
        curate(options.clips, data, face_models, basis.rigid)
        dataset = Dataset(data, "train")
        minutes = {name: share * options.minutes for name, share in SHARES.items()}
        train_speech(dataset, basis, options.run, minutes["speech"])
        train_reader(dataset, basis, options.run, minutes["reader"], options.seed)
        train_occlusion(dataset, basis, options.run, minutes["occlusion"], options.seed)
        train_renderer(dataset, basis, options.run, minutes["renderer"], dataset)
    else:
        dataset = Dataset(options.data, "train")  # those held out are for validation; older data sets hold nobody out
        options.run.mkdir(parents=True, exist_ok=True)
        if options.stage == "speech":
            train_speech(dataset, basis, options.run, options.minutes)
        elif options.stage == "syncnet":
            train_syncnet(dataset, basis, options.run, options.minutes, options.seed)
        elif options.stage == "reader":
            train_reader(dataset, basis, options.run, options.minutes, options.seed)
        elif options.stage == "occlusion":
            train_occlusion(dataset, basis, options.run, options.minutes, options.seed, options.start)
        else:
            validation = Dataset(options.validation) if options.validation else dataset
            settings = RendererOptions() if options.start is None else RendererOptions(hinted=0, adversarial_from=0.03)
            train_renderer(dataset, basis, options.run, options.minutes, validation, settings, options.start)
    log.info("done: %s", options.stage)


if __name__ == "__main__":
    sys.exit(main())
