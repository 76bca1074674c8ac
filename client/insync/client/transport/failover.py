"""Failover between the servers of a client: which server gets a request, which requests are sent again, and when to give up.

Any server can process any frame's request at any time, so a request whose response was lost is simply sent again: to the same
server after a pause, or at once to the next one. This does not change the order of the stream's frames.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from insync.client.transport.errors import mapped_errors
from insync.client.transport.pacing import Pacer
from insync.client.transport.triton import TritonConnection
from insync.core.errors import InsyncError, Overloaded, ServerTimeout, ServerUnavailable

__all__ = ["RetryOptions", "Route", "Server", "Servers"]

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 1.0
STALL_S = 3.0  # seconds without any response to requests in flight after which a connection counts as broken
_T = TypeVar("_T")


@dataclass(frozen=True)
class RetryOptions:
    """How long a client retries.

    Attributes:
        retry_s: seconds without any response after which a stream gives up; 0 gives up at the first failure.
        overload_s: seconds for which a request waits for capacity on an overloaded server; a live stream's first frame
            never waits.
    """

    retry_s: float = 30.0
    overload_s: float = 600.0


@dataclass
class Server:
    """One server and its state."""

    address: str
    triton: TritonConnection | None = None
    failures: int = 0  # in a row
    retry_at_s: float = 0.0  # send nothing before
    last_response_s: float = 0.0  # of its last response, including refusals
    opened_s: float = 0.0  # when the connection was opened
    routes: int = 0  # number of routes to this server

    def responded(self, now_s: float) -> None:
        """Record a response: the server is alive."""
        self.last_response_s, self.failures, self.retry_at_s = now_s, 0, 0.0

    def failed(self, now_s: float, sent_s: float) -> None:
        """Record a failed request that was sent at `sent_s`; back off, longer after each failure in a row."""
        if self.retry_at_s > sent_s:
            return  # the same failure was already recorded for another request
        backoff_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**self.failures)
        self.failures += 1
        # Random, so that the clients of a recovered server do not all reconnect at once.
        self.retry_at_s = now_s + backoff_s * random.uniform(0.5, 1.0)


@dataclass
class Route:
    """The server that a stream uses, and the stream's counters.

    Attributes:
        live: whether this is a live stream. Until it is admitted, it fails at once if no server has capacity.
        resent, moved, refused: numbers of requests sent again, changes of server, and refusals so far.
    """

    live: bool = False
    server: Server | None = None
    admitted: bool = False
    sent_s: float = 0.0
    failing_since_s: float | None = None  # when the first request was sent since which there has been no response
    pacer: Pacer = field(default_factory=Pacer)
    resent: int = 0
    moved: int = 0
    refused: int = 0


class Servers:
    """The servers of one client. Used by one event loop.

    Args:
        addresses: HOST:PORT each.
        open_channel: makes the connection to an address.
        options: how long to retry.
    """

    def __init__(
        self, addresses: Sequence[str], open_channel: Callable[[str], TritonConnection], options: RetryOptions
    ) -> None:
        self.all = [Server(address) for address in addresses]
        self._open_channel = open_channel
        self._options = options
        self._closed = True

    async def open(self, check: Callable[[TritonConnection, str], Awaitable[None]]) -> None:
        """Open all connections, and check that at least one server is ready.

        Args:
            check: raises InsyncError if a server is not ready.

        Raises:
            InsyncError: the first server's error, if none is ready.
        """
        self._closed = False
        checks = [check(self._open(server), server.address) for server in self.all]
        try:
            outcomes = await asyncio.gather(*checks, return_exceptions=True)
        except BaseException:
            await self.close()
            raise
        now_s = time.monotonic()
        for server, outcome in zip(self.all, outcomes, strict=True):
            if outcome is None:
                server.responded(now_s)
            else:
                server.failed(now_s, now_s)
        if None not in outcomes:
            await self.close()
            raise next(outcome for outcome in outcomes if isinstance(outcome, BaseException))

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        for server in self.all:
            triton, server.triton = server.triton, None
            if triton is not None:
                await triton.close()

    def release(self, route: Route) -> None:
        """Release the server of a stream that has ended."""
        self._assign(route, None)

    async def call(
        self,
        request: Callable[[TritonConnection], Awaitable[_T]],
        operation: str,
        route: Route,
    ) -> _T:
        """Send a request until a server responds.

        Args:
            request: sends the request over a connection, with its own time limit.
            operation: the operation, such as "frame 12", for messages.
            route: route of the stream.

        Raises:
            InsyncError: the servers' last error, if it cannot be retried or the time for retries is over.
        """
        refused_since_s: float | None = None
        full: set[str] = set()
        self._check_failing(operation, route)
        while True:
            server = await self._choose(route)
            triton = server.triton
            if triton is None:
                raise ServerUnavailable(f"{operation}: the client was closed", retryable=False)
            sent_s = route.sent_s = time.monotonic()
            try:
                with mapped_errors(operation, server.address):
                    response = await _response(
                        request(triton), f"{operation}: the connection to {server.address} was closed"
                    )
            except asyncio.CancelledError:
                await self._cancelled(server, triton, route, sent_s)
                raise
            except Overloaded as exc:
                now_s = time.monotonic()
                server.responded(now_s)
                route.failing_since_s = None
                route.refused += 1
                full.add(server.address)
                others = [s for s in self.all if s.address not in full and s.retry_at_s <= now_s]
                if others:
                    self._assign(route, min(others, key=lambda s: s.routes))
                    continue
                full.clear()
                refused_since_s = now_s if refused_since_s is None else refused_since_s
                limit_s = self._options.retry_s if route.live else self._options.overload_s
                if (route.live and not route.admitted) or now_s - refused_since_s >= limit_s:
                    raise
                route.pacer.refused(now_s, exc.retry_after_s)
            except (ServerUnavailable, ServerTimeout) as exc:
                now_s = time.monotonic()
                if self._closed or not exc.retryable:
                    raise
                route.failing_since_s = sent_s if route.failing_since_s is None else route.failing_since_s
                server.failed(now_s, sent_s)
                if isinstance(exc, ServerTimeout) and server.last_response_s < sent_s:
                    await self._reconnect(server, triton)
                if now_s - route.failing_since_s >= self._options.retry_s:
                    raise
                route.resent += 1
            except InsyncError:
                server.responded(time.monotonic())
                raise
            else:
                server.responded(time.monotonic())
                route.failing_since_s = None
                route.admitted = True
                route.pacer.passed()
                return response

    def _check_failing(self, operation: str, route: Route) -> None:
        """Fail a stream without responses for too long, whose requests are all cancelled before they can fail."""
        now_s = time.monotonic()
        if route.failing_since_s is None:
            return
        if now_s - route.sent_s > STALL_S:  # the stream itself has paused: start over
            route.failing_since_s = None
        elif now_s - route.failing_since_s > self._options.retry_s:
            addresses = ", ".join(server.address for server in self.all)
            raise ServerUnavailable(
                f"{operation}: no response from {addresses} for {now_s - route.failing_since_s:.0f} s"
            )

    async def _cancelled(self, server: Server, triton: TritonConnection, route: Route, sent_s: float) -> None:
        """Record a request that a live stream cancelled. After `STALL_S` without any response, replace the connection."""
        if server.last_response_s >= sent_s:
            return
        route.failing_since_s = sent_s if route.failing_since_s is None else route.failing_since_s
        now_s = time.monotonic()
        if (
            server.triton is triton
            and now_s - max(server.last_response_s, server.opened_s, route.failing_since_s) > STALL_S
        ):
            server.failed(now_s, sent_s)
            await self._reconnect(server, triton)

    async def _choose(self, route: Route) -> Server:
        """Return the route's server, or another one if it has failed, once a request may be sent to it."""
        pause_s = route.pacer.slot(time.monotonic()) - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        now_s = time.monotonic()
        server = route.server
        if server is None or server.retry_at_s > now_s:
            better = min(self.all, key=lambda s: (max(0.0, s.retry_at_s - now_s), s.routes))
            if server is None or better.retry_at_s < server.retry_at_s:
                self._assign(route, better)
                server = better
        if server.retry_at_s > now_s:
            await asyncio.sleep(server.retry_at_s - now_s)
        return server

    def _assign(self, route: Route, server: Server | None) -> None:
        """Make a server the route's one; None: the route has ended."""
        if route.server is not None:
            route.server.routes -= 1
            route.moved += server is not None
        route.server = server
        if server is not None:
            server.routes += 1

    async def _reconnect(self, server: Server, old: Any) -> None:
        """Replace a connection. One whose packets are all dropped is closed by the kernel only after many minutes."""
        replaced = server.triton is old and not self._closed
        if replaced:
            self._open(server)
            await old.close()

    def _open(self, server: Server) -> TritonConnection:
        server.triton, server.opened_s = self._open_channel(server.address), time.monotonic()
        return server.triton


async def _response(request: Awaitable[_T], closed: str) -> _T:
    """Wait for a request's response. Closing the connection cancels the request: tell that apart from being cancelled.

    Raises:
        ServerUnavailable: the connection was closed; with the text `closed`.
    """
    task = asyncio.ensure_future(request)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    if task.cancelled():
        raise ServerUnavailable(closed)
    return task.result()
