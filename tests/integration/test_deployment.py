"""A second server as the container starts it, with both behind the load balancer: both get frames, and one is enough."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml
from numpy.typing import NDArray
from tests.integration.conftest import jpeg

from insync.core import settings
from insync.ensemble.server import reaper
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.installation import find_installation

pytestmark = pytest.mark.triton

DOCKER = Path(__file__).parents[2] / "docker"
KEY = "a-key-for-this-test"
PREFIX = f"insync_container_{os.getpid()}_"
# Triton only exports them if there is a GPU.
ONLY_WITH_A_GPU = {"nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "nv_gpu_utilization"}


@dataclass
class Container:
    """The server as the image's command starts it."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    metrics: str
    log: Path


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError):
            if ready():
                return
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it is not ready"
        time.sleep(0.1)


def restrictions() -> list[str]:
    """Return the server's arguments after -- in compose.yaml, with this test's key."""
    command = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["server"]["command"]
    return [re.sub(r"\$\{INSYNC_ADMIN_KEY:[^}]*\}", KEY, part) for part in command[command.index("--") + 1 :]]


@pytest.fixture(scope="module")
def second(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("container")
    installation = find_installation()
    installation.write_backends(folder / "backends")
    ports = free_ports(3)
    grpc, http, metrics = (f"127.0.0.1:{port}" for port in ports)
    command = [sys.executable, "-m", "insync.ensemble.container", "serve", "--config=default"]
    command += [f"--served={folder / 'models'}", "--", *restrictions()]
    # The image has backends at the default path. Ports differ from a container's, which may be in use here.
    command += [
        f"--backend-directory={folder / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={PREFIX}",
    ]
    for name, port in zip(("grpc", "http", "metrics"), ports, strict=True):
        command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
    environment = {**os.environ, **installation.environment(), settings.TWINS_VARIABLE: str(server.twin_store)}
    environment["PATH"] = os.pathsep.join([environment["PATH"], str(installation.server.parent)])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        wait(lambda: page(f"http://{http}/v2/health/ready") == "", process, 120)
        yield Container(process, grpc, http, metrics, folder / "log")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        reaper.reap(process.pid, folder, PREFIX)


@pytest.fixture(scope="module")
def balancer(
    server: EmbeddedServer, second: Container, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run docker/envoy.yaml with this machine's two servers instead of compose's hosts named `server`."""
    folder = tmp_path_factory.mktemp("envoy")
    port, admin = free_ports(2)
    config = yaml.safe_load((DOCKER / "envoy.yaml").read_text())
    config["static_resources"]["listeners"][0]["address"]["socket_address"] = {
        "address": "127.0.0.1",
        "port_value": port,
    }
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    (cluster,) = config["static_resources"]["clusters"]
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(number)}}}}
        for host, _, number in (url.rpartition(":") for url in (server.grpc_url, second.grpc))
    ]
    # Not every 10 s, which would be too slow for a test.
    cluster["health_checks"][0].update(interval="0.2s", no_traffic_interval="0.2s")
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    program = str(Path(sysconfig.get_path("scripts")) / "envoy")
    command = [program, "-c", str(folder / "envoy.yaml"), "--disable-hot-restart", "--concurrency", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        wait(lambda: page(f"http://127.0.0.1:{admin}/clusters").count("health_flags::healthy") == 2, process)
        yield f"127.0.0.1:{port}", process
    finally:
        # The wheel's command may be the parent process of the program.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def frames(metrics: str) -> float:
    found = re.search(
        r'^nv_inference_request_success\{model="lipsync_patch",version="1"\} (\S+)$',
        page(f"http://{metrics}/metrics"),
        re.MULTILINE,
    )
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_management_requires_the_key_and_health_does_not(second: Container, protocol: str) -> None:
    if protocol == "grpc":
        with triton.InferenceServerClient(second.grpc) as client:
            assert client.is_server_ready()
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                client.get_model_repository_index()
            headers = {"triton-grpc-protocol-insync-admin": KEY}
            assert client.get_model_repository_index(headers=headers).models
    else:
        address = f"http://{second.http}/v2/repository/index"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(address, b""), timeout=10)
        with urllib.request.urlopen(urllib.request.Request(address, b"", {"insync-admin": KEY}), timeout=10) as answer:
            assert b"lipsync" in answer.read()


def test_frames_are_sent_to_both_servers_and_continue_when_one_is_stopped(
    server: EmbeddedServer,
    second: Container,
    balancer: tuple[str, subprocess.Popen[bytes]],
    raw: Any,
    photo: NDArray[Any],
    audio: NDArray[Any],
    twin: NDArray[Any],
    images: list[NDArray[np.uint8]],
) -> None:
    url, _ = balancer
    through = type(raw)(url)
    request = {"FRAME": photo, "AUDIO": audio, "TWIN": twin}
    before = [frames(server.metrics_url), frames(second.metrics)]
    answers = through.together("lipsync_patch", [request] * 16)
    assert [str(answer) for answer in answers if isinstance(answer, Exception)] == []
    after = [frames(server.metrics_url), frames(second.metrics)]
    assert sum(after) - sum(before) == 16
    assert all(now > then for now, then in zip(after, before, strict=True))

    # A message of several megabytes, and all steps of a registration.
    pictures = np.array([jpeg(image) for image in images[:8]], np.object_)
    assert len(b"".join(pictures)) > 2**20
    assert through("lipsync_twin", FRAMES=pictures)["TWIN"].shape == (32,)

    # Before the second server is stopped: its metrics page has all metrics of the dashboard and the rules.
    text = (DOCKER / "rules.yml").read_text() + (DOCKER / "grafana" / "dashboards" / "insync.json").read_text()
    wanted = set(re.findall(r"\b(?:nv|insync)_\w+", text)) - ONLY_WITH_A_GPU
    for _ in range(50):  # the page is updated periodically, and a metric appears with its first sample
        shown = set(re.findall(r"^(\w+)(?:\{| )", page(f"http://{second.metrics}/metrics"), re.MULTILINE))
        if wanted <= shown:
            break
        time.sleep(0.2)
    assert wanted - shown == set()

    os.kill(second.process.pid, signal.SIGTERM)  # as Docker and Kubernetes do
    # Triton unloads its models before it stops listening: requests in that moment must be retried.
    for _ in range(8):
        for _ in range(20):
            answers = through.together("lipsync_patch", [request] * 2)
            if not any(isinstance(answer, Exception) for answer in answers):
                break
            time.sleep(0.25)
        assert [str(answer) for answer in answers if isinstance(answer, Exception)] == []
    assert second.process.wait(60) == 0, second.log.read_text()[-4000:]
    through.client.close()
