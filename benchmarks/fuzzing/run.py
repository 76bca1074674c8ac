"""Fuzzing of a real server with ten thousand malformed requests: `python -m benchmarks.fuzzing.run`.

Each request is of one of the classes of `benchmarks.fuzzing.requests`, made from the seed and its number, so that it can be
sent again. Several senders run at once. The server has a limit (INSYNC_CAPACITY_FPS), so that admission is tested too. All the
while a well-formed live stream runs, which must not be refused, and whose response must not change by a bit. At the end every
process must be alive, and a live stream must be admitted with the server's whole capacity: no malformed request still holds
part of it. Memory and file descriptors are recorded along the way.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from benchmarks import reports
from benchmarks.fuzzing.admission import check_admission
from benchmarks.fuzzing.messages import Call, Kit, Sent, request, strings
from benchmarks.fuzzing.report import LEFT, Result, Tally, load, report, save
from benchmarks.fuzzing.requests import KINDS, Kind
from benchmarks.fuzzing.transport import NO_CAPACITY, TIMEOUT_S, Connection, Health, Outcome, connected, health
from insync.core.errors import ServerError
from insync.core.settings import CAPACITY_VARIABLE
from insync.ensemble.server.embedded import EmbeddedServer

SENDERS = 6
# The server's capacity: 5 for the well-formed stream, 25 for the stream of `Kit.good`, and a little more.
CAPACITY_FPS = 40
WELL_FORMED_FPS = 5
_FRAME_EVERY_S = 0.5  # of the well-formed stream: its rate leaves time for the senders' checks
CHECK_EVERY = 50  # requests of one sender between two well-formed ones
PARTS = 10  # the state of the processes is recorded after each
# Codes that tell the client that its request is malformed, with the reason in the message.
REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "OUT_OF_RANGE", "stream: refused")


def expected(kind: Kind, outcome: Outcome, limited: bool) -> bool:
    """Return whether this class of requests may have this outcome; `limited`: the server has a limit."""
    if outcome.code == NO_CAPACITY:
        return limited
    if outcome.code == "OK":
        return kind.harmless
    if outcome.code in REFUSALS or outcome.code.startswith("HTTP 4"):
        return bool(outcome.text) or outcome.code.startswith("HTTP 4")
    if outcome.code == "UNAVAILABLE":
        return "restricted" in outcome.text  # Triton's message for a missing key
    if outcome.code == "RESOURCE_EXHAUSTED":
        return "metadata size exceeds" in outcome.text  # Triton quotes a very long name, too long for a gRPC status
    if outcome.code == "INTERNAL" and "max allowed is" in outcome.text:
        # Triton's message for a batch that is too large, in some places
        return kind.name.startswith(("wrong rank", "batches"))
    if kind.name.startswith("protobuf") and outcome.code == "INTERNAL":
        return outcome.text == "Unable to parse request"  # gRPC's message for bytes that are no protobuf message
    if kind.name.startswith("HTTP") and outcome.code == "HTTP 500":
        return outcome.text.startswith('{"error":')  # Triton's message for invalid JSON
    return outcome.code in LEFT and kind.name.startswith(("streams", "connections", "HTTP"))


def make(kind: Kind, seed: int, number: int, kit: Kit) -> Call:
    """Return the request of a class with this number."""
    return kind.make(np.random.default_rng((seed, KINDS.index(kind), number)), kit)


def plan(count: int) -> list[tuple[Kind, int]]:
    """Return the class and number of each request, classes evenly mixed."""
    total = sum(kind.share for kind in KINDS)
    counts = {kind.name: max(1, round(count * kind.share / total)) for kind in KINDS}
    jobs = [((number + 0.5) / counts[kind.name], kind, number) for kind in KINDS for number in range(counts[kind.name])]
    return [(kind, number) for _, kind, number in sorted(jobs, key=lambda job: (job[0], KINDS.index(job[1])))]


@dataclass
class _Run:
    """The requests of several senders to one server, and their outcomes so far."""

    server: EmbeddedServer
    seed: int
    kit: Kit
    good: pb.ModelInferRequest
    before: pb.ModelInferResponse
    until: float
    tallies: dict[str, Tally] = field(default_factory=lambda: {kind.name: Tally() for kind in KINDS})
    checks: int = 0
    damaged: list[str] = field(default_factory=list)
    limited: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    due_s: float = 0.0

    def send(self, jobs: list[tuple[Kind, int]]) -> None:
        """Send the requests of one sender. Return early if the server dies, or time is up."""
        with connected(self.server.grpc_url, self.server.http_url) as connection:
            for index, (kind, number) in enumerate(jobs):
                if self.server.pid is None or time.monotonic() > self.until:
                    return
                outcome = connection.send(make(kind, self.seed, number, self.kit))
                with self.lock:
                    tally = self.tallies[kind.name]
                    tally.codes[outcome.code] = tally.codes.get(outcome.code, 0) + 1
                    tally.examples.setdefault(outcome.code, outcome.text)
                    if not expected(kind, outcome, self.limited):
                        tally.wrong.append((number, outcome))
                if index % CHECK_EVERY == CHECK_EVERY - 1 or index == len(jobs) - 1:
                    self.check(connection, f"after {kind.name} {number}")

    def keep(self, ended: threading.Event) -> None:
        """Send the well-formed live stream until `ended` is set."""
        with connected(self.server.grpc_url, self.server.http_url) as connection:
            while not ended.wait(_FRAME_EVERY_S) and self.server.pid is not None:
                self.check(connection, "in the live stream")

    def check(self, connection: Connection, when: str) -> None:
        """Send a well-formed request when the next frame of the stream is due; all of them belong to the same stream."""
        with self.lock:
            self.due_s = max(time.monotonic(), self.due_s + 1 / WELL_FORMED_FPS)
            wait_s = self.due_s - time.monotonic()
        time.sleep(max(0.0, wait_s))
        error = "another response than before"
        try:
            same = (
                connection.stub.ModelInfer(self.good, timeout=TIMEOUT_S).raw_output_contents
                == self.before.raw_output_contents
            )
        except grpc.RpcError as exc:
            same, error = False, str(exc.details() if isinstance(exc, grpc.Call) else exc)
        with self.lock:
            self.checks += 1
            if not same:
                self.damaged.append(f"{when}: {error}")


def fuzz(
    server: EmbeddedServer,
    image: NDArray[np.uint8],
    count: int,
    seed: int,
    senders: int = SENDERS,
    until: float = float("inf"),
    capacity_fps: int = 0,
) -> Result:
    """Send `count` malformed requests.

    Args:
        server: a running server.
        image: uint8 [H, W, 3] RGB with a face.
        count: number of malformed requests.
        seed: of their content.
        senders: number of senders that run at once.
        until: time.monotonic() after which no more are sent.
        capacity_fps: the server's limit; 0: it has none.

    Returns:
        Their outcomes.
    """
    with connected(server.grpc_url, server.http_url) as connection:
        frames = {"FRAMES": Sent("BYTES", (1,), strings(Kit(image, "", server.models).jpeg))}
        answer = connection.stub.ModelInfer(request("lipsync_twin", frames), timeout=TIMEOUT_S)
        kit = Kit(image, answer.raw_output_contents[0].decode(), server.models)
        named = {
            "STREAM": Sent("BYTES", (1, 1), strings(b"well-formed")),
            "RATE": Sent("FP32", (1, 1), np.array([WELL_FORMED_FPS], np.float32).tobytes()),
        }
        good = request("lipsync_patch", {**kit.good("lipsync_patch"), **named})
        before = connection.stub.ModelInfer(good, timeout=TIMEOUT_S)
    state = _Run(server, seed, kit, good, before, until, limited=capacity_fps > 0)
    ended = threading.Event()
    keeper = threading.Thread(target=state.keep, args=(ended,), name="well-formed")
    keeper.start()
    try:
        healths = _send_all(state, plan(count), senders)
    finally:
        ended.set()
        keeper.join()
    found = check_admission(server.grpc_url, kit.jpeg, kit.twin.decode(), capacity_fps) if capacity_fps else None
    result = Result(seed, state.tallies, state.checks, state.damaged, healths, capacity=found)
    try:
        server.check()
    except ServerError as exc:
        return replace(result, died=str(exc))
    return result


def _send_all(state: _Run, jobs: list[tuple[Kind, int]], senders: int) -> list[tuple[int, Health]]:
    """Send the requests in parts; return the number sent and the server's processes, before the first and after each part."""
    server = state.server
    healths = [(0, health(server.pid, server.shared_memory_prefix))]
    for part in range(PARTS):
        portion = jobs[part * len(jobs) // PARTS : (part + 1) * len(jobs) // PARTS]
        with ThreadPoolExecutor(senders) as pool:
            for run in [pool.submit(state.send, portion[k::senders]) for k in range(senders)]:
                run.result()
        sent = sum(sum(tally.codes.values()) for tally in state.tallies.values())
        healths.append((sent, health(server.pid, server.shared_memory_prefix)))
        if healths[-1][1].pids != healths[0][1].pids or time.monotonic() > state.until:
            break
    return healths


def main() -> int:
    """Run the fuzzing and write the report; return 1 if something unexpected happened."""
    parser = argparse.ArgumentParser(description="Start a server and send malformed requests to it.")
    parser.add_argument("--count", type=int, default=10_500, help="number of requests (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of their content (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop sending after so many seconds")
    parser.add_argument(
        "--no-fuse",
        dest="unfused",
        action="store_true",
        help="use a server with a Triton model for each step of a frame",
    )
    parser.add_argument("--add", action="store_true", help="add to the results of earlier runs")
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / "fuzzing.md", help="default: %(default)s")
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    with av.open(str(reports.SAMPLES / "sample.mp4")) as clip:
        image = next(clip.decode(video=0)).to_ndarray(format="rgb24")
    os.environ[CAPACITY_VARIABLE] = str(CAPACITY_FPS)
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(twin_store=Path(folder) / "twins", log=options.log, unfused=options.unfused) as server,
    ):
        result = fuzz(server, image, options.count, options.seed, until=until, capacity_fps=CAPACITY_FPS)
    limit = f" --seconds {options.seconds:g}" if np.isfinite(options.seconds) else ""
    limit += " --no-fuse" * options.unfused
    command = f"python -m benchmarks.fuzzing.run --count {options.count} --seed {options.seed}{limit}"
    result = replace(result, command=command)
    kept = options.out.with_suffix(".json")
    results = [*(load(kept) if options.add and kept.exists() else []), result]
    save(results, kept)
    report(results, options.out)
    for name, number, outcome in result.wrong[:40]:
        sys.stderr.write(f"{name} {number}: {outcome.code}: {outcome.text[:300]}\n")
    for damage in result.damaged[:20]:
        sys.stderr.write(f"well-formed, {damage}\n")
    sys.stderr.write(f"{result.capacity}\n")
    sys.stderr.write(f"{result.sent} sent; {result.died or 'the server is alive'}\n")
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
