"""A TCP proxy on loopback that simulates network faults: it delays, stalls, resets and refuses connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

_CHUNK = 65_536
_QUEUED = 1_024  # chunks in flight, at most; when the queue is full, nothing more is read
_T = TypeVar("_T")


class Network:
    """Proxy between a client and a server; a context manager. It runs in a thread of its own.

    Args:
        target: HOST:PORT of the server.

    Attributes:
        address: HOST:PORT for the client.
        delay_s: added to all data, in each direction.
        connections: number of connections made so far.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._refuses = False
        self._port = 0
        self._server: asyncio.Server | None = None
        self.delay_s = 0.0
        self.connections = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Network:
        self._thread.start()
        self._do(self._open)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection and refuse new ones, as when a router reports that its cable is unplugged."""
        self._do(self._cut)

    def stall(self) -> None:
        """Deliver nothing more and report no error, as when a cable is unplugged."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def restore(self) -> None:
        """End all faults; stalled data is delivered."""
        self._do(self._restore)

    def _do(self, operation: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        return asyncio.run_coroutine_threadsafe(operation(), self._loop).result(5)

    async def _open(self) -> None:
        self._flows.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _restore(self) -> None:
        self._refuses = False
        self._flows.set()

    async def _cut(self) -> None:
        self._refuses = True
        for writer in list(self._writers):
            _reset(writer)

    async def _close(self) -> None:
        await self._cut()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            if self._refuses:
                return
            await self._flows.wait()
            there, back = await asyncio.open_connection(*self._target)
            self._writers.add(back)
            try:
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
            finally:
                self._writers.discard(back)
                _reset(back)
        except (OSError, asyncio.CancelledError):
            return  # one end is closed: the other is closed below
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            _reset(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction through a queue, so that all data is delayed by the same time."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED)
        delivery = asyncio.ensure_future(self._deliver(queue, writer))
        try:
            while data := await reader.read(_CHUNK):
                await queue.put((self._loop.time() + self.delay_s, data))
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)
        raise ConnectionResetError  # one end has closed: gather ends the other direction too

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the other end is closed, which its own reader notices
            while True:
                due_s, data = await queue.get()
                await asyncio.sleep(max(0.0, due_s - self._loop.time()))
                await self._flows.wait()
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection at once with a TCP reset."""
    raw = writer.get_extra_info("socket")
    if raw is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
