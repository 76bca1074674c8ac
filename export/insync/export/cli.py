"""`insync export onnx | dali | configs | tensorrt | precision`: writes what Triton serves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from insync.ensemble.server import default_repository
from insync.export import gpu_cli


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="insync export", description="Write the served artefacts into the model repository."
    )
    parser.add_argument(
        "--repository", type=Path, default=default_repository(), help="Triton model repository (default: InSync's own)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    onnx = commands.add_parser(
        "onnx", help="checkpoint → ONNX graphs, checked against PyTorch on real crops, with a manifest"
    )
    onnx.add_argument("run", type=Path, help="training run: a folder with speech.pt and renderer.pt")
    onnx.add_argument("--crops", type=Path, required=True, metavar="VIDEO", help="video of a face, for the check")
    commands.add_parser("dali", help="serialise the DALI pipelines, for the CPU and for a GPU")
    commands.add_parser("configs", help="write configs/h100.pbtxt and configs/onnx_gpu.pbtxt of every model")
    gpu_cli.add_commands(commands)
    options = parser.parse_args(argv)
    if options.command in gpu_cli.COMMANDS:
        return gpu_cli.run(options)
    if options.command == "dali":
        from insync.export.dali import serialise

        for path in serialise(options.repository):
            print(path)  # noqa: T201
        return 0
    if options.command == "configs":
        from insync.export.configs import write_configs

        for path in write_configs(options.repository):
            print(path)  # noqa: T201
        return 0
    from insync.export.onnx import ParityError, export_onnx
    from insync.training.checkpoint import load_network

    try:
        records = export_onnx(
            load_network(options.run), options.repository, options.crops, options.repository / "lipsync_face" / "1"
        )
    except (FileNotFoundError, ValueError, ParityError) as error:
        print(f"insync export: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for name, record in records.items():
        errors = ", ".join(f"{key} {value:.1e}" for key, value in record.largest_error.items())
        print(f"{name}: {record.megabytes:.2f} MB, largest error {errors}")  # noqa: T201
    return 0
