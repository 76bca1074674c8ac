"""Connections that send malformed requests and return the outcome of each, and the state of the server's processes."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from tritonclient.grpc import service_pb2_grpc

from benchmarks.fuzzing.messages import Call, Http, Infer, Raw, Tcp
from insync.core.errors import retry_hint_s

NO_CAPACITY = "no capacity"  # the code of a full server's refusal, over any protocol
TIMEOUT_S = 30.0  # a request without a response for so long hangs
_LINGER_S = 0.05  # how long a plain TCP connection waits for data of the server
_LIMIT = 64 * 2**20
_SERVICE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True)
class Outcome:
    """Outcome of a request.

    Attributes:
        code: "OK", a gRPC status, "HTTP 400" and the like, NO_CAPACITY, "left" if the client closed or cancelled first, "closed"
            if the server did, "lost" if responses of a stream are missing, "hung", "dead".
        text: the error's message.
    """

    code: str
    text: str = ""


class Connection:
    """Connections of one sender to a server. Not thread-safe.

    Args:
        grpc_url, http_url: HOST:PORT.
    """

    def __init__(self, grpc_url: str, http_url: str) -> None:
        self._urls = {"grpc": grpc_url, "http": http_url}
        sizes = [("grpc.max_send_message_length", _LIMIT), ("grpc.max_receive_message_length", _LIMIT)]
        self._channel = grpc.insecure_channel(grpc_url, sizes)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()

    def send(self, call: Call) -> Outcome:
        """Send one request and return its outcome."""
        outcome = self._sent(call)
        return Outcome(NO_CAPACITY, outcome.text) if retry_hint_s(outcome.text) is not None else outcome

    def _sent(self, call: Call) -> Outcome:
        try:
            if isinstance(call, Infer):
                return self._stream(call) if call.stream else self._infer(call)
            if isinstance(call, Raw):
                self._channel.unary_unary(_SERVICE + call.method)(call.data, timeout=TIMEOUT_S)
                return Outcome("OK")
            return self._http(call) if isinstance(call, Http) else self._tcp(call)
        except grpc.RpcError as exc:
            if not isinstance(exc, grpc.Call):
                raise
            code = exc.code().name
            return Outcome("hung" if code == "DEADLINE_EXCEEDED" else code, exc.details() or "")
        except TimeoutError:
            return Outcome("hung")
        except ConnectionRefusedError:
            return Outcome("dead", "the server's port is closed")

    def _infer(self, call: Infer) -> Outcome:
        if call.cancel_after_s is None:
            self.stub.ModelInfer(call.request, timeout=TIMEOUT_S)
            return Outcome("OK")
        future = self.stub.ModelInfer.future(call.request, timeout=TIMEOUT_S)
        time.sleep(call.cancel_after_s)
        future.cancel()
        return Outcome("left")

    def _stream(self, call: Infer) -> Outcome:
        replies: Any = self.stub.ModelStreamInfer(iter([call.request] * call.stream), timeout=TIMEOUT_S)
        if call.cancel_after_s is not None:
            time.sleep(call.cancel_after_s)
            replies.cancel()
            return Outcome("left")
        errors = [reply.error_message for reply in replies]
        if len(errors) != call.stream:
            return Outcome("lost", f"{len(errors)} responses to {call.stream} requests")
        return Outcome("stream: refused" if any(errors) else "OK", next(filter(None, errors), ""))

    def _http(self, call: Http) -> Outcome:
        connection = http.client.HTTPConnection(self._urls["http"], timeout=TIMEOUT_S)
        try:
            connection.request(call.method, call.path, call.body, call.headers)
            answer = connection.getresponse()
            return Outcome(
                "OK" if answer.status == 200 else f"HTTP {answer.status}", answer.read(500).decode("utf-8", "replace")
            )
        except ConnectionRefusedError:
            raise
        except (http.client.HTTPException, ConnectionError) as exc:
            return Outcome("closed", type(exc).__name__)
        finally:
            connection.close()

    def _tcp(self, call: Tcp) -> Outcome:
        host, _, port = self._urls[call.port].rpartition(":")
        with socket.create_connection((host, int(port)), TIMEOUT_S) as line:
            try:
                line.sendall(call.data)
                line.settimeout(_LINGER_S)
                while line.recv(65_536):
                    pass
                return Outcome("closed")
            except TimeoutError:
                return Outcome("left")
            except ConnectionError:
                return Outcome("closed")


@dataclass(frozen=True)
class Health:
    """The server's processes at one moment.

    Attributes:
        pids: of the server and its models.
        memory_mb: resident, of the server, and of its models together.
        files: open file descriptors of all.
        threads: of all.
        shared: regions of shared memory.
    """

    pids: frozenset[int]
    memory_mb: tuple[float, float]
    files: int
    threads: int
    shared: int


def health(pid: int | None, shared_memory_prefix: str) -> Health:
    """Return the state of a server's processes; a server that died has none."""
    if pid is None:
        return Health(frozenset(), (0, 0), 0, 0, 0)
    server = psutil.Process(pid)
    models = [child for child in server.children(recursive=True) if _alive(child)]
    return Health(
        frozenset(process.pid for process in (server, *models)),
        (server.memory_info().rss / 1e6, sum(model.memory_info().rss for model in models) / 1e6),
        sum(process.num_fds() for process in (server, *models)),
        sum(process.num_threads() for process in (server, *models)),
        sum(1 for _ in Path("/dev/shm").glob(f"{shared_memory_prefix}*")),
    )


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.contextmanager
def connected(grpc_url: str, http_url: str) -> Iterator[Connection]:
    """Open the connections of one sender, and close them at the end."""
    connection = Connection(grpc_url, http_url)
    try:
        yield connection
    finally:
        connection.close()
