"""TensorRT plans next to the ONNX graphs: their manifest, and a check that this machine's server can load them.

A plan works only with the TensorRT build and the GPU model that it was built with; Triton notices a mismatch late and
reports little. `check_plans` finds it earlier, without loading a plan: it needs only the standard library, and no GPU.
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
REMEDY = "rebuild the plans on the machine that will serve them: insync export tensorrt"
BUILDER = "TensorRT"  # the one whose plans Triton loads; the other is "TensorRT for RTX"


@dataclass(frozen=True)
class PlanRecord:
    """The manifest's record of one plan.

    Attributes:
        precision: "fp32", or "tf32" if multiplications may round their inputs to 10 bits.
        profile: the minimum, optimal and maximum shape of each input.
        onnx_sha256, plan_sha256: hashes of the graph that it was built from, and of the plan.
        largest_error: each output's largest error against the graph in ONNX Runtime, relative to the output's largest
            magnitude (PATCH: in levels of 255); None if there was no GPU to run the plan.
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
        version: the builder's version, with four parts.
        gpu: the GPU that the plans were built for; None if they were built ahead of time for `capability` only.
    """

    builder: str
    version: str
    gpu: str | None
    capability: str
    graphs: dict[str, PlanRecord] = field(default_factory=dict)

    def write(self, repository: Path) -> Path:
        """Write the manifest into a repository; return the file."""
        path = repository / MANIFEST
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, repository: Path) -> PlanManifest:
        """Read a repository's manifest.

        Raises:
            ServerError: there is none, or it is invalid.
        """
        path = repository / MANIFEST
        try:
            value = json.loads(path.read_text())
            graphs = {name: PlanRecord(**record) for name, record in value.pop("graphs").items()}
            return cls(**value, graphs=graphs)
        except FileNotFoundError as exc:
            raise ServerError(f"{repository} has no {MANIFEST}: {REMEDY}") from exc
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ServerError(f"{path} is not a valid manifest of plans ({exc}): {REMEDY}") from exc


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_plans(repository: Path, version: str | None = None, gpu: Gpu | None = None) -> PlanManifest:
    """Check that every graph has a plan that this machine's server can load; return the manifest.

    Args:
        repository: the model repository.
        version: the server's TensorRT version, by default this machine's.
        gpu: the server's GPU, by default this machine's; if there is none, the GPU is not checked.

    Raises:
        ServerError: a plan is missing, does not match the manifest, or was built from another graph, by another TensorRT
            or for another GPU. One line, with the remedy.
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
    """Return why a plan cannot be loaded, or None if it can."""
    plan, onnx = (repository / name / "1" / file for file in (PLAN, "model.onnx"))
    record = manifest.graphs.get(name)
    if record is None or not plan.is_file():
        return f"{PLAN} is missing" if record else f"{MANIFEST} has no plan for it"
    if manifest.builder != BUILDER:
        return f"its plan was built by {manifest.builder}, whose plans Triton cannot load"
    if manifest.version != version:
        return f"its plan was built by TensorRT {manifest.version}, but the server has {version}"
    if sha256(plan) != record.plan_sha256:
        return f"{PLAN} is not the one that {MANIFEST} describes"
    if not onnx.is_file() or sha256(onnx) != record.onnx_sha256:
        return "its plan was built from a different model.onnx than the one in its folder"
    if gpu is not None and manifest.capability != gpu.capability:
        found = f"{gpu.name} has {gpu.capability}"
        return f"its plan was built for a GPU of compute capability {manifest.capability}, but {found}"
    return None
