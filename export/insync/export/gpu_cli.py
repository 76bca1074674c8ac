"""`insync export tensorrt | precision`: plans for an NVIDIA GPU, and the evidence for their precision."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("tensorrt", "precision")


def add_commands(commands: Any) -> None:
    """Adds both to the parsers of `insync export`."""
    tensorrt = commands.add_parser(
        "tensorrt",
        help="ONNX graphs → TensorRT plans for this machine's GPU, with a manifest",
        description="Builds a plan of every graph with the TensorRT of this machine, strictly in FP32, and writes plans.json, which "
        "says what they were built with and how far they are from ONNX Runtime.",
    )
    tensorrt.add_argument("-o", "--out", metavar="FOLDER", type=Path, help="default: into the model repository")
    tensorrt.add_argument(
        "--check",
        action="store_true",
        help="build nothing: say whether the plans that are there fit this machine's TensorRT and GPU; exit code 1 where not",
    )
    tensorrt.add_argument(
        "--precision", choices=("fp32", "tf32"), default="fp32", help="less than fp32 needs --evidence (default: fp32)"
    )
    tensorrt.add_argument(
        "--evidence", metavar="JSON", type=Path, help="precision.json of 'insync export precision' for these graphs"
    )
    tensorrt.add_argument(
        "--timing-cache",
        metavar="FILE",
        type=Path,
        help="default: timing.cache beside the plans, reused by the next build",
    )
    tensorrt.add_argument(
        "--rtx",
        metavar="CAPABILITY",
        help='build ahead of time with TensorRT for RTX for a compute capability ("8.0", "8.9", …), which needs no GPU: proves '
        "that NVIDIA's parser and builder take the graphs; Triton does not load these plans; needs --out",
    )
    precision = commands.add_parser(
        "precision",
        help="what TF32, BF16 and FP16 would do to the picture, emulated on the CPU, with a decision",
        description="Draws clips with the served graphs and with graphs that round, compares them, and writes precision.json, "
        "precision.md and a picture of each precision's worst case.",
    )
    precision.add_argument("clips", metavar="CLIP", type=Path, nargs="+", help="videos, or folders of them")
    precision.add_argument("-o", "--out", metavar="FOLDER", type=Path, required=True, help="gets the report")
    precision.add_argument("--speech", metavar="AUDIO", type=Path, help="is spoken in clips without sound")
    precision.add_argument("--seconds", type=float, default=6.0, help="of each clip (default: %(default)s)")
    precision.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Runs one of `COMMANDS`; returns its exit code."""
    try:
        return _precision(options) if options.command == "precision" else _tensorrt(options)
    except ImportError as exc:
        print(  # noqa: T201
            f"insync export: this needs a part that is not installed ({exc.name}): pip install 'insync[serve,export,train]'",
            file=sys.stderr,
        )
        return 2


def _tensorrt(options: argparse.Namespace) -> int:
    from insync.ensemble.errors import ServerError
    from insync.ensemble.plans import check_plans
    from insync.export.tensorrt import PlanError, PlanOptions, build_plans

    try:
        if options.check:
            manifest = check_plans(options.repository)
            fit = f"TensorRT {manifest.version} and compute capability {manifest.capability}"
            print(f"{len(manifest.graphs)} plans fit {fit}")  # noqa: T201
            return 0
        chosen = PlanOptions(
            options.precision, options.evidence, options.rtx is not None, options.rtx, options.timing_cache
        )
        manifest = build_plans(options.repository, options.out, chosen, say=_say)
    except (PlanError, ServerError, OSError) as error:
        print(f"insync export: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for name, record in manifest.graphs.items():
        errors = ", ".join(f"{key} {value:.1e}" for key, value in (record.largest_error or {}).items())
        print(  # noqa: T201
            f"{name}: {record.megabytes:.2f} MB, {record.precision}, built in {record.build_s:.1f} s, "
            f"{f'largest error {errors}' if errors else 'not run: its error is not known'}"
        )
    return 0


def _precision(options: argparse.Namespace) -> int:
    from insync.client.errors import InsyncError
    from insync.export.precision import compare
    from insync.training.evaluate import clips_of

    try:
        changes = compare(
            clips_of(options.clips), options.out, options.repository, options.speech, options.seconds, options.threads, say=_say
        )  # fmt: skip
    except (OSError, ValueError, InsyncError) as error:
        print(f"insync export: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for name, change in changes.items():
        if name != "jpeg":
            print(f"{name}: {'passed' if change.passed else '; '.join(change.failed)}")  # noqa: T201
    print(options.out / "precision.md")  # noqa: T201
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
