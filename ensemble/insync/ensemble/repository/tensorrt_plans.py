"""TensorRT plans beside the ONNX graphs: what their manifest says, and whether the server of this machine can load them.

A plan fits the TensorRT build and the kind of GPU that it was built with, and nothing else; Triton finds out late and says
little. `check_plans` finds out before, without loading one: only the standard library is needed, and no GPU.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from insync.core.errors import ServerError
from insync.core.spec import MODELS
from insync.ensemble.inference.device import Gpu, find_gpu, library_version

GRAPHS = tuple(name for name, model in MODELS.items() if model.backend == "onnxruntime")
MANIFEST = "plans.json"
PLAN = "model.plan"
REMEDY = "build the plans anew where they will be served: insync export tensorrt"
BUILDER = "TensorRT"  # the one that Triton loads plans with; the other is "TensorRT for RTX"


@dataclass(frozen=True)
class PlanRecord:
    """What the manifest says of one plan.

    Attributes:
        precision: "fp32", or "tf32" where multiplications may round their inputs to 10 bits.
        profile: the least, the optimal and the largest shape of each input.
        onnx_sha256, plan_sha256: of the graph that it was built from, and of the plan.
        largest_error: of each output against the graph in ONNX Runtime, over the output's largest magnitude (PATCH: in
            levels of 255); None where no GPU was there to run it.
    """

    precision: str
    profile: dict[str, list[list[int]]]
    onnx_sha256: str
    plan_sha256: str
    megabytes: float
    build_s: float
    largest_error: dict[str, float] | None = None


@dataclass(frozen=True)
class PlanManifest:
    """`plans.json` of a model repository.

    Attributes:
        builder: "TensorRT" or "TensorRT for RTX".
        version: of it, with four parts.
        gpu: that the plans were built for; None where they were built ahead of time for `capability` alone.
    """

    builder: str
    version: str
    gpu: str | None
    capability: str
    graphs: dict[str, PlanRecord] = field(default_factory=dict)

    def write(self, repository: Path) -> Path:
        """Writes the manifest into a repository; returns the file."""
        path = repository / MANIFEST
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, repository: Path) -> PlanManifest:
        """Reads a repository's manifest.

        Raises:
            ServerError: there is none, or it is not one.
        """
        path = repository / MANIFEST
        try:
            value = json.loads(path.read_text())
            graphs = {name: PlanRecord(**record) for name, record in value.pop("graphs").items()}
            return cls(**value, graphs=graphs)
        except FileNotFoundError as exc:
            raise ServerError(f"{repository} has no {MANIFEST}: {REMEDY}") from exc
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ServerError(f"{path} is not a manifest of plans ({exc}): {REMEDY}") from exc


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_plans(repository: Path, version: str | None = None, gpu: Gpu | None = None) -> PlanManifest:
    """Returns when every graph has a plan that this machine's server can load.

    Args:
        repository: the model repository.
        version: the server's TensorRT, by default this machine's.
        gpu: that it serves on, by default this machine's; where there is none, its kind is not compared.

    Raises:
        ServerError: a plan is missing, is not what the manifest says, was built from another graph, by another TensorRT or
            for another GPU. One line, with the remedy.
    """
    version = version or library_version()
    gpu = gpu or find_gpu()
    manifest = PlanManifest.read(repository)
    for name in GRAPHS:
        problem = _problem(repository, name, manifest, version, gpu)
        if problem:
            raise ServerError(f"{name}: {problem}; {REMEDY}")
    return manifest


def _problem(repository: Path, name: str, manifest: PlanManifest, version: str, gpu: Gpu | None) -> str | None:
    """Why a plan cannot be loaded, None where it can."""
    plan, onnx = (repository / name / "1" / file for file in (PLAN, "model.onnx"))
    record = manifest.graphs.get(name)
    if record is None or not plan.is_file():
        return f"{PLAN} is missing" if record else f"{MANIFEST} knows no plan of it"
    if manifest.builder != BUILDER:
        return f"its plan was built by {manifest.builder}, which Triton does not load"
    if manifest.version != version:
        return f"its plan was built by TensorRT {manifest.version}, the server has {version}"
    if sha256(plan) != record.plan_sha256:
        return f"{PLAN} is not the one that {MANIFEST} describes"
    if not onnx.is_file() or sha256(onnx) != record.onnx_sha256:
        return "its plan was built from another model.onnx than the one beside it"
    if gpu is not None and manifest.capability != gpu.capability:
        there = f"{gpu.name} of {gpu.capability}"
        return f"its plan was built for a GPU of compute capability {manifest.capability}, here is {there}"
    return None
