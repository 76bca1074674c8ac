"""The entry point of the container image: `python3 -m insync.ensemble.container serve` (or `plans`, to only build plans).

TensorRT plans work with one TensorRT version, one GPU model and one set of graphs, so they are not part of the image. The
first container that needs them builds them into a persistent folder, where later containers with the same three find them.
Then `tritonserver` replaces this process, so that it receives signals and its exit code is the container's.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from insync.core.errors import ServerError
from insync.ensemble.inference.device import find_gpu, library_version
from insync.ensemble.repository.locate import default_repository
from insync.ensemble.repository.tensorrt_plans import GRAPHS, MANIFEST, PLAN

CONFIGS = ("h100", "onnx_gpu", "default")
# The server's options in every deployment profile of the container; the caller's options come after them.
_ARGUMENTS = (
    "--disable-auto-complete-config",  # our configs are complete; auto-complete starts every Python model twice
    "--strict-readiness=true",  # not ready before every model is
    "--metrics-config=summary_latencies=true",  # p99, which counters cannot give
    "--exit-timeout-secs=30",  # for the requests in flight when a container is stopped
)

Builder = Callable[[Path], None]


@dataclass(frozen=True)
class Target:
    """The GPU and TensorRT version that plans are built for.

    Attributes:
        gpu: name of the GPU, as in "NVIDIA H100 80GB HBM3".
        tensorrt: version of the library that loads the plans.
    """

    gpu: str
    tensorrt: str


def find_target() -> Target:
    """Find the GPU and the TensorRT version of this container.

    Raises:
        ServerError: one of them is missing.
    """
    gpu = find_gpu()
    if gpu is None:
        raise ServerError("the container sees no GPU: start it with --gpus, or serve with --config default")
    return Target(gpu.name, library_version())


def plan_folder(repository: Path, cache: Path, target: Target) -> Path:
    """Return the folder of plans for a repository's graphs: it depends on the GPU, TensorRT, graphs and batch limits."""
    digest = hashlib.sha256()
    for name in GRAPHS:
        for file in ("1/model.onnx", "configs/h100.pbtxt"):
            digest.update((repository / name / file).read_bytes())
    gpu = re.sub(r"[^a-z0-9]+", "-", target.gpu.lower()).strip("-")
    return cache / f"{gpu}_tensorrt-{target.tensorrt}_{digest.hexdigest()[:12]}"


def cached_plans(repository: Path, cache: Path, target: Target, build: Builder) -> Path:
    """Return the folder of plans for a repository's graphs; build them if they are missing.

    If several containers start at once on one cache, one of them builds and the others wait.

    Args:
        repository: the model repository; nothing is written into it.
        cache: folder that persists across containers.
        target: the GPU and TensorRT version that the plans are for.
        build: writes every graph's plan and the manifest into a copy of the repository, which it is passed.

    Returns:
        A folder with the repository's layout that has only the plans and their manifest.

    Raises:
        ServerError: the cache cannot be written, or a plan was not built.
    """
    folder = plan_folder(repository, cache, target)
    if (folder / MANIFEST).is_file():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / MANIFEST).is_file():
                _build(repository, folder, build)
    except OSError as exc:
        raise ServerError(f"the cache of plans {cache} cannot be written: {exc.strerror or exc}") from exc
    return folder


def _build(repository: Path, folder: Path, build: Builder) -> None:
    prefix = f".building-{folder.name}-"
    for left in folder.parent.glob(f"{prefix}*"):  # left by a killed container: a running build would hold the lock
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        copy, plans = scratch / "repository", scratch / "plans"
        shutil.copytree(repository, copy)
        build(copy)
        for file in (*(f"{name}/1/{PLAN}" for name in GRAPHS), MANIFEST):
            if not (copy / file).is_file():
                raise ServerError(f"the build wrote no {file}")
            (plans / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).replace(plans / file)
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete set
        plans.rename(folder)  # atomic: other containers see nothing or the complete set
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def build_with_tensorrt(repository: Path) -> None:
    """Run `insync export tensorrt` in a separate process, whose GPU memory is freed before the server starts.

    Raises:
        ServerError: it failed; its own output explains why.
    """
    command = [sys.executable, "-m", "insync.cli", "export", "--repository", str(repository), "tensorrt"]
    if subprocess.run(command, check=False).returncode:
        raise ServerError("insync export tensorrt failed, see its messages above")


def served_repository(repository: Path, served: Path, plans: Path | None) -> None:
    """Create the repository that the server loads: a copy of the image's, with the plans if there are any.

    A copy, because the image's repository may be read-only and the plans depend on the GPU.
    """
    shutil.rmtree(served, ignore_errors=True)
    shutil.copytree(repository, served, ignore=shutil.ignore_patterns("__pycache__"))
    if plans is not None:
        shutil.copytree(plans, served, dirs_exist_ok=True)


def command(served: Path, config: str, more: Sequence[str] = ()) -> list[str]:
    """Return the server's command line.

    Args:
        served: the repository to load.
        config: the set of configs, one of `CONFIGS`.
        more: the caller's arguments, which override ours.
    """
    chosen = [] if config == "default" else [f"--model-config-name={config}"]
    return ["tritonserver", f"--model-repository={served}", *chosen, *_ARGUMENTS, *more]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, or do not return if the server replaces this process."""
    options = _parser().parse_args(argv)
    try:
        repository = options.repository or default_repository()
        plans = None
        if options.command == "plans" or options.config == "h100":
            plans = cached_plans(repository, options.plans, find_target(), build_with_tensorrt)
        if options.command == "plans":
            sys.stdout.write(f"{plans}\n")
            return 0
        served_repository(repository, options.served, plans)
    except ServerError as exc:
        sys.stderr.write(f"insync container: {exc}\n")
        return 1
    sys.stdout.flush()
    line = command(options.served, options.config, options.arguments)
    try:
        os.execvp(line[0], line)
    except OSError as exc:
        sys.stderr.write(f"insync container: {line[0]} cannot be started: {exc.strerror}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="insync.ensemble.container", description="Build TensorRT plans if they are missing, then serve."
    )
    parser.add_argument("--repository", type=Path, help="model repository (default: the package's own)")
    parser.add_argument(
        "--plans", type=Path, default=Path("/plans"), help="folder that stores plans (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plans", help="only build the plans for this GPU and TensorRT, and print their folder")
    serve = commands.add_parser("serve", help="serve; arguments after -- are passed to tritonserver")
    serve.add_argument(
        "--config",
        choices=CONFIGS,
        default="h100",
        help="h100: TensorRT plans; onnx_gpu: ONNX Runtime on CUDA; default: config.pbtxt, no GPU needed",
    )
    serve.add_argument(
        "--served", type=Path, default=Path("/run/insync/models"), help="scratch folder that the server loads from"
    )
    serve.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="arguments of tritonserver")
    return parser


if __name__ == "__main__":
    # The first process of a container ignores signals without a handler: stopping it would wait until it is killed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    raise SystemExit(main())
