"""Streams lose no frame when servers, models and clients are killed or hang, or the disk is full."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from insync.cli.main import main
from insync.client import Client, Overloaded, ServerError, Twin
from insync.client.media.audio_reader import AudioFile
from insync.client.streaming.stream import SyncedFrame
from insync.client.streaming.timings import StageClock
from insync.core.spec import ALL_MODELS
from insync.ensemble.server.embedded import EmbeddedServer
from insync.ensemble.server.processes import processes
from insync.ensemble.server.supervisor import Supervisor, SupervisorConfig

pytestmark = pytest.mark.triton

Image = NDArray[np.uint8]
FRAMES = 24
MOUTH_TOLERANCE = 0.02  # of a mouth code: rounding depends on the batch size
STORE_BYTES = 6 * 2**20
TIMEOUT_S = 120  # for events that take a few seconds on an idle machine


class SupervisedServer:
    """A server with its supervisor as in `insync serve`, here in a thread."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.log: list[str] = []
        self.supervisor = Supervisor(
            server, self.log.append, SupervisorConfig(canary_every_s=3.0, canary_timeout_s=3.0)
        )
        self._ended = threading.Event()
        self._watches = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="supervisor")
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            with self._watches:
                self.supervisor.watch()

    def paused(self) -> threading.Lock:
        """Return a lock; while it is held, the supervisor is paused."""
        return self._watches

    def kill(self, *models: str) -> None:
        """Kill models' processes."""
        assert self.server.pid is not None
        found = {model: process for process, model in processes(self.server.pid).items()}
        for model in models:
            os.kill(found[model], signal.SIGKILL)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self.server.stop(drain=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a twin store, on a small file system of its own if one can be mounted, which a test can fill."""
    folder = tmp_path_factory.mktemp("store")
    options = ["-t", "tmpfs", "-o", f"size={STORE_BYTES}", "tmpfs", str(folder)]
    mounted = (
        os.geteuid() == 0 and subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    )
    yield folder / "twins"
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def hang(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file that makes the next request of `lipsync_adaat` hang, once, in the server whose process id it holds."""
    return tmp_path_factory.mktemp("hang") / "hang"


@pytest.fixture(scope="module")
def hanging_repository(repository: Path, hang: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the model repository, with a step that hangs as `hang` tells it to."""
    folder = tmp_path_factory.mktemp("models") / "repository"
    shutil.copytree(repository, folder)
    with (folder / "lipsync_adaat" / "1" / "model.py").open("a") as file:
        file.write(
            "\nimport os\nimport time\nfrom pathlib import Path\n"
            "_works = TritonPythonModel.execute\n"
            "def _hangs(self, requests):\n"
            f"    hang = Path({str(hang)!r})\n"
            "    try:  # several processes serve the model; one of them takes the file\n"
            "        taken = hang.read_text() == str(os.getppid()) and hang.rename(hang.with_suffix('.taken'))\n"
            "    except FileNotFoundError:\n"
            "        taken = None\n"
            "    if taken:\n"
            "        time.sleep(3600)\n"
            "    return _works(self, requests)\n"
            "TritonPythonModel.execute = _hangs\n"
        )
    return folder


@pytest.fixture(scope="module")
def pair(
    store: Path, hanging_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SupervisedServer, SupervisedServer]]:
    """Start two servers that share a twin store, the second unfused. Each has capacity for one live stream."""
    folder = tmp_path_factory.mktemp("logs")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("INSYNC_CAPACITY_FPS", "25")
        servers = [
            EmbeddedServer(hanging_repository, twin_store=store, log=folder / f"{k}.log", unfused=bool(k))
            for k in range(2)
        ]
        for server in servers:
            stack.callback(server.stop, drain=False)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(EmbeddedServer.start, servers))
        supervised = [SupervisedServer(server) for server in servers]
        for one in supervised:
            stack.callback(one.stop)
        yield supervised[0], supervised[1]


@pytest.fixture(scope="module")
def person(pair: tuple[SupervisedServer, SupervisedServer], images: list[Image]) -> Twin:
    async def register() -> Twin:
        async with Client(pair[0].server.grpc_url) as client:
            return await client.register(images[::8])

    return asyncio.run(register())


@pytest.fixture(scope="module")
def speech(root: Path) -> NDArray[np.float32]:
    return np.concatenate(list(AudioFile(root / "samples" / "speech.wav").speech()))[8_000:]


Run = Callable[..., tuple[list[SyncedFrame], StageClock]]


@pytest.fixture(scope="module")
def run(images: list[Image], speech: NDArray[np.float32], person: Twin) -> Run:
    def run(address: str, at: dict[int, Callable[[], None]]) -> tuple[list[SyncedFrame], StageClock]:
        """Run a whole stream; call the functions of `at` after the frames with these indices."""

        async def stream() -> list[SyncedFrame]:
            synced = []
            async with Client(address, retry_s=TIMEOUT_S) as connected:
                async for one in connected.stream(images[:FRAMES], speech, twin=person, in_flight=4, clock=clock):
                    synced.append(one)
                    await asyncio.to_thread(at.get(one.index, lambda: None))
            return synced

        clock = StageClock()
        return asyncio.run(stream()), clock

    return run


@pytest.fixture(scope="module")
def undisturbed(run: Run, pair: tuple[SupervisedServer, SupervisedServer]) -> NDArray[np.float32]:
    """Return the mouth codes [FRAMES, 12] of an undisturbed stream."""
    mouths = np.stack([one.mouth for one in run(pair[0].server.grpc_url, {})[0]])
    assert (
        np.abs(np.diff(mouths, axis=0)).max(axis=1) > MOUTH_TOLERANCE
    ).mean() > 0.9  # so that one frame is not confused with the next
    return mouths


def whole(synced: list[SyncedFrame], undisturbed: NDArray[np.float32]) -> bool:
    """Return whether every frame was received once, in order, each with its own response and not another frame's."""
    assert [one.index for one in synced] == list(range(FRAMES))
    return bool(np.abs(np.stack([one.mouth for one in synced]) - undisturbed).max() < MOUTH_TOLERANCE)


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("profile", "first", "second"), [(0, "lipsync_frame", "lipsync_frame"), (1, "lipsync_mixer", "lipsync_decoder")]
)
def test_killed_models_are_reloaded(
    run: Run,
    pair: tuple[SupervisedServer, SupervisedServer],
    undisturbed: NDArray[np.float32],
    profile: int,
    first: str,
    second: str,
) -> None:
    supervised = pair[profile]
    before = supervised.supervisor.reloaded
    at = {5: lambda: supervised.kill(first), 14: lambda: supervised.kill("lipsync_guard", second)}
    synced, clock = run(supervised.server.grpc_url, at)
    assert whole(synced, undisturbed)
    assert clock.resent > 0
    until(lambda: supervised.supervisor.reloaded >= before + 3 or supervised.supervisor.restarted > 0)
    assert any(f"{first} reloaded" in line for line in supervised.log)


@pytest.mark.parametrize(
    ("profile", "message"), [(0, "lipsync_frame reloaded"), (1, "lipsync_adaat hung")], ids=["fused", "unfused"]
)
def test_a_model_that_hangs_is_replaced(
    run: Run,
    pair: tuple[SupervisedServer, SupervisedServer],
    undisturbed: NDArray[np.float32],
    hang: Path,
    profile: int,
    message: str,
) -> None:
    """Its process is alive, and so is the thread that Triton checks. One of several instances ends itself: no canary detects it."""
    supervised = pair[profile]
    supervised.log.clear()
    for model in supervised.server.models:
        if ALL_MODELS[model].backend != "ensemble":
            supervised.server.management().infer(model, TIMEOUT_S)
    synced, clock = run(supervised.server.grpc_url, {5: lambda: hang.write_text(str(supervised.server.pid))})
    assert whole(synced, undisturbed)
    assert clock.resent > 0
    until(lambda: any(message in line for line in supervised.log))


def test_one_server_of_two_is_killed(
    run: Run, pair: tuple[SupervisedServer, SupervisedServer], undisturbed: NDArray[np.float32]
) -> None:
    """The other loads the twin from the shared store. Then the first one is restarted, and still has the twin."""
    first, second = pair
    restarted = first.supervisor.restarted

    def kill() -> None:
        assert first.server.pid is not None
        os.kill(first.server.pid, signal.SIGKILL)

    synced, clock = run(f"{first.server.grpc_url},{second.server.grpc_url}", {9: kill})
    assert whole(synced, undisturbed)
    assert clock.moved >= 1
    until(lambda: first.supervisor.restarted > restarted)
    assert whole(run(first.server.grpc_url, {})[0], undisturbed)


def ready(url: str) -> bool:
    """Return whether a server says that it is ready; HOST:PORT of its HTTP endpoint."""
    try:
        with urllib.request.urlopen(f"http://{url}/v2/health/ready", timeout=TIMEOUT_S):
            return True
    except OSError:
        return False


def test_one_server_of_two_is_stopped(
    run: Run, pair: tuple[SupervisedServer, SupervisedServer], undisturbed: NDArray[np.float32]
) -> None:
    """It unloads its models while it still listens. Then the same is tested with the restarted server alone."""
    first, second = pair

    def terminated(supervised: SupervisedServer) -> None:
        assert supervised.server.pid is not None
        log = supervised.server.log
        assert log is not None
        begins = len(log.read_text(errors="replace"))
        os.kill(supervised.server.pid, signal.SIGTERM)
        # It may take the signal late, and may be not ready for another reason before: a model that is being reloaded.
        until(lambda: "Signal (15) received" in log.read_text(errors="replace")[begins:])
        until(lambda: not ready(supervised.server.http_url))

    restarted = first.supervisor.restarted
    addresses = f"{first.server.grpc_url},{second.server.grpc_url}"
    synced, clock = run(addresses, {5: lambda: terminated(first)})
    assert whole(synced, undisturbed)
    assert clock.moved >= 1
    until(lambda: first.supervisor.restarted > restarted)
    synced, clock = run(first.server.grpc_url, {5: lambda: terminated(first)})
    assert whole(synced, undisturbed)
    assert clock.resent > 0


def test_a_probe_detects_a_dead_model_only_with_the_canary(
    pair: tuple[SupervisedServer, SupervisedServer], capsys: pytest.CaptureFixture[str]
) -> None:
    supervised = pair[1]
    address = supervised.server.grpc_url
    assert main(["probe", "--canary", f"{address},{pair[0].server.grpc_url}"]) == 0
    with supervised.paused():
        reloaded = supervised.supervisor.reloaded
        supervised.kill("lipsync_face")
        assert main(["probe", address]) == 0
        capsys.readouterr()
        assert main(["probe", address, "--canary"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "lipsync_face_0_0' is not healthy" in err
        assert len(err.splitlines()) == 1
    until(lambda: supervised.supervisor.reloaded > reloaded)
    assert main(["probe", address, "--canary"]) == 0


def test_with_a_full_disk_only_registrations_are_refused(
    run: Run,
    pair: tuple[SupervisedServer, SupervisedServer],
    store: Path,
    images: list[Image],
    undisturbed: NDArray[np.float32],
) -> None:
    if not os.path.ismount(store.parent):
        pytest.skip("no file system can be mounted")

    async def register() -> Twin:
        async with Client(pair[0].server.grpc_url) as client:
            return await client.register(images[::8])

    before = set(store.iterdir())
    filling = store.parent / "filling"
    with filling.open("wb", buffering=0) as file:
        left = os.statvfs(store.parent).f_bavail * os.statvfs(store.parent).f_bsize - 2**16
        file.write(bytes(left))
    with pytest.raises(ServerError, match="the twin store cannot be written: No space left on device"):
        asyncio.run(register())
    assert set(store.iterdir()) == before
    assert whole(run(pair[0].server.grpc_url, {})[0], undisturbed)
    filling.unlink()
    assert len(asyncio.run(register())) == 32


def test_the_capacity_of_a_killed_client_is_released(
    pair: tuple[SupervisedServer, SupervisedServer], images: list[Image], person: Twin
) -> None:
    """At three times the capacity one live stream is admitted, the others get a time to retry after."""
    address = pair[0].server.grpc_url
    silence = np.zeros(16_000, np.float32)

    async def live(frames: list[Image]) -> int:
        async with Client(address) as client:
            return len([one async for one in client.stream(frames, silence, twin=person, deadline_s=5)])

    async def refused() -> Overloaded:
        with pytest.raises(Overloaded) as caught:
            await live(images[:2])
        return caught.value

    code = (
        "import asyncio, itertools, numpy as np; from insync.client import Client\n"
        "async def live():\n"
        f"    async with Client({address!r}) as client:\n"
        "        frames, silence = itertools.repeat(np.full((96, 96, 3), 90, np.uint8)), np.zeros(16000, np.float32)\n"
        f"        async for one in client.stream(frames, silence, twin={str(person)!r}, deadline_s=5, in_flight=2):\n"
        "            print(one.index, flush=True)\n"
        "            await asyncio.sleep(0.05)\n"
        "asyncio.run(live())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        try:
            assert client.stdout.readline() == "0\n"

            async def two() -> list[Overloaded]:
                return list(await asyncio.gather(refused(), refused()))

            for error in asyncio.run(two()):
                assert "RESOURCE_EXHAUSTED" in str(error)
                assert error.retry_after_s is not None
                assert 0 < error.retry_after_s <= 5
            assert client.poll() is None
        finally:
            client.kill()

    def is_admitted() -> bool:
        try:
            return asyncio.run(live(images[:2])) == 2
        except Overloaded:
            time.sleep(0.5)
            return False

    until(is_admitted)
