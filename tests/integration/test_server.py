"""The embedded server as a process: its start, its error messages, and that it leaves nothing when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from insync.core.errors import ServerError
from insync.core.spec import ALL_MODELS
from insync.ensemble.repository.locate import default_repository
from insync.ensemble.server.embedded import EmbeddedServer, failure_reason

pytestmark = pytest.mark.triton

SHARED_MEMORY = Path("/dev/shm")


def shared(leader: int) -> set[str]:
    """Return the shared memory regions of one server; others may run on this machine at the same time."""
    (option,) = [part for part in psutil.Process(leader).cmdline() if "shm-region-prefix-name" in part]
    return regions(option.partition("prefix-name=")[2])


def regions(prefix: str) -> set[str]:
    """Return the names of shared memory regions with this prefix."""
    assert prefix.startswith("insync_")
    return {path.name for path in SHARED_MEMORY.glob(f"{prefix}*")}


def group(leader: int) -> list[psutil.Process]:
    """Return the processes of a session, without zombies."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def copied_repository(folder: Path) -> Path:
    """Copy the repository with hard links, so that a test can remove files."""
    repository = folder / "repository"
    shutil.copytree(
        default_repository(),
        repository,
        copy_function=os.link if folder.stat().st_dev == default_repository().stat().st_dev else shutil.copy2,
    )
    return repository


def test_every_model_is_ready_and_listens_on_loopback(server: EmbeddedServer, raw: Any) -> None:
    for name in server.models:
        assert raw.client.is_model_ready(name), name
    assert server.pid is not None
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in group(server.pid)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("profile", ["server", "unfused_server"])
def test_the_servers_metadata_agrees_with_the_specification(profile: str, request: pytest.FixtureRequest) -> None:
    serving = request.getfixturevalue(profile)
    with triton.InferenceServerClient(serving.grpc_url) as client:
        answers = {name: client.get_model_metadata(name) for name in serving.models}
    for name, metadata in answers.items():
        model = ALL_MODELS[name]
        batch = [-1] if model.max_batch_size else []
        kinds = {"STRING": "BYTES"}
        for kind in ("inputs", "outputs"):
            expected = [(t.name, kinds.get(t.dtype, t.dtype), [*batch, *t.shape]) for t in getattr(model, kind)]
            assert sorted((t.name, t.datatype, list(t.shape)) for t in getattr(metadata, kind)) == sorted(expected), (
                name
            )


def test_numpy_has_a_version_that_the_backend_can_read() -> None:
    """With numpy 2, Triton 2.51's Python backend silently reads wrong inputs."""
    assert int(np.__version__.split(".")[0]) < 2


def test_a_server_that_dies_is_detected_and_leaves_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(twin_store=tmp_path / "twins")
    server.start()
    try:
        leader, log = server.pid, server.log
        assert leader is not None
        assert len(group(leader)) > len(server.models) // 2
        used = shared(leader)
        assert len(used) > len(server.models) // 2
        server.check()
        os.kill(leader, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while server.pid is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(ServerError, match="the server died"):
            server.check()
    finally:
        server.stop(drain=False)
    assert group(leader) == []
    assert not any((SHARED_MEMORY / name).exists() for name in used)
    assert log is not None
    assert not log.parent.exists()
    assert list((tmp_path / "twins").iterdir()) == []  # the canary's twin is gone
    server.stop()  # again, without effect


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_cleanly_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from insync.ensemble.server.serve import serve; "
    code += f"sys.exit(serve(twin_store=Path({str(tmp_path)!r}), grpc_port=0, http_port=0, metrics_port=0))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "gRPC 127.0.0.1:" in line
        children = psutil.Process(process.pid).children()
        (leader,) = (child.pid for child in children if child.name() == "tritonserver")
        used = shared(leader)
        assert used
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)
    assert process.returncode == 0, err
    assert out == "InSync has stopped.\n"
    assert group(leader) == []
    assert not any(child.is_running() for child in children)
    assert not any((SHARED_MEMORY / name).exists() for name in used)


def test_a_server_does_not_outlive_an_owner_that_is_killed(tmp_path: Path) -> None:
    code = "import time; from pathlib import Path; from insync.ensemble.server.embedded import EmbeddedServer; "
    code += f"server = EmbeddedServer(twin_store=Path({str(tmp_path)!r})); server.start(); "
    code += "print(server.pid, server.log, flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, log = owner.stdout.readline().split()
        used = shared(int(pid))
        assert used
        owner.kill()
    deadline = time.monotonic() + 10
    while group(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert group(int(pid)) == []
    while Path(log).parent.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(log).parent.exists()
    assert not any((SHARED_MEMORY / name).exists() for name in used)


def serve_fails(*arguments: str, prelude: str = "") -> str:
    """Run `serve` in a process of its own; return the one line of its error."""
    code = f"import sys; from pathlib import Path; {prelude}\nfrom insync.ensemble.server.serve import serve\n"
    code += f"sys.exit(serve({', '.join(arguments)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"gRPC port {port} on 127.0.0.1 is in use"):
            EmbeddedServer(grpc_port=port)
        assert f"HTTP port {port} on 127.0.0.1 is in use" in serve_fails("grpc_port=0", f"http_port={port}")


@pytest.mark.parametrize("port", [-1, 65536])
def test_invalid_ports_are_refused(port: int) -> None:
    with pytest.raises(ServerError, match=f"gRPC port must be from 1 to 65535, got {port}"):
        EmbeddedServer(grpc_port=port)


@pytest.mark.parametrize("module", ["pytriton", "numba", "onnxruntime"])
def test_the_error_of_a_missing_extra_names_it(module: str) -> None:
    if module == "pytriton" and (shutil.which("tritonserver") or Path("/opt/tritonserver").exists()):
        pytest.skip("a system server would take over")
    line = serve_fails("grpc_port=0", "http_port=0", "metrics_port=0", prelude=f"sys.modules[{module!r}] = None")
    assert "pip install 'insync[serve]'" in line


def test_a_folder_that_is_not_a_repository(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="is not InSync's model repository"):
        EmbeddedServer(tmp_path, twin_store=tmp_path / "twins").start()


@pytest.mark.parametrize("unfused", [False, True])
def test_a_broken_model_is_named_and_nothing_is_left(unfused: bool, tmp_path: Path) -> None:
    repository = copied_repository(tmp_path)
    (repository / "lipsync_mixer" / "1" / "model.onnx").unlink()
    server = EmbeddedServer(repository, twin_store=tmp_path / "twins", unfused=unfused)
    with pytest.raises(ServerError, match=r"(?s)^the server did not start: .*lipsync_mixer: .*model\.onnx") as caught:
        server.start()
    assert "\n" not in str(caught.value)
    assert server.pid is None
    assert regions(server.shared_memory_prefix) == set()


def test_a_start_that_takes_too_long_is_aborted(tmp_path: Path) -> None:
    server = EmbeddedServer(twin_store=tmp_path / "twins", start_timeout_s=0.3)
    with pytest.raises(ServerError, match=r"not ready after 0\.3 s"):
        server.start()
    assert server.pid is None
    assert regions(server.shared_memory_prefix) == set()


def test_a_twin_store_that_cannot_be_written(tmp_path: Path) -> None:
    from insync.ensemble.server.canary import send_canary

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServerError, match=r"twins: the twin store cannot be written"):
        send_canary("127.0.0.1:1", tmp_path / "file" / "twins", 1.0)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "its log is empty"),
        ('E1122 14:31:25.25 1 server.cc:241] "CudaDriverHelper has not been initialized."\nlast', "last"),
        ("I1 x] fine\nerror: creating server: Internal - failed to load all models\n", "creating server: Internal"),
        ("E1122 14:31:25.25 1 x.cc:6] \"failed to load 'a_b' version 1: Internal: no file\"", "a_b: Internal: no file"),
    ],
)
def test_the_reason_is_found_in_the_log(log: str, reason: str) -> None:
    assert failure_reason(log).startswith(reason)


def test_regions_of_shared_memory_are_large_from_the_start(server: EmbeddedServer) -> None:
    """Triton keeps the old mapping of a region that grows: in its default steps of 1 MiB, this would use much memory."""
    if shutil.disk_usage(SHARED_MEMORY).free < 2**30:
        pytest.skip("/dev/shm is small: regions have Triton's own size")
    sizes = [(SHARED_MEMORY / name).stat().st_size for name in regions(server.shared_memory_prefix)]
    assert sizes
    assert all(size % (16 * 2**20) == 0 for size in sizes)
