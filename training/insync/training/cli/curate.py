"""The command line of `insync curate`."""

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
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="insync curate",
        description="Turn a folder of clips into a data set for training: detect scenes, track one face, measure every segment, correct "
        "the offset of its audio, and write a manifest (Parquet) and an HTML report. An interrupted run is resumed. A clip "
        "that cannot be read is listed in the manifest with the reason.",
    )
    parser.add_argument(
        "clips", metavar="FOLDER", type=Path, nargs="?", help="folder of clips; without it, only --overrule is applied"
    )
    parser.add_argument("-o", "--out", metavar="DATASET", type=Path, required=True, help="folder of the data set")
    parser.add_argument(
        "--overrule",
        metavar="SEGMENT=WORD",
        action="append",
        default=[],
        help="override the decision on a segment: keep, silent (picture only), drop, an offset in seconds, or empty to remove "
        "the override; may be repeated",
    )
    parser.add_argument("--repository", type=Path, help="model repository (default: the one that insync serve uses)")
    gates = parser.add_argument_group("thresholds", "see insync.training.curation.quality.Gates")
    for gate in fields(Gates):
        gates.add_argument(
            f"--{gate.name.replace('_', '-')}", metavar="N", type=type(gate.default), default=gate.default,
            help="default: %(default)s",
        )  # fmt: skip
    options = parser.parse_args(argv)
    if options.clips is None and not options.overrule:
        parser.error("neither FOLDER nor --overrule is given; at least one must be")
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    try:
        _run(options)
    except (OSError, ValueError) as error:
        print(f"insync curate: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(options.out / REPORT)  # noqa: T201
    return 0


def _run(options: argparse.Namespace) -> None:
    """Curate the clips and apply the overrides."""
    if options.clips is not None:
        repository = options.repository or default_repository()
        basis = MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")
        gates = Gates(**{gate.name: getattr(options, gate.name) for gate in fields(Gates)})
        curate(options.clips, options.out, repository / "lipsync_face" / "1", basis.rigid, gates)
    if options.overrule:
        rows = overrule(read_manifest(options.out / FILE), options.overrule)
        write_manifest(rows, options.out / FILE)
        write_report(rows, options.out)
