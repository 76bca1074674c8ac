"""`insync curate`."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields
from pathlib import Path

from insync.core.mouth import MouthBasis
from insync.ensemble.repository.locate import default_repository
from insync.training.curation.pipeline import curate
from insync.training.curation.quality import Gates
from insync.training.curation.report import REPORT, write_report
from insync.training.data.manifest import FILE, overrule, read_manifest, write_manifest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="insync curate",
        description="Turns a folder of clips into a training set: cuts them into scenes, follows one face, measures every segment, mends "
        "the offset of its sound, and writes a manifest (Parquet) and a report to look at. Goes on where it was stopped; clips "
        "that cannot be read become a row with the reason.",
    )
    parser.add_argument(
        "clips", metavar="FOLDER", type=Path, nargs="?", help="clips; without it, only --overrule is done"
    )
    parser.add_argument("-o", "--out", metavar="DATASET", type=Path, required=True, help="folder of the training set")
    parser.add_argument(
        "--overrule",
        metavar="SEGMENT=WORD",
        action="append",
        default=[],
        help="keep, silent (picture only), drop, an offset in seconds, or nothing to take it back; may be given again",
    )
    parser.add_argument("--repository", type=Path, help="model repository (default: the one that insync serve finds)")
    gates = parser.add_argument_group("gates", "explained in insync.training.curation.quality.Gates")
    for gate in fields(Gates):
        gates.add_argument(
            f"--{gate.name.replace('_', '-')}", metavar="N", type=type(gate.default), default=gate.default,
            help="default: %(default)s",
        )  # fmt: skip
    options = parser.parse_args(argv)
    if options.clips is None and not options.overrule:
        parser.error("name a FOLDER of clips, or what to --overrule")
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    try:
        _run(options)
    except (OSError, ValueError) as error:
        print(f"insync curate: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(options.out / REPORT)  # noqa: T201
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.clips is not None:
        repository = options.repository or default_repository()
        basis = MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")
        gates = Gates(**{gate.name: getattr(options, gate.name) for gate in fields(Gates)})
        curate(options.clips, options.out, repository / "lipsync_face" / "1", basis.rigid, gates)
    if options.overrule:
        rows = overrule(read_manifest(options.out / FILE), options.overrule)
        write_manifest(rows, options.out / FILE)
        write_report(rows, options.out)
