"""Resource usage over time: processor time, memory, file handles, processes and shared memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from insync.loadtest.measure.triton_metrics import Counters, scrape

__all__ = ["Group", "Sample", "Sampler", "Watched", "shared_memory"]

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Group:
    """The summed resource usage of a group of processes.

    Attributes:
        processes: number of processes.
        rss_bytes: resident memory; memory that processes share is counted in each of them.
        shared_bytes: the part of it that is shared memory, counted in each process that has touched the pages.
        cpu_s: processor time since the processes started.
        handles: open files, sockets and pipes.
        threads: number of threads.
    """

    processes: int = 0
    rss_bytes: int = 0
    shared_bytes: int = 0
    cpu_s: float = 0.0
    handles: int = 0
    threads: int = 0

    def __add__(self, other: Group) -> Group:
        return Group(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Sample:
    """The resource usage at one time.

    Attributes:
        at_s: `time.monotonic()`.
        server: the tritonserver process.
        stubs: the stub processes of its Python models.
        clients: the load processes.
        regions, region_bytes: number and size of the shared memory regions whose names start with the server's prefix.
        machine_cpu: share of all cores in use since the previous sample, 0 to 1.
        models: Triton's counters by model; empty if its metrics cannot be read.
    """

    at_s: float
    server: Group
    stubs: Group
    clients: Group
    regions: int
    region_bytes: int
    machine_cpu: float
    models: dict[str, Counters] = field(default_factory=dict)


@dataclass(frozen=True)
class Watched:
    """The processes and endpoints to sample.

    Attributes:
        server: returns the server's process id, or None if it does not run on this machine.
        shared_memory_prefix: name prefix of the server's shared memory regions; None if it has none on this machine.
        metrics: HOST:PORT of Triton's metrics, or None.
        clients: returns the process ids of the load processes.
    """

    server: Callable[[], int | None] = lambda: None
    shared_memory_prefix: str | None = None
    metrics: str | None = None
    clients: Callable[[], Iterable[int]] = tuple


def shared_memory(prefix: str | None) -> tuple[int, int]:
    """Return the number of regions under /dev/shm whose names start with `prefix`, and their size in bytes."""
    count = size = 0
    if prefix is not None and SHARED_MEMORY.is_dir():
        for region in SHARED_MEMORY.glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # deleted in the meantime
                size += region.stat().st_blocks * 512
                count += 1
    return count, size


def measure(process: psutil.Process) -> Group:
    """Return the resource usage of one process; zeros if it has ended."""
    try:
        with process.oneshot():
            cpu, memory = process.cpu_times(), process.memory_info()
            return Group(
                processes=1,
                rss_bytes=memory.rss,
                shared_bytes=_touched(process.pid),
                cpu_s=cpu.user + cpu.system,
                handles=process.num_fds(),
                threads=process.num_threads(),
            )
    except psutil.Error:
        return Group()


def _touched(pid: int) -> int:
    """Return the bytes of shared memory that a process has touched; 0 where /proc does not report them."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssShmem:")), 0)


def server_groups(pid: int | None) -> tuple[Group, Group]:
    """Return the resource usage of the server process, and of its stub processes."""
    server, stubs = Group(), Group()
    if pid is None:
        return server, stubs
    try:
        leader = psutil.Process(pid)
        server = measure(leader)
        for child in leader.children(recursive=True):
            # A Python model's stub process, or a process that a model has started.
            stubs += measure(child)
    except psutil.Error:
        return server, stubs
    return server, stubs


class Sampler:
    """A context manager that takes samples in a background thread.

    Args:
        watched: the processes and endpoints to sample.
        interval_s: seconds between two samples.

    Attributes:
        samples: the samples so far, oldest first.
    """

    def __init__(self, watched: Watched, interval_s: float = 1.0) -> None:
        self._watched, self._interval_s = watched, interval_s
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="insync-load-samples", daemon=True)

    def __enter__(self) -> Sampler:
        psutil.cpu_percent()  # the first call only sets the start of the interval
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(10)

    def take(self) -> Sample:
        """Take one sample now."""
        watched = self._watched
        server, stubs = server_groups(watched.server())
        clients = Group()
        for pid in watched.clients():
            with contextlib.suppress(psutil.Error):
                clients += measure(psutil.Process(pid))
        regions, region_bytes = shared_memory(watched.shared_memory_prefix)
        models = scrape(watched.metrics) if watched.metrics else None
        return Sample(
            at_s=time.monotonic(),
            server=server,
            stubs=stubs,
            clients=clients,
            regions=regions,
            region_bytes=region_bytes,
            machine_cpu=psutil.cpu_percent() / 100,
            models=models or {},
        )

    def between(self, from_s: float, to_s: float) -> list[Sample]:
        """Return the samples taken from `from_s` to `to_s`."""
        return [sample for sample in self.samples if from_s <= sample.at_s <= to_s]

    def _run(self) -> None:
        while not self._stop.is_set():
            started_s = time.monotonic()
            self.samples.append(self.take())
            self._stop.wait(max(0.1, self._interval_s - (time.monotonic() - started_s)))
