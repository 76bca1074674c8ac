"""What streams lose when something breaks: `python -m benchmarks.faults.faults`.

Two `insync serve` share one twin store. Streams run through them while models' processes, the servers, their supervisors
and other clients are killed with SIGKILL or stopped with SIGSTOP, while the store's disk is full, and while a proxy delays,
cuts and swallows what goes over the network. Each frame that arrives is held against the same frame of an undisturbed stream.
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
GAP = 6  # frames between two breaks, at least
_STEPS = [step for step in spec.MODELS["lipsync"].steps if step != "lipsync_composite"]


@dataclass
class Row:
    """One kind of fault, over all its streams."""

    what: str
    times: int
    arrivals: list[Arrivals]
    remark: str = ""
    recoveries_s: list[float] | None = None
    undisturbed: Arrivals | None = None

    def cells(self) -> list[str]:
        """The table's columns."""
        assert self.undisturbed is not None
        recoveries = self.recoveries_s
        if recoveries is None:
            recoveries = [s for one in self.arrivals for s in one.recoveries_s()]
        return [
            self.what,
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
    "what was broken",
    "times",
    "frames expected",
    "received",
    "lost",
    "duplicated",
    "out of order or another frame's",
    "requests sent again",
    "recovery, s: median (longest)",
    "remark",
)


@dataclass
class Ground:
    """What the faults work on."""

    first: Serving
    second: Serving
    store: Path
    footage: Footage
    twin: str
    chance: random.Random

    @property
    def both(self) -> str:
        return f"{self.first.address},{self.second.address}"

    def moments(self, breaks: list[Callable[[], None]]) -> tuple[int, dict[int, Callable[[], None]]]:
        """Random frames for breaks to happen at, and how many frames the stream has to have."""
        at = 0
        found = {}
        for one in breaks:
            at += GAP + self.chance.randrange(GAP)
            found[at] = one
        return at + GAP, found


async def nothing(ground: Ground) -> Row:
    """The measure of all others."""
    arrivals = await stream(ground.first.address, ground.footage, ground.twin, 150)
    pauses = [b - a for a, b in pairwise(arrivals.at_s)]
    remark = (
        f"{len(arrivals.at_s) / (arrivals.at_s[-1] - arrivals.at_s[0]):.1f} frames/s, longest pause {max(pauses):.2f} s"
    )
    return Row("nothing", 0, [arrivals], remark)


async def killed_models(ground: Ground) -> Row:
    """The models of the frames' way at random moments; then two at once."""
    return await _killed(ground, ground.first, [*fused.STEPS, *fused.STEPS], "each model of the frames' way twice")


async def killed_steps(ground: Ground) -> Row:
    """The same where each step is a model."""
    return await _killed(ground, ground.second, _STEPS, "with `--no-fuse`: each of nine models once")


async def _killed(ground: Ground, serving: Serving, models: Sequence[str], what: str) -> Row:
    killed = ground.chance.sample(models, len(models))
    breaks: list[Callable[[], None]] = [partial(serving.kill_model, model) for model in killed]
    breaks.append(partial(serving.kill_model, *ground.chance.sample(sorted(set(models)), 2)))
    count, at = ground.moments(breaks)
    arrivals = await stream(serving.address, ground.footage, ground.twin, count, at)
    return Row("a model's process (SIGKILL)", len(breaks) + 1, [arrivals], f"{what}, then two at once")


async def hung_models(ground: Ground) -> Row:
    """SIGSTOP: the process is there and does nothing."""
    return await _hung(ground, ground.first, fused.STEPS, "the supervisor sees that it was stopped")


async def hung_steps(ground: Ground) -> Row:
    """The same where each step is a model."""
    return await _hung(ground, ground.second, ("lipsync_encoder", "lipsync_face"), "with `--no-fuse`")


async def _hung(ground: Ground, serving: Serving, models: Sequence[str], remark: str) -> Row:
    breaks: list[Callable[[], None]] = [partial(serving.kill_model, model, how=signal.SIGSTOP) for model in models]
    count, at = ground.moments(breaks)
    arrivals = await stream(serving.address, ground.footage, ground.twin, count, at)
    return Row("a model's process hangs (SIGSTOP)", len(breaks), [arrivals], remark)


async def killed_server(ground: Ground) -> Row:
    """There is no other server: the stream waits for the supervisor."""
    count, at = ground.moments([ground.first.kill_triton] * 2)
    arrivals = await stream(ground.first.address, ground.footage, ground.twin, count, at)
    return Row("the only server (SIGKILL)", 2, [arrivals], "its supervisor starts it again, it knows the twin")


async def killed_server_of_two(ground: Ground) -> Row:
    """`insync serve` and all, in turns; each is started again, so that the other may die next."""
    streams = []
    for dies, stays in ((ground.first, ground.second), (ground.second, ground.first)):
        count, at = ground.moments([dies.kill])
        streams.append(await stream(f"{dies.address},{stays.address}", ground.footage, ground.twin, count, at))
        await asyncio.to_thread(dies.start)
    return Row(
        "one server of two with its supervisor (SIGKILL)", len(streams), streams, "the stream goes on at the other"
    )


async def cut_network(ground: Ground) -> Row:
    """Connections are reset, and new ones refused for half a second."""
    with Network(ground.first.address) as network:

        def cut() -> None:
            network.cut()
            Timer(0.5, network.mend).start()

        count, at = ground.moments([cut] * 5)
        arrivals = await stream(network.address, ground.footage, ground.twin, count, at)
    return Row("network: reset, 0.5 s away", 5, [arrivals])


async def silent_network(ground: Ground) -> Row:
    """Nothing arrives and nobody says so; other connections work."""
    with Network(ground.first.address) as network:
        count, at = ground.moments([network.stall])
        addresses = f"{network.address},{ground.second.address}"
        arrivals = await stream(addresses, ground.footage, ground.twin, count, at, client={"request_timeout_s": 2.0})
    return Row(
        "network: swallows everything",
        1,
        [arrivals],
        "requests time out after 2 s here (default 30 s), then another server",
    )


async def slow_network(ground: Ground) -> Row:
    """50 ms each way."""
    with Network(ground.first.address) as network:
        network.delay_s = 0.05
        arrivals = await stream(network.address, ground.footage, ground.twin, 40)
    rate = len(arrivals.at_s) / (arrivals.at_s[-1] - arrivals.at_s[0])
    return Row("network: 50 ms late each way", 1, [arrivals], f"{rate:.1f} frames/s")


async def killed_clients(ground: Ground) -> Row:
    """Others' clients die with frames under way; a stream on the same server goes on."""
    code = (
        "import asyncio, itertools, sys, numpy as np; from insync.client import Client\n"
        "async def run():\n"
        f"    async with Client({ground.first.address!r}) as client:\n"
        "        frames, quiet = itertools.repeat(np.full((256, 256, 3), 90, np.uint8)), np.zeros(16000, np.float32)\n"
        f"        async for one in client.stream(frames, quiet, twin={ground.twin!r}):\n"
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
        count, at = ground.moments([client.kill for client in clients])
        arrivals = await stream(ground.first.address, ground.footage, ground.twin, count, at)
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    return Row("other clients of the same server (SIGKILL)", len(clients), [arrivals], recoveries_s=[])


async def full_disk(ground: Ground) -> Row:
    """Registrations are refused, streams are not."""
    filling = ground.store.parent / "filling"
    block = bytes(65_536)
    with filling.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError:
            pass
    refused = 0
    before = sorted(ground.store.iterdir())
    for _ in range(3):
        try:
            await register(ground.first.address, ground.footage)
        except InsyncError as exc:
            refused += "the twin store cannot be written: No space left" in str(exc)
    arrivals = await stream(ground.second.address, ground.footage, ground.twin, 40)
    left = len(set(ground.store.iterdir()) - set(before))
    filling.unlink()
    started_s = time.monotonic()
    await register(ground.first.address, ground.footage)
    remark = (
        f"{refused} of 3 registrations refused with that reason, {left} left-overs; the next one after freeing passed"
    )
    return Row("the twin store's disk is full", 1, [arrivals], remark, [time.monotonic() - started_s])


async def everything(ground: Ground) -> Row:
    """Anything of the above, at random, with two servers: three streams at once."""
    breaks: list[Callable[[], None]] = [
        partial(ground.first.kill_model, ground.chance.choice(fused.STEPS)),
        *(partial(ground.second.kill_model, model) for model in ground.chance.choices(_STEPS, k=2)),
    ]
    breaks.append(ground.second.kill_triton)
    ground.chance.shuffle(breaks)
    count, at = ground.moments(breaks)
    others = [stream(ground.both, ground.footage, ground.twin, count) for _ in range(2)]
    streams = await asyncio.gather(stream(ground.both, ground.footage, ground.twin, count, at), *others)
    return Row("models and a server at random, three streams on two servers", len(breaks), list(streams))


FAULTS: dict[str, Callable[[Ground], Awaitable[Row]]] = {
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
    """A file system of a few MiB, or None where none can be mounted."""
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


async def measure(ground: Ground, names: list[str], done: Callable[[list[Row]], None]) -> None:
    """Breaks one thing after the other; says on standard error what it is at.

    Args:
        done: takes all rows so far, after each one.
    """
    rows: list[Row] = []
    for name in names:
        started_s = time.monotonic()
        row = await FAULTS[name](ground)
        row.undisturbed = rows[0].arrivals[0] if rows else row.arrivals[0]
        rows.append(row)
        sys.stderr.write(f"{name}, {time.monotonic() - started_s:.0f} s: {' | '.join(row.cells())}\n")
        done(rows)


def report(path: Path, rows: list[Row], seed: int, warning: str, supervisors: list[str]) -> None:
    """Writes the table."""
    reports.write(
        path,
        "What streams lose when something breaks",
        f"python -m benchmarks.faults.faults --seed {seed}",
        [
            warning,
            reports.table(HEADER, [row.cells() for row in rows]),
            "Streams take the sample clip at 360 lines as fast as the server answers, eight frames in flight, except where a row "
            "says otherwise. Breaks happen at random frames. **Lost** and **duplicated** compare the frames sent in with those "
            "that came; **another frame's** counts those whose mouth code differs from the same frame's in the undisturbed "
            "stream. **Recovery** goes from the break to the end of the longest pause between frames that follows it; for the "
            "full disk it is the next registration's time.",
            "What the supervisors said:\n\n```text\n" + "\n".join(supervisors) + "\n```",
        ],
    )


def main() -> int:
    """Runs it and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), default=list(FAULTS), help="these faults")
    parser.add_argument("--seed", type=int, default=5, help="of the moments (default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / "faults.md")
    options = parser.parse_args()
    warning = reports.busy()
    names = ["nothing", *(name for name in options.only if name != "nothing")]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = stack.enter_context(small_disk())
        if disk is None and "disk" in names:
            names.remove("disk")
            warning += " No file system could be mounted here: the full disk was not tried."
        store = (disk or folder) / "twins"
        serving = [Serving(store, folder / "first.log"), Serving(store, folder / "second.log", "--no-fuse")]
        for one in serving:
            stack.enter_context(one)
        footage = Footage.load(60, 360)
        twin = asyncio.run(register(serving[0].address, footage))
        ground = Ground(serving[0], serving[1], store, footage, twin, random.Random(options.seed))

        def done(rows: list[Row]) -> None:
            report(options.out, rows, options.seed, warning, [line for one in serving for line in one.said()])

        asyncio.run(measure(ground, names, done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
