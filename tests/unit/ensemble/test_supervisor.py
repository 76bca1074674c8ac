"""The supervisor's decisions, on a fake server."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from insync.core.errors import ServerError
from insync.core.spec import MODELS
from insync.ensemble.server.management import Counts, Management
from insync.ensemble.server.processes import processes
from insync.ensemble.server.supervisor import Supervisor, SupervisorConfig, stalled_steps

STEPS = MODELS["lipsync"].steps
TIMEOUT = "lipsync_patch does not serve: Deadline Exceeded"


class FakeServer:
    """A server and its management, without a real process."""

    frame_steps = STEPS

    def __init__(self) -> None:
        self.pid: int | None = os.getpid()
        self.http_url = ""
        self.error: ServerError | None = None  # the canaries' error
        self.start_error: ServerError | None = None
        self.failed = dict.fromkeys(MODELS, 0)
        self.succeeded: dict[str, int] = {}
        self.stuck: set[str] = set()
        self.busy = False  # with other clients' frames
        self.slow = ""  # a step that no canary passes in time
        self.calls: list[str] = []
        self.while_loading: Callable[[], None] = lambda: None

    def management(self) -> FakeServer:
        return self

    def counts(self) -> dict[str, Counts]:
        return {model: Counts(self.succeeded.get(model, 0), failed) for model, failed in self.failed.items()}

    def probe(self, timeout_s: float) -> None:
        self.calls.append("probe")
        if self.busy:
            self.succeeded["lipsync_patch"] = self.succeeded.get("lipsync_patch", 0) + 3
        for step in STEPS:
            if step in self.stuck or step == self.slow:
                raise ServerError(TIMEOUT)
            self.failed[step] += 1
        if self.error is not None:
            raise self.error

    def infer(self, model: str, timeout_s: float) -> None:
        self.calls.append(f"infer {model}")
        if model in self.stuck:
            raise ServerError("no response")
        self.failed[model] += 1

    def unload(self, model: str) -> None:
        self.calls.append(f"unload {model}")

    def load(self, model: str) -> None:
        self.calls.append(f"load {model}")
        self.while_loading()
        self.stuck.discard(model)

    def check(self) -> None:
        if self.pid is None:
            raise ServerError("the server died (exit code -9)")

    def stop(self, drain: bool = True) -> None:
        assert not drain
        self.pid = None

    def start(self) -> None:
        self.calls.append("start")
        if self.start_error is not None:
            raise self.start_error
        self.pid, self.error, self.stuck = os.getpid(), None, set()


def supervised(server: FakeServer, **config: Any) -> tuple[Supervisor, list[str]]:
    lines: list[str] = []
    given = {"canary_every_s": 0.0, **config}
    return Supervisor(server, lines.append, SupervisorConfig(**given)), lines  # type: ignore[arg-type]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def test_a_server_that_serves_is_left_alone(server: FakeServer) -> None:
    supervisor, lines = supervised(server)
    for _ in range(5):
        supervisor.watch()
    assert server.calls == ["probe"] * 5
    assert not lines


@pytest.mark.parametrize("step", STEPS)
def test_the_first_step_without_progress_is_the_one_that_hangs(step: str) -> None:
    before = dict.fromkeys(MODELS, Counts(3, 4))
    after = {**before, **dict.fromkeys(STEPS[: STEPS.index(step)], Counts(3, 5))}
    assert stalled_steps(STEPS, before, after)[0] == step
    assert stalled_steps(STEPS, before, dict.fromkeys(MODELS, Counts(4, 4))) == []
    assert stalled_steps(STEPS, {}, {}) == list(STEPS)


def test_a_model_that_hangs_is_reloaded(server: FakeServer) -> None:
    supervisor, lines = supervised(server)
    server.stuck = {"lipsync_mixer"}
    supervisor.watch()
    assert server.calls == ["probe", "infer lipsync_mixer", "unload lipsync_mixer", "load lipsync_mixer"]
    supervisor.watch()
    assert server.calls[4:] == ["probe"]
    assert supervisor.reloaded == 1
    assert supervisor.restarted == 0
    assert lines[0].startswith("lipsync_mixer reloaded in")


def test_a_model_that_waits_for_another_is_reloaded_with_it(server: FakeServer) -> None:
    supervisor, lines = supervised(server)
    server.stuck = {"lipsync_twin_features", "lipsync_reference"}
    supervisor.watch()
    assert not server.stuck
    assert supervisor.reloaded == 2
    assert "lipsync_reference, lipsync_twin_features" in lines[0]


def test_a_server_that_is_only_busy_is_left_alone(server: FakeServer) -> None:
    """Frames queue for longer than the canary waits, but every model responds: killing one would cost more."""
    supervisor, lines = supervised(server)
    server.slow, server.busy = "lipsync_decoder", True
    for _ in range(10):
        supervisor.watch()
    assert set(server.calls) == {"probe", "infer lipsync_decoder", "infer lipsync_composite"}
    server.calls, server.slow = [], ""
    server.error = ServerError(TIMEOUT)
    for _ in range(10):
        supervisor.watch()
    server.error = ServerError(
        "lipsync_patch does not serve: RESOURCE_EXHAUSTED: probes must be at most 2 frames/s together"
    )
    for _ in range(10):
        supervisor.watch()
    assert set(server.calls) == {"probe"}
    assert not lines


def test_a_server_that_responds_to_no_client_is_restarted(server: FakeServer) -> None:
    """Each model works by itself, but no frame comes through: Triton's own threads wait for each other."""
    supervisor, lines = supervised(server)
    server.error = ServerError(TIMEOUT)
    for _ in range(3):
        supervisor.watch()
    assert server.calls[-1] == "start"
    assert "Deadline Exceeded" in lines[0]


def test_a_persistent_error_restarts_the_server(server: FakeServer) -> None:
    supervisor, lines = supervised(server)
    server.error = ServerError("lipsync_patch does not serve: CUDA error")
    for _ in range(4):
        supervisor.watch()
    assert server.calls == ["probe", "probe", "probe", "start", "probe"]
    assert supervisor.restarted == 1
    assert "CUDA error" in lines[0]


def test_a_dead_server_is_restarted_but_not_for_ever(server: FakeServer) -> None:
    supervisor, lines = supervised(server, restarts=3)
    server.pid = None
    supervisor.watch()
    assert server.calls == ["start"]
    assert lines[0].startswith("the server was restarted in")
    assert "exit code -9" in lines[0]
    server.pid, server.start_error = None, ServerError("no memory")
    for _ in range(2):
        supervisor.watch()
    assert lines[1:] == ["the server could not be restarted: no memory"] * 2
    with pytest.raises(ServerError, match="restarted 3 times without recovering: the server died"):
        supervisor.watch()


def test_a_registration_that_never_ends(server: FakeServer) -> None:
    supervisor, _ = supervised(server, canary_every_s=60.0, registration_every_s=0.0)

    def watch_until(call: str) -> None:
        deadline_s = time.monotonic() + 20
        while call not in server.calls:
            supervisor.watch()
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    watch_until("infer lipsync_twin")
    assert not supervisor.reloaded
    server.stuck = {"lipsync_twin"}
    watch_until("load lipsync_twin")
    assert "load lipsync_reference" in server.calls


def test_models_processes_are_found_until_they_die() -> None:
    sleep = [sys.executable, "-c", "input()", "model.py", "lipsync_twin_features_0_1"]
    with subprocess.Popen(sleep, stdin=subprocess.PIPE) as process:
        assert processes(os.getpid()).get(process.pid) == "lipsync_twin_features"
        assert process.pid not in processes(process.pid)
        process.kill()
        deadline_s = time.monotonic() + 20
        while process.pid in processes(os.getpid()):  # still there as a zombie
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


def test_a_models_death_is_seen_at_once(server: FakeServer) -> None:
    supervisor, lines = supervised(server, canary_every_s=60.0)
    sleep = [sys.executable, "-c", "input()", "lipsync_adaat_0_0"]
    with subprocess.Popen(sleep, stdin=subprocess.PIPE) as process:
        supervisor.watch()
        assert not lines
        process.kill()
        deadline_s = time.monotonic() + 20
        while not lines:
            supervisor.watch()
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    assert server.calls == ["unload lipsync_adaat", "load lipsync_adaat"]


def test_two_that_die_one_after_the_other(server: FakeServer) -> None:
    supervisor, _ = supervised(server, canary_every_s=60.0)
    sleeps = [[sys.executable, "-c", "input()", f"lipsync_{name}_0_0"] for name in ("adaat", "guard")]
    first, second = (subprocess.Popen(sleep, stdin=subprocess.PIPE) for sleep in sleeps)
    with first, second:
        supervisor.watch()
        server.while_loading = second.kill
        first.kill()
        first.wait()
        supervisor.watch()
        second.wait()
        supervisor.watch()
    assert [line for line in server.calls if "unload" in line] == ["unload lipsync_adaat", "unload lipsync_guard"]


def test_a_model_whose_process_triton_reports_as_unhealthy(server: FakeServer) -> None:
    supervisor, _ = supervised(server)
    server.error = ServerError("in ensemble 'lipsync', Stub process 'lipsync_twin_features_0_1' is not healthy.")
    supervisor.watch()
    assert server.calls == ["probe", "unload lipsync_twin_features", "load lipsync_twin_features"]


class FakeEndpoint(BaseHTTPRequestHandler):
    """The part of Triton's HTTP endpoint that the supervisor uses."""

    received: list[tuple[str, str]]

    def do_GET(self) -> None:
        outcomes = {"success": {"count": 3}, "fail": {"count": 2}}
        self._respond(200, {"model_stats": [{"name": "a", "inference_stats": outcomes}] * 2})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.received.append((self.path, content))  # type: ignore[attr-defined]
        if self.headers.get("key") != "secret":
            self._respond(403, {"error": "This API is restricted"})
        elif "infer" in self.path:
            self._respond(400, {"error": "one frame that is none"})
        else:
            self._respond(200, None)

    def _respond(self, status: int, content: Any) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def triton() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeEndpoint) as server:
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_management_speaks_tritons_http(triton: Any) -> None:
    url = f"127.0.0.1:{triton.server_address[1]}"
    management = Management(url, {"key": "secret"})
    assert management.counts() == {"a": Counts(6, 4)}
    assert Counts(6, 4).ended == 10
    management.unload("a")
    management.load("a")
    for model in MODELS:
        management.infer(model, 5.0)
    assert [path for path, _ in triton.received] == [
        "/v2/repository/models/a/unload",
        "/v2/repository/models/a/load",
        *(f"/v2/models/{model}/infer" for model in MODELS),
    ]
    for model, (_, content) in zip(MODELS, triton.received[2:], strict=True):
        given = json.loads(content)["inputs"]
        needed = [t.name for t in MODELS[model].inputs if not t.optional]
        assert [tensor["name"] for tensor in given] == (needed or ["FRAMES"])
        assert all(len(tensor["data"]) == math.prod(tensor["shape"]) for tensor in given)
    with pytest.raises(ServerError, match=r"unload failed with 403: .*restricted"):
        Management(url).unload("a")


def test_management_without_a_server() -> None:
    with pytest.raises(ServerError, match="no response from 127"):
        Management("127.0.0.1:9").counts()
