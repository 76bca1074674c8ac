"""`insync evaluate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from insync.ensemble.repository.locate import default_repository
from insync.training.evaluation.evaluate import clips_of, evaluate
from insync.training.metrics.frechet import Networks


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="insync evaluate",
        description="Registers twins from the first two fifths of each clip, draws the rest anew with the served graphs, and measures: "
        "with the clip's own sound, with a shifted one, with silence, with other speech, untouched, and darkened, covered or moving.",
    )
    parser.add_argument("clips", metavar="CLIPS", type=Path, nargs="+", help="videos, or folders of them")
    parser.add_argument(
        "-o", "--out", metavar="FOLDER", type=Path, required=True, help="gets evaluation.{json,md,html}"
    )
    parser.add_argument(
        "--speech",
        metavar="FILE",
        type=Path,
        help="dub every clip with the sound of this file too; clips without sound or with a still mouth need it",
    )
    parser.add_argument("--repository", type=Path, help="model repository (default: the one that insync serve finds)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each clip (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    for name, what in (("fid", "Inception"), ("fvd", "I3D")):
        parser.add_argument(
            f"--{name}-network",
            metavar="FILE",
            type=Path,
            help=f"published {what} network as TorchScript, for {name.upper()}",
        )
    options = parser.parse_args(argv)
    try:
        evaluate(
            clips_of(options.clips),
            options.out,
            options.repository or default_repository(),
            options.seconds,
            options.threads,
            Networks(options.fid_network, options.fvd_network),
            options.speech,
        )
    except (OSError, ValueError) as error:
        print(f"insync evaluate: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(options.out / "evaluation.html")  # noqa: T201
    return 0
