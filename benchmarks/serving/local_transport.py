"""Shared memory against gRPC messages, for a client on the server's machine: `python -m benchmarks.serving.local_transport`.

The same requests are sent to `lipsync_patch` on the embedded server by two methods that take turns: as the client does, with
all tensors in gRPC messages, and with FRAME, AUDIO and PATCH in a region of system shared memory that is registered with
the server, so that messages hold only names. The cost of a method is the processor time of all processes, this one included.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.utils.shared_memory as shared_memory
from numpy.typing import NDArray

from benchmarks import reports
from benchmarks.serving.ensemble_share import Job, jobs, register, tensor
from benchmarks.serving.processes import processor_s
from insync.core import spec
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.security import admin_headers

IN_FLIGHT = 8  # as `insync dub`
REGION = "benchmark"
FRAME_BYTES = 2**18
AUDIO_BYTES = 4 * spec.WINDOW_SAMPLES
PATCH_BYTES = int(np.prod(spec.PATCH.shape))
SLOT_BYTES = FRAME_BYTES + AUDIO_BYTES + PATCH_BYTES
OTHERS = [name for tensor in spec.MODELS["lipsync_patch"].outputs if (name := tensor.name) != "PATCH"]


class Messages:
    """All tensors in the messages."""

    def inputs(self, job: Job, slot: int) -> list[Any]:
        """Return FRAME and AUDIO."""
        return [tensor("FRAME", job.frame, "UINT8"), tensor("AUDIO", job.audio, "FP32")]

    def outputs(self, slot: int) -> list[Any] | None:
        """Return the requested outputs, and where they go; None: all, in the message."""
        return None

    def patch(self, result: Any, slot: int) -> NDArray[np.uint8]:
        """Return PATCH, [256, 256, 4]."""
        found: NDArray[np.uint8] = result.as_numpy("PATCH")[0]
        return found


class SharedMemory(Messages):
    """FRAME, AUDIO and PATCH in a region, of which each request in flight has a slot."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def inputs(self, job: Job, slot: int) -> list[Any]:
        """Write FRAME and AUDIO to the slot, and return their inputs."""
        found, at = [], slot * SLOT_BYTES
        for name, kind, value, reserved_bytes in (
            ("FRAME", "UINT8", job.frame, FRAME_BYTES),
            ("AUDIO", "FP32", job.audio, AUDIO_BYTES),
        ):
            shared_memory.set_shared_memory_region(self._handle, [value], at)
            made = grpc.InferInput(name, [1, value.size], kind)
            made.set_shared_memory(REGION, value.nbytes, at)
            found.append(made)
            at += reserved_bytes
        return found

    def outputs(self, slot: int) -> list[Any] | None:
        """Request PATCH in the slot, after FRAME and AUDIO, and the others in the message."""
        patch = grpc.InferRequestedOutput("PATCH")
        patch.set_shared_memory(REGION, PATCH_BYTES, slot * SLOT_BYTES + FRAME_BYTES + AUDIO_BYTES)
        return [patch, *map(grpc.InferRequestedOutput, OTHERS)]

    def patch(self, result: Any, slot: int) -> NDArray[np.uint8]:
        """Copy PATCH out of the slot, which the next request uses again."""
        at = slot * SLOT_BYTES + FRAME_BYTES + AUDIO_BYTES
        return np.array(shared_memory.get_contents_as_numpy(self._handle, np.uint8, spec.PATCH.shape, at))


@contextmanager
def region(server: EmbeddedServer, client: Any) -> Iterator[Any]:
    """Create a region for all slots, and register it with the server's admin key."""
    key, size = f"/{server.shared_memory_prefix}benchmark", IN_FLIGHT * SLOT_BYTES
    handle = shared_memory.create_shared_memory_region(REGION, key, size)
    try:
        client.register_system_shared_memory(REGION, key, size, headers=admin_headers(server.admin_key))
        yield handle
    finally:
        shared_memory.destroy_shared_memory_region(handle)


async def stream(url: str, twin: NDArray[Any], work: list[Job], method: Messages) -> list[NDArray[np.uint8]]:
    """Send every job, and return their PATCH."""
    patches: list[Any] = [None] * len(work)
    queue = iter(enumerate(work))

    async def worker(client: Any, slot: int) -> None:
        for index, job in queue:
            inputs = [*method.inputs(job, slot), tensor("TWIN", twin, "STRING")]
            result = await client.infer("lipsync_patch", inputs, outputs=method.outputs(slot))
            patches[index] = method.patch(result, slot)

    async with grpc_aio.InferenceServerClient(url) as client:
        await asyncio.gather(*(worker(client, slot) for slot in range(IN_FLIGHT)))
    return patches


def measure(work: list[Job], rounds: int) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Return milliseconds of processor time per frame, and frames/s, of each method and round; and the patches' difference."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(twin_store=Path(folder)) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
        region(server, client) as handle,
    ):
        twin, _ = register(client, work)
        methods = {"gRPC messages": Messages(), "system shared memory": SharedMemory(handle)}
        first, second = (asyncio.run(stream(server.grpc_url, twin, work, method)) for method in methods.values())
        difference = float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(first, second, strict=True)]))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for _ in range(rounds):
            for name, method in methods.items():
                used_s, started_s = _used_s(server), time.perf_counter()
                asyncio.run(stream(server.grpc_url, twin, work, method))
                wall_s = time.perf_counter() - started_s
                found[name].append((1000 * (_used_s(server) - used_s) / len(work), len(work) / wall_s))
    return found, difference


def _used_s(server: EmbeddedServer) -> float:
    return time.process_time() + sum(processor_s(server.pid or 0).values())


def main() -> int:
    """Measure and write `benchmarks/results/local_transport.md`."""
    parser = argparse.ArgumentParser(
        description="Shared memory against gRPC messages, for a client on the server's machine."
    )
    parser.add_argument("--clip", type=Path, default=reports.SAMPLES / "sample.mp4")
    parser.add_argument("--speech", type=Path, default=reports.SAMPLES / "speech.wav")
    parser.add_argument("--frames", type=int, default=150, help="for each method and round")
    parser.add_argument("--height", type=int, default=300, help="of the frames, in pixels")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=reports.FOLDER / "local_transport.md")
    options = parser.parse_args()
    warning = reports.busy()
    work = jobs(options.clip, options.speech, options.frames, options.height)
    found, difference = measure(work, options.rounds)
    usual = found["gRPC messages"]
    rows = []
    for name, values in found.items():
        spent, rates = zip(*values, strict=True)
        ratios = [a / b for (a, _), (b, _) in zip(values, usual, strict=True)]
        against = "" if values is usual else f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(
            [name, f"{median(spent):.1f}", f"{min(spent):.1f} to {max(spent):.1f}", against, f"{median(rates):.1f}"]
        )
    size = sum(job.frame.size for job in work) / len(work)
    reports.write(
        options.out,
        "Shared memory for a client on the server's machine",
        "python -m benchmarks.serving.local_transport",
        [
            warning,
            f"{options.frames} frames as JPEG of {size / 1000:.0f} kB, as large as those that `insync dub` sends of "
            f"a face; {options.rounds} rounds in which the methods take turns; {IN_FLIGHT} requests in flight. Processor "
            f"time is that of all processes, client included. Mean difference between the methods' patches: {difference:.2f} of 255.",
            reports.table(
                [
                    "transport of FRAME, AUDIO and PATCH",
                    "processor time, ms per frame (median)",
                    "range",
                    "÷ messages",
                    "frames/s",
                ],
                rows,
            ),
        ],
    )
    sys.stdout.write(options.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
