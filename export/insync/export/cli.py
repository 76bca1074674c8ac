"""`insync export onnx | dali | configs | tensorrt | precision`: writes the served artefacts and the precision report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from insync.core.errors import InsyncError, ServerError
from insync.ensemble.repository.locate import default_repository


def main(argv: list[str]) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="insync export", description="Write the served models into the model repository."
    )
    parser.add_argument(
        "--repository", metavar="FOLDER", type=Path, help="Triton model repository (default: InSync's own)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_onnx(commands)
    _add(commands, "dali", "serialise the DALI pipelines, for the CPU and for a GPU", _dali)
    _add(commands, "configs", "write configs/h100.pbtxt and configs/onnx_gpu.pbtxt of every model", _configs)
    _add_tensorrt(commands)
    _add_precision(commands)
    options = parser.parse_args(argv)
    options.repository = options.repository or default_repository()
    try:
        return int(options.run(options))
    except ImportError as exc:
        print(  # noqa: T201
            f"insync export: a package is not installed ({exc.name}): pip install 'insync[serve,export,train]'",
            file=sys.stderr,
        )
        return 2


def _add(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> None:
    commands.add_parser(name, help=text).set_defaults(run=run)


def _add_onnx(commands: Any) -> None:
    onnx = commands.add_parser(
        "onnx", help="checkpoint → ONNX graphs, checked against PyTorch on real crops, with a manifest"
    )
    onnx.add_argument(
        "checkpoint",
        metavar="RUN",
        type=Path,
        help="training run: a folder with speech.pt, renderer.pt and occlusion.pt; what is missing stays as served",
    )
    onnx.add_argument("--crops", type=Path, required=True, metavar="VIDEO", help="video of a face, for the check")
    onnx.set_defaults(run=_onnx)


def _add_tensorrt(commands: Any) -> None:
    tensorrt = commands.add_parser(
        "tensorrt",
        help="ONNX graphs → TensorRT plans for this machine's GPU, with a manifest",
        description="Build a plan of every graph with this machine's TensorRT, strictly in FP32, and write plans.json, which "
        "records the versions they were built with and their largest errors against ONNX Runtime.",
    )
    tensorrt.add_argument("-o", "--out", metavar="FOLDER", type=Path, help="default: into the model repository")
    tensorrt.add_argument(
        "--check",
        action="store_true",
        help="build nothing: check that the existing plans match this machine's TensorRT and GPU; exit code 1 if not",
    )
    tensorrt.add_argument(
        "--precision", choices=("fp32", "tf32"), default="fp32", help="tf32 needs --evidence (default: fp32)"
    )
    tensorrt.add_argument(
        "--evidence", metavar="JSON", type=Path, help="precision.json of 'insync export precision' for these graphs"
    )
    tensorrt.add_argument(
        "--timing-cache",
        metavar="FILE",
        type=Path,
        help="kernel timings to reuse and update (default: timing.cache next to the plans)",
    )
    tensorrt.add_argument(
        "--rtx",
        metavar="CAPABILITY",
        help='build ahead of time with TensorRT for RTX for a compute capability ("8.0", "8.9", …), without a GPU: checks '
        "that NVIDIA's parser and builder accept the graphs; Triton cannot load these plans; needs --out",
    )
    tensorrt.set_defaults(run=_tensorrt)


def _add_precision(commands: Any) -> None:
    precision = commands.add_parser(
        "precision",
        help="emulate TF32, BF16 and FP16 on the CPU, compare with FP32, and decide which may be used",
        description="Render clips with the served graphs and with rounding graphs, compare them, and write precision.json, "
        "precision.md and a picture of each precision's worst case.",
    )
    precision.add_argument("clips", metavar="CLIP", type=Path, nargs="+", help="videos, or folders of them")
    precision.add_argument("-o", "--out", metavar="FOLDER", type=Path, required=True, help="folder for the report")
    precision.add_argument("--speech", metavar="AUDIO", type=Path, help="speech for clips without sound")
    precision.add_argument("--seconds", type=float, default=6.0, help="length used of each clip (default: %(default)s)")
    precision.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    precision.set_defaults(run=_precision)


def _onnx(options: argparse.Namespace) -> int:
    from insync.export.onnx import export_onnx
    from insync.network.served import ParityError
    from insync.training.trainers.checkpoint import load_network

    try:
        network = load_network(options.checkpoint, options.repository)
        records = export_onnx(network, options.repository, options.crops, options.repository / "lipsync_face" / "1")
    except (FileNotFoundError, ValueError, ParityError) as error:
        print(f"insync export: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for name, record in records.items():
        errors = ", ".join(f"{key} {value:.1e}" for key, value in record.largest_error.items())
        print(f"{name}: {record.megabytes:.2f} MB, largest error {errors}")  # noqa: T201
    return 0


def _dali(options: argparse.Namespace) -> int:
    from insync.export.dali import serialise

    for path in serialise(options.repository):
        print(path)  # noqa: T201
    return 0


def _configs(options: argparse.Namespace) -> int:
    from insync.export.configs import write_configs

    for path in write_configs(options.repository):
        print(path)  # noqa: T201
    return 0


def _tensorrt(options: argparse.Namespace) -> int:
    from insync.ensemble.repository.tensorrt_plans import check_plans
    from insync.export.tensorrt import PlanError, PlanOptions, build_plans

    try:
        if options.check:
            manifest = check_plans(options.repository)
            target = f"TensorRT {manifest.version} and compute capability {manifest.capability}"
            print(f"{len(manifest.graphs)} plans match {target}")  # noqa: T201
            return 0
        chosen = PlanOptions(
            options.precision, options.evidence, options.rtx is not None, options.rtx, options.timing_cache
        )
        manifest = build_plans(options.repository, options.out, chosen, log=_log)
    except (PlanError, ServerError, OSError) as error:
        print(f"insync export: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for name, record in manifest.graphs.items():
        errors = ", ".join(f"{key} {value:.1e}" for key, value in (record.largest_error or {}).items())
        print(  # noqa: T201
            f"{name}: {record.megabytes:.2f} MB, {record.precision}, built in {record.build_s:.1f} s, "
            f"{f'largest error {errors}' if errors else 'not run, so its error is unknown'}"
        )
    return 0


def _precision(options: argparse.Namespace) -> int:
    from insync.export.precision.compare import compare
    from insync.training.evaluation.evaluate import clips_of

    try:
        changes = compare(
            clips_of(options.clips), options.out, options.repository, options.speech, options.seconds, options.threads, log=_log
        )  # fmt: skip
    except (OSError, ValueError, InsyncError) as error:
        print(f"insync export: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for name, change in changes.items():
        if name != "jpeg":
            print(f"{name}: {'passed' if change.passed else '; '.join(change.failed)}")  # noqa: T201
    print(options.out / "precision.md")  # noqa: T201
    return 0


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
