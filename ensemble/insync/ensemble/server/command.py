"""The command line of the embedded `tritonserver`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Endpoint", "ServerCommand", "server_command"]

# Initial size and growth step of each Python model's shared-memory region. Triton keeps every mapping that a region has
# outgrown, so growing by Triton's default of 1 MiB shows as many times a region's size in the server's resident memory.
_REGION_BYTES = 16 * 2**20
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Endpoint:
    """Where one of Triton's services listens."""

    service: Literal["grpc", "http", "metrics"]
    host: str
    port: int


@dataclass(frozen=True)
class ServerCommand:
    """What the embedded server is started with.

    Attributes:
        executable: `tritonserver`.
        repository: the model repository that it loads from.
        backends: folder with a backend for every model.
        models: to be loaded; "*" is all.
        endpoints: of gRPC, HTTP and metrics.
        shared_memory_prefix: of the names of its regions under /dev/shm.
        regions: how many Python models have one.
        security: options for TLS and for who may manage the server.
    """

    executable: Path
    repository: Path
    backends: Path
    models: Sequence[str]
    endpoints: Sequence[Endpoint]
    shared_memory_prefix: str
    regions: int
    security: Sequence[str] = ()


def server_command(command: ServerCommand) -> list[str]:
    """Write the command line."""
    listening = [
        option
        for endpoint in command.endpoints
        for option in (
            f"--{endpoint.service}-address={endpoint.host}",
            f"--{endpoint.service}-port={endpoint.port}",
        )
    ]
    return [
        str(command.executable),
        f"--model-repository={command.repository}",
        f"--backend-directory={command.backends}",
        f"--backend-config=python,shm-region-prefix-name={command.shared_memory_prefix}",
        *_region_options(command.regions),
        "--model-control-mode=explicit",  # lets a supervisor reload a model
        *(f"--load-model={model}" for model in command.models),
        "--disable-auto-complete-config",  # our configs are complete; auto-complete starts every Python model twice
        *listening,
        "--grpc-infer-allocation-pool-size=0",  # a pooled request would keep the memory of its largest message
        "--exit-timeout-secs=5",
        *command.security,
    ]


def _region_options(models: int) -> list[str]:
    """Return the options that set the size of the models' shared-memory regions; none if /dev/shm has little space."""
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return []
    if free < 4 * models * _REGION_BYTES:
        return []
    return [f"--backend-config=python,shm-{when}-byte-size={_REGION_BYTES}" for when in ("default", "growth")]
