"""The command line of `insync evaluate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from insync.ensemble.repository.locate import default_repository
from insync.training.evaluation.evaluate import clips_of, evaluate
from insync.training.metrics.frechet import Networks


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="insync evaluate",
        description="Register a twin from the first two fifths of each clip, dub the rest with the served graphs, and measure the result. "
        "Conditions: the clip's own audio, the same audio shifted, silence, other speech, untouched, and the frames darkened, covered "
        "or blurred by motion.",
    )
    parser.add_argument("clips", metavar="CLIPS", type=Path, nargs="+", help="videos, or folders of videos")
    parser.add_argument(
        "-o", "--out", metavar="FOLDER", type=Path, required=True, help="output folder of evaluation.{json,md,html}"
    )
    parser.add_argument(
        "--speech",
        metavar="FILE",
        type=Path,
        help="also dub every clip with the audio of this file; required for clips without audio or with a still mouth",
    )
    parser.add_argument("--repository", type=Path, help="model repository (default: the one that insync serve uses)")
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="duration to use of each clip (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads (default: %(default)s)")
    for name, network in (("fid", "Inception"), ("fvd", "I3D")):
        parser.add_argument(
            f"--{name}-network",
            metavar="FILE",
            type=Path,
            help=f"published {network} network as TorchScript; without it, {name.upper()} is not measured",
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
