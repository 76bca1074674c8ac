"""The embedded server: a real `tritonserver` on this machine, without a GPU and without Docker.

The binary comes from the `nvidia-pytriton` wheel, or from a system-wide installation. Backends that the model repository
needs and the installation lacks (`onnxruntime`, `dali`) are replaced by the fallback backends in
`insync.ensemble.triton.backends`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from insync.core import settings
from insync.core.errors import ServerError
from insync.core.spec import MODELS
from insync.ensemble.repository import fused
from insync.ensemble.repository.locate import default_repository
from insync.ensemble.server import reaper
from insync.ensemble.server.canary import send_canary
from insync.ensemble.server.command import Endpoint, ServerCommand, server_command
from insync.ensemble.server.installation import Installation, find_installation
from insync.ensemble.server.management import Management
from insync.ensemble.server.security import ServerTls, admin_headers, new_admin_key, restrictions

STOP_TIMEOUT_S = 10.0
LOOPBACK = "127.0.0.1"
_POLL_S = 0.05


class EmbeddedServer:
    """A Triton server as a child process; a context manager.

    `start` returns when every model is ready and both ensembles have served a real inference; `stop` leaves no
    process and no shared memory. Not thread-safe.

    Attributes:
        grpc_url, http_url, metrics_url: HOST:PORT, known before `start`.
        repository, twin_store: the folders in use.
        shared_memory_prefix: prefix of the names of this server's regions under /dev/shm.
        models: the models that it serves.
        frame_steps: the models that process a frame, in order.
        admin_key: grants access to the management endpoints (`insync.ensemble.server.security.admin_headers`); new for
            each server.
    """

    def __init__(
        self,
        repository: Path | None = None,
        twin_store: Path | None = None,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        host: str = "127.0.0.1",
        log: Path | None = None,
        start_timeout_s: float = 120.0,
        gpu: bool = False,
        tls: ServerTls | None = None,
        unfused: bool = False,
    ) -> None:
        """Choose ports and folders; nothing is started yet.

        Args:
            repository: Triton model repository, by default the one shipped with the package.
            twin_store: folder of the twins, by default the one set in the environment.
            grpc_port, http_port, metrics_port: by default free ones.
            host: address to listen on. Other machines can connect only if it is not a loopback address.
            log: file for the server's log, by default a temporary one that is removed with the server.
            start_timeout_s: for `start`.
            gpu: run the networks on the GPU; `start` fails if there is none.
            tls: TLS of the gRPC endpoint. HTTP and metrics, for which Triton has no TLS, then stay on loopback.
            unfused: run each step of a frame as a separate model, as in other servers and always on a GPU, instead of
                the fused pipeline (`insync.ensemble.repository.fused`): slower on a CPU.

        Raises:
            ServerError: a given port is in use, there is no repository, or the TLS files are invalid.
        """
        self.repository = (repository or default_repository()).resolve()
        self.twin_store = (twin_store or settings.load().twins).expanduser().absolute()
        if tls is not None:
            tls.check()
        self._tls = tls
        self._host, self._plain_host = host, LOOPBACK if tls is not None else host
        hosts = (self._host, self._plain_host, self._plain_host)
        wanted = {"gRPC": grpc_port, "HTTP": http_port, "metrics": metrics_port}
        self._ports = _choose_ports(hosts, wanted)
        self.grpc_url, self.http_url, self.metrics_url = (
            f"{host}:{port}" for host, port in zip(hosts, self._ports, strict=True)
        )
        self.admin_key = new_admin_key()
        self._given_log = log
        self._start_timeout_s = start_timeout_s
        self._gpu = gpu
        self._fused = not (unfused or gpu)
        self.models = fused.SERVED if self._fused else tuple(MODELS)
        self.frame_steps = fused.STEPS if self._fused else MODELS["lipsync"].steps
        self.shared_memory_prefix = f"insync_{secrets.token_hex(6)}_"  # unique: cleaning up touches no other server's
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._started = False

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log(self) -> Path | None:
        """The server's log file; None before `start` and after `stop` if the log is temporary."""
        return self._given_log or (self._folder / "server.log" if self._folder is not None else None)

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it serves.

        Raises:
            ServerError: something is missing or broken, or it takes longer than `start_timeout_s`.
        """
        if self._process is not None:
            raise ServerError("the server is already started")
        if not (self.repository / "lipsync" / "config.pbtxt").is_file():
            raise ServerError(f"{self.repository} is not InSync's model repository: it has no lipsync/config.pbtxt")
        installation = find_installation()
        if self._gpu:
            _check_gpu(installation)
        atexit.register(self.stop)
        try:
            self._launch(installation)
            deadline = time.monotonic() + self._start_timeout_s
            self._wait_until_ready(deadline)
            self._send_canary(self.twin_store, max(1.0, deadline - time.monotonic()))
            self._started = True
        except BaseException:  # an interrupt during the start must not leave it running either
            self.stop()
            raise

    def probe(self, timeout_s: float) -> None:
        """Send a frame through every ensemble, for the built-in canary twin: the twin store is not read.

        Args:
            timeout_s: for each inference.

        Raises:
            ServerError: an ensemble does not respond or returns an error; or the gRPC endpoint does not present the
                configured TLS certificate.
        """
        self._send_canary(None, timeout_s)

    def management(self) -> Management:
        """Return a client of Triton's management endpoints."""
        return Management(self.http_url, admin_headers(self.admin_key))

    def _send_canary(self, twin_store: Path | None, timeout_s: float) -> None:
        if self._tls is None:
            send_canary(self.grpc_url, twin_store, timeout_s)
            return
        # We hold no client certificate: infer over HTTP on loopback, and only check gRPC's server certificate.
        self._tls.check_endpoint(self._reachable_host(), self._ports[0], timeout_s)
        send_canary(self.http_url, twin_store, timeout_s, over_http=True)

    def _reachable_host(self) -> str:
        """Return an address of this machine at which a server that listens on `host` can be reached."""
        return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self._host, self._host)

    def stop(self, drain: bool = True) -> None:
        """Stop the server and remove what it created, except twins and a given log. Safe to repeat.

        Args:
            drain: let requests in flight finish and models unload, which takes seconds. Use False when no client waits
                for a response any more: models keep no state.
        """
        atexit.unregister(self.stop)
        if self._process is not None:
            if drain and self._process.poll() is None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT_S)
            # Models run as child processes: none may outlive the server, even if it crashed.
            assert self._folder is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            reaper.reap(self._process.pid, self._folder, self.shared_memory_prefix)
            self._process = None
        if self._reaper is not None:
            self._reaper.communicate(reaper.DONE)
            self._reaper = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def check(self) -> None:
        """Check that the server's process is running.

        Raises:
            ServerError: it has ended; the message quotes the reason from its log.
        """
        if self._process is not None and self._process.poll() is not None:
            raise ServerError(f"the server died (exit code {self._process.returncode}): {self._reason()}")

    def _launch(self, installation: Installation) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="insync-server-"))
        backends = self._folder / "backends"
        installation.write_backends(backends)
        repository, loaded = self.repository, ["*"]
        if self._fused:
            repository = self._folder / "models"
            loaded = fused.write_repository(self.repository, repository, settings.load().processes)
        command = server_command(
            ServerCommand(
                executable=installation.server,
                repository=repository,
                backends=backends,
                models=loaded,
                endpoints=(
                    Endpoint("grpc", self._host, self._ports[0]),
                    Endpoint("http", self._plain_host, self._ports[1]),
                    Endpoint("metrics", self._plain_host, self._ports[2]),
                ),
                shared_memory_prefix=self.shared_memory_prefix,
                regions=len(self.models),
                security=(*restrictions(self.admin_key), *(self._tls.options() if self._tls is not None else ())),
            )
        )
        log = self.log
        assert log is not None
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **installation.environment(), settings.TWINS_VARIABLE: str(self.twin_store)}
        if self._gpu:
            environment[settings.GPU_VARIABLE] = "1"
        with log.open("ab" if self._started else "wb") as file:  # after a restart, keep the dead server's last lines
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # its own process group: Ctrl-C does not reach it, and we can kill all of it
            )
        # The reaper's standard input closes when this process ends, however it ends.
        end = [str(self._process.pid), str(self._folder), self.shared_memory_prefix]
        self._reaper = subprocess.Popen(
            [sys.executable, "-ISB", reaper.__file__, *end], stdin=subprocess.PIPE, start_new_session=True
        )

    def _wait_until_ready(self, deadline: float) -> None:
        waiting = ["", *self.models]
        while waiting:
            assert self._process is not None
            if self._process.poll() is not None:
                raise ServerError(f"the server did not start: {self._reason()}")
            if time.monotonic() > deadline:
                late = waiting[0] or "server"
                raise ServerError(f"{late} was not ready after {self._start_timeout_s:g} s: {self._reason()}")
            path = f"/v2/models/{waiting[0]}/ready" if waiting[0] else "/v2/health/ready"
            try:
                with urllib.request.urlopen(f"http://{self.http_url}{path}", timeout=1):
                    waiting.pop(0)
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_S)

    def _reason(self) -> str:
        log = self.log
        if log is None or not log.is_file():
            return "it wrote no log"
        return failure_reason(log.read_text(errors="replace"))


def _check_gpu(installation: Installation) -> None:
    from insync.ensemble.inference.runtime import find_runtime

    find_runtime()
    if (installation.backends / "onnxruntime").exists():
        raise ServerError(
            f"{installation.server} has its own ONNX Runtime backend, which --gpu cannot configure: "
            "start it with --model-config-name=onnx_gpu or h100"
        )


_LOAD_FAILURE = re.compile(r"failed to load '(\w+)' version \d+: (.+)")
_ERROR = re.compile(r"^(?:E\d{4} .*?\] |error: )(.+)$", re.MULTILINE)


def failure_reason(log: str) -> str:
    """Return the line of a server's log that explains why it did not start."""
    failures = _LOAD_FAILURE.findall(log)
    if failures:
        return "; ".join(f"{model}: {reason.strip().strip(chr(34))}" for model, reason in failures[:3])
    # A server without a GPU logs that as errors, which are harmless here.
    errors = [line for line in _ERROR.findall(log) if not re.search("CUDA|Cuda|NVML|DCGM", line)]
    if errors:
        return str(errors[0]).strip().strip('"')
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "its log is empty"


def _choose_ports(hosts: Sequence[str], wanted: dict[str, int | None]) -> list[int]:
    """Return ports that are free now. All stay bound until all are chosen, so that none is returned twice."""
    with contextlib.ExitStack() as stack:
        ports = []
        for host, (name, port) in zip(hosts, wanted.items(), strict=True):
            held = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held.bind((host, port or 0))
                held.listen(1)
            except OverflowError as exc:
                raise ServerError(f"{name} port must be from 1 to 65535, got {port}") from exc
            except OSError as exc:
                reason = "is in use, choose another" if port else "cannot be opened"
                raise ServerError(f"{name} port {port or 'any'} on {host} {reason} ({exc.strerror})") from exc
            ports.append(int(held.getsockname()[1]))
        return ports
