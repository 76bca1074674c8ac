"""Frames that streams lose under faults: `python -m benchmarks.faults.faults`.

Two `insync serve` share one twin store. Streams run through them while models' processes, the servers, their supervisors
and other clients are killed with SIGKILL or stopped with SIGSTOP, while the store's disk is full, and while a proxy delays,
resets and stalls connections. Each frame received is compared with the same frame of an undisturbed stream.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Timer

from benchmarks import reports
from benchmarks.faults.streams import Arrivals, Footage, Serving, register, spread, stream
from benchmarks.faults.tcp_proxy import Network
from insync.client import InsyncError
from insync.core import spec
from insync.ensemble.repository import fused

STORE_MIB = 8
GAP = 6  # frames between two faults, at least
_STEPS = [step for step in spec.MODELS["lipsync"].steps if step != "lipsync_composite"]


@dataclass
class Row:
    """One kind of fault, over all its streams."""

    fault: str
    times: int
    arrivals: list[Arrivals]
    remark: str = ""
    recoveries_s: list[float] | None = None
    undisturbed: Arrivals | None = None

    def cells(self) -> list[str]:
        """Return the cells of the table's row."""
        assert self.undisturbed is not None
        recoveries = self.recoveries_s
        if recoveries is None:
            recoveries = [s for one in self.arrivals for s in one.recoveries_s()]
        return [
            self.fault,
            str(self.times),
            str(sum(one.expected for one in self.arrivals)),
            str(sum(len(one.indices) for one in self.arrivals)),
            str(sum(one.lost for one in self.arrivals)),
            str(sum(one.duplicated for one in self.arrivals)),
            str(sum(one.disordered + one.wrong(self.undisturbed) for one in self.arrivals)),
            str(sum(one.clock.resent for one in self.arrivals)),
            spread(recoveries),
            "; ".join(filter(None, [self.remark, *(f"gave up: {one.error}" for one in self.arrivals if one.error)])),
        ]


HEADER = (
    "fault",
    "times",
    "frames expected",
    "received",
    "lost",
    "duplicated",
    "out of order or another frame's",
    "requests retried",
    "recovery, s: median (longest)",
    "remark",
)


@dataclass
class Setup:
    """Servers, footage and random generator that all faults use."""

    first: Serving
    second: Serving
    store: Path
    footage: Footage
    twin: str
    rng: random.Random

    @property
    def both(self) -> str:
        return f"{self.first.address},{self.second.address}"

    def moments(self, breaks: list[Callable[[], None]]) -> tuple[int, dict[int, Callable[[], None]]]:
        """Return the number of frames of the stream, and a random frame for each fault."""
        at = 0
        found = {}
        for one in breaks:
            at += GAP + self.rng.randrange(GAP)
            found[at] = one
        return at + GAP, found


async def nothing(setup: Setup) -> Row:
    """Run an undisturbed stream, which the others are compared with."""
    arrivals = await stream(setup.first.address, setup.footage, setup.twin, 150)
    pauses = [b - a for a, b in pairwise(arrivals.at_s)]
    remark = (
        f"{len(arrivals.at_s) / (arrivals.at_s[-1] - arrivals.at_s[0]):.1f} frames/s, longest pause {max(pauses):.2f} s"
    )
    return Row("none", 0, [arrivals], remark)


async def killed_models(setup: Setup) -> Row:
    """Kill the models of the fused pipeline at random moments, then two at once."""
    return await _killed(setup, setup.first, [*fused.STEPS, *fused.STEPS], "each model of the fused pipeline twice")


async def killed_steps(setup: Setup) -> Row:
    """Kill the models of the unfused pipeline at random moments, then two at once."""
    return await _killed(setup, setup.second, _STEPS, "with `--no-fuse`: each of nine models once")


async def _killed(setup: Setup, serving: Serving, models: Sequence[str], remark: str) -> Row:
    killed = setup.rng.sample(models, len(models))
    breaks: list[Callable[[], None]] = [partial(serving.kill_model, model) for model in killed]
    breaks.append(partial(serving.kill_model, *setup.rng.sample(sorted(set(models)), 2)))
    count, at = setup.moments(breaks)
    arrivals = await stream(serving.address, setup.footage, setup.twin, count, at)
    return Row("a model's process (SIGKILL)", len(breaks) + 1, [arrivals], f"{remark}, then two at once")


async def hung_models(setup: Setup) -> Row:
    """Stop the models of the fused pipeline with SIGSTOP: the process is alive and does nothing."""
    return await _hung(setup, setup.first, fused.STEPS, "the supervisor detects that it is stopped")


async def hung_steps(setup: Setup) -> Row:
    """Stop models of the unfused pipeline with SIGSTOP."""
    return await _hung(setup, setup.second, ("lipsync_encoder", "lipsync_face"), "with `--no-fuse`")


async def _hung(setup: Setup, serving: Serving, models: Sequence[str], remark: str) -> Row:
    breaks: list[Callable[[], None]] = [partial(serving.kill_model, model, how=signal.SIGSTOP) for model in models]
    count, at = setup.moments(breaks)
    arrivals = await stream(serving.address, setup.footage, setup.twin, count, at)
    return Row("a model's process hangs (SIGSTOP)", len(breaks), [arrivals], remark)


async def killed_server(setup: Setup) -> Row:
    """Kill the only server: the stream waits until its supervisor has restarted it."""
    count, at = setup.moments([setup.first.kill_triton] * 2)
    arrivals = await stream(setup.first.address, setup.footage, setup.twin, count, at)
    return Row("the only server (SIGKILL)", 2, [arrivals], "its supervisor restarts it; the twin is still registered")


async def killed_server_of_two(setup: Setup) -> Row:
    """Kill one `insync serve` with its Triton, then the other; each is restarted before the next is killed."""
    streams = []
    for dies, stays in ((setup.first, setup.second), (setup.second, setup.first)):
        count, at = setup.moments([dies.kill])
        streams.append(await stream(f"{dies.address},{stays.address}", setup.footage, setup.twin, count, at))
        await asyncio.to_thread(dies.start)
    return Row(
        "one server of two with its supervisor (SIGKILL)", len(streams), streams, "the stream continues on the other"
    )


async def cut_network(setup: Setup) -> Row:
    """Reset all connections, and refuse new ones for half a second."""
    with Network(setup.first.address) as network:

        def cut() -> None:
            network.cut()
            Timer(0.5, network.restore).start()

        count, at = setup.moments([cut] * 5)
        arrivals = await stream(network.address, setup.footage, setup.twin, count, at)
    return Row("network: reset, refused for 0.5 s", 5, [arrivals])


async def silent_network(setup: Setup) -> Row:
    """Stall all open connections without an error; those to the other server work."""
    with Network(setup.first.address) as network:
        count, at = setup.moments([network.stall])
        addresses = f"{network.address},{setup.second.address}"
        arrivals = await stream(addresses, setup.footage, setup.twin, count, at, client={"request_timeout_s": 2.0})
    return Row(
        "network: delivers nothing, without an error",
        1,
        [arrivals],
        "requests time out after 2 s here (default 30 s), then another server",
    )


async def slow_network(setup: Setup) -> Row:
    """Delay all data by 50 ms in each direction."""
    with Network(setup.first.address) as network:
        network.delay_s = 0.05
        arrivals = await stream(network.address, setup.footage, setup.twin, 40)
    rate = len(arrivals.at_s) / (arrivals.at_s[-1] - arrivals.at_s[0])
    return Row("network: 50 ms delay in each direction", 1, [arrivals], f"{rate:.1f} frames/s")


async def killed_clients(setup: Setup) -> Row:
    """Kill other clients of the same server while their requests are in flight."""
    code = (
        "import asyncio, itertools, sys, numpy as np; from insync.client import Client\n"
        "async def run():\n"
        f"    async with Client({setup.first.address!r}) as client:\n"
        "        frames, silence = itertools.repeat(np.full((256, 256, 3), 90, np.uint8)), np.zeros(16000, np.float32)\n"
        f"        async for one in client.stream(frames, silence, twin={setup.twin!r}):\n"
        "            print(one.index, flush=True)\n"
        "asyncio.run(run())"
    )
    clients = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            await asyncio.to_thread(client.stdout.readline)
        count, at = setup.moments([client.kill for client in clients])
        arrivals = await stream(setup.first.address, setup.footage, setup.twin, count, at)
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    return Row("other clients of the same server (SIGKILL)", len(clients), [arrivals], recoveries_s=[])


async def full_disk(setup: Setup) -> Row:
    """Fill the twin store's disk: registrations are refused, streams are not."""
    filling = setup.store.parent / "filling"
    block = bytes(65_536)
    with filling.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError:
            pass
    refused = 0
    before = sorted(setup.store.iterdir())
    for _ in range(3):
        try:
            await register(setup.first.address, setup.footage)
        except InsyncError as exc:
            refused += "the twin store cannot be written: No space left" in str(exc)
    arrivals = await stream(setup.second.address, setup.footage, setup.twin, 40)
    left = len(set(setup.store.iterdir()) - set(before))
    filling.unlink()
    started_s = time.monotonic()
    await register(setup.first.address, setup.footage)
    remark = f"{refused} of 3 registrations refused with that reason, {left} files left over; the next one after freeing space succeeded"
    return Row("the twin store's disk is full", 1, [arrivals], remark, [time.monotonic() - started_s])


async def everything(setup: Setup) -> Row:
    """Kill random models and a server while three streams run on two servers."""
    breaks: list[Callable[[], None]] = [
        partial(setup.first.kill_model, setup.rng.choice(fused.STEPS)),
        *(partial(setup.second.kill_model, model) for model in setup.rng.choices(_STEPS, k=2)),
    ]
    breaks.append(setup.second.kill_triton)
    setup.rng.shuffle(breaks)
    count, at = setup.moments(breaks)
    others = [stream(setup.both, setup.footage, setup.twin, count) for _ in range(2)]
    streams = await asyncio.gather(stream(setup.both, setup.footage, setup.twin, count, at), *others)
    return Row("models and a server at random, three streams on two servers", len(breaks), list(streams))


FAULTS: dict[str, Callable[[Setup], Awaitable[Row]]] = {
    "nothing": nothing,
    "models": killed_models,
    "steps": killed_steps,
    "hung": hung_models,
    "hung-steps": hung_steps,
    "server": killed_server,
    "one-of-two": killed_server_of_two,
    "cut": cut_network,
    "silent": silent_network,
    "slow": slow_network,
    "clients": killed_clients,
    "disk": full_disk,
    "everything": everything,
}


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """Mount a file system of a few MiB, or return None if that is not possible."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["-t", "tmpfs", "-o", f"size={STORE_MIB}m", "tmpfs", folder]
        try:
            mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            mounted = False
        try:
            yield Path(folder) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=True)


async def measure(setup: Setup, names: list[str], done: Callable[[list[Row]], None]) -> None:
    """Run one fault after the other, and log each result to standard error.

    Args:
        setup: the setup.
        names: keys of FAULTS.
        done: called with all rows so far, after each one.
    """
    rows: list[Row] = []
    for name in names:
        started_s = time.monotonic()
        row = await FAULTS[name](setup)
        row.undisturbed = rows[0].arrivals[0] if rows else row.arrivals[0]
        rows.append(row)
        sys.stderr.write(f"{name}, {time.monotonic() - started_s:.0f} s: {' | '.join(row.cells())}\n")
        done(rows)


def report(path: Path, rows: list[Row], seed: int, warning: str, supervisor_log: list[str]) -> None:
    """Write the report."""
    reports.write(
        path,
        "Frames that streams lose under faults",
        f"python -m benchmarks.faults.faults --seed {seed}",
        [
            warning,
            reports.table(HEADER, [row.cells() for row in rows]),
            "Streams send the sample clip at 360 lines as fast as the server responds, with eight frames in flight, "
            "unless a row says otherwise. Faults happen at random frames. **Lost** and **duplicated** compare the frames sent with those "
            "received; **another frame's** counts those whose mouth code differs from the same frame's in the undisturbed "
            "stream. **Recovery** is the time from the fault to the end of the longest pause between frames after it; for the "
            "full disk it is the duration of the next registration.",
            "The supervisors' log:\n\n```text\n" + "\n".join(supervisor_log) + "\n```",
        ],
    )


def main() -> int:
    """Run the faults and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), default=list(FAULTS), help="run only these faults")
    parser.add_argument("--seed", type=int, default=5, help="of the moments of faults (default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / "faults.md")
    options = parser.parse_args()
    warning = reports.busy()
    names = ["nothing", *(name for name in options.only if name != "nothing")]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = stack.enter_context(small_disk())
        if disk is None and "disk" in names:
            names.remove("disk")
            warning += " No file system could be mounted: the full disk was not tested."
        store = (disk or folder) / "twins"
        serving = [Serving(store, folder / "first.log"), Serving(store, folder / "second.log", "--no-fuse")]
        for one in serving:
            stack.enter_context(one)
        footage = Footage.load(60, 360)
        twin = asyncio.run(register(serving[0].address, footage))
        setup = Setup(serving[0], serving[1], store, footage, twin, random.Random(options.seed))

        def done(rows: list[Row]) -> None:
            report(options.out, rows, options.seed, warning, [line for one in serving for line in one.supervisor_log()])

        asyncio.run(measure(setup, names, done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
