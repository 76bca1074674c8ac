"""One or several servers behind a client: who is asked, what is sent again after a failure, and when to give up.

Every frame's request can be answered by any server at any time, so a request whose answer got lost is simply sent again:
to the same server after a pause, or at once to the next one. The stream's own order of frames is not touched by that.
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
STALL_S = 3.0  # with requests under way and no answer at all, after which a connection counts as cut
_T = TypeVar("_T")


@dataclass(frozen=True)
class RetryOptions:
    """How long a client holds on.

    Attributes:
        retry_s: seconds without any answer after which a stream gives up; 0 gives up at the first failure.
        overload_s: seconds that a request waits for room on a full server; a live stream's first frame never waits.
    """

    retry_s: float = 30.0
    overload_s: float = 600.0


@dataclass
class Server:
    """One address, and what is known of it."""

    address: str
    triton: TritonConnection | None = None
    failures: int = 0  # in a row
    retry_at_s: float = 0.0  # not to be asked before
    last_answer_s: float = 0.0  # of its last answer, even a refusal
    opened_s: float = 0.0  # the connection
    routes: int = 0  # that lead here

    def answered(self, now_s: float) -> None:
        """It lives."""
        self.last_answer_s, self.failures, self.retry_at_s = now_s, 0, 0.0

    def failed(self, now_s: float, sent_s: float) -> None:
        """It did not answer a request that was sent then: leave it alone for a while, longer each time."""
        if self.retry_at_s > sent_s:
            return  # another request told the same failure before
        backoff_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**self.failures)
        self.failures += 1
        # Spread out, so that all clients of a server that comes back do not come back at once.
        self.retry_at_s = now_s + backoff_s * random.uniform(0.5, 1.0)


@dataclass
class Route:
    """Which server a stream talks to, and how it fares.

    Attributes:
        live: of a paced stream: it is refused at once where no server has room, until it has been let in.
        resent, moved, refused: requests sent again, changes of server, and refusals so far.
    """

    live: bool = False
    server: Server | None = None
    admitted: bool = False
    sent_s: float = 0.0
    trouble_s: float | None = None  # since when nothing has been answered
    pacer: Pacer = field(default_factory=Pacer)
    resent: int = 0
    moved: int = 0
    refused: int = 0


class Servers:
    """The servers of one client. Used by one event loop.

    Args:
        addresses: HOST:PORT each.
        open_channel: makes the connection to one.
        options: how long to hold on.
    """

    def __init__(
        self, addresses: Sequence[str], open_channel: Callable[[str], TritonConnection], options: RetryOptions
    ) -> None:
        self.all = [Server(address) for address in addresses]
        self._open_channel = open_channel
        self._options = options
        self._closed = True

    async def open(self, check: Callable[[TritonConnection, str], Awaitable[None]]) -> None:
        """Opens all connections, and makes sure that one server at least serves.

        Args:
            check: raises InsyncError where a server does not serve.

        Raises:
            InsyncError: what the first one said, where none serves.
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
                server.answered(now_s)
            else:
                server.failed(now_s, now_s)
        if None not in outcomes:
            await self.close()
            raise next(outcome for outcome in outcomes if isinstance(outcome, BaseException))

    async def close(self) -> None:
        """Closes all connections."""
        self._closed = True
        for server in self.all:
            triton, server.triton = server.triton, None
            if triton is not None:
                await triton.close()

    def leave(self, route: Route) -> None:
        """A stream has ended: its server has room for another."""
        self._lead(route, None)

    async def call(
        self,
        request: Callable[[TritonConnection], Awaitable[_T]],
        operation: str,
        route: Route,
    ) -> _T:
        """Call a server until one answers.

        Args:
            request: sends the request over a connection, with its own time limit.
            operation: what for, as in "frame 12".
            route: of the stream.

        Raises:
            InsyncError: the servers' last word, when it is final or patience is at its end.
        """
        refused_since_s: float | None = None
        full: set[str] = set()
        self._still_worth_it(operation, route)
        while True:
            server = await self._next(route)
            triton = server.triton
            if triton is None:
                raise ServerUnavailable(f"{operation}: the client was closed", retryable=False)
            sent_s = route.sent_s = time.monotonic()
            try:
                with mapped_errors(operation, server.address):
                    answer = await _sent(request(triton), f"{operation}: the connection to {server.address} was closed")
            except asyncio.CancelledError:
                await self._given_up(server, triton, route, sent_s)
                raise
            except Overloaded as exc:
                now_s = time.monotonic()
                server.answered(now_s)
                route.trouble_s = None
                route.refused += 1
                full.add(server.address)
                others = [s for s in self.all if s.address not in full and s.retry_at_s <= now_s]
                if others:
                    self._lead(route, min(others, key=lambda s: s.routes))
                    continue
                full.clear()
                refused_since_s = now_s if refused_since_s is None else refused_since_s
                patience_s = self._options.retry_s if route.live else self._options.overload_s
                if (route.live and not route.admitted) or now_s - refused_since_s >= patience_s:
                    raise
                route.pacer.refused(now_s, exc.retry_after_s)
            except (ServerUnavailable, ServerTimeout) as exc:
                now_s = time.monotonic()
                if self._closed or not exc.retryable:
                    raise
                route.trouble_s = sent_s if route.trouble_s is None else route.trouble_s
                server.failed(now_s, sent_s)
                if isinstance(exc, ServerTimeout) and server.last_answer_s < sent_s:
                    await self._reconnect(server, triton)
                if now_s - route.trouble_s >= self._options.retry_s:
                    raise
                route.resent += 1
            except InsyncError:
                server.answered(time.monotonic())
                raise
            else:
                server.answered(time.monotonic())
                route.trouble_s = None
                route.admitted = True
                route.pacer.passed()
                return answer

    def _still_worth_it(self, operation: str, route: Route) -> None:
        """Ends a stream whose requests are all given up before they can fail."""
        now_s = time.monotonic()
        if route.trouble_s is None:
            return
        if now_s - route.sent_s > STALL_S:  # it was the stream that paused: a new chance
            route.trouble_s = None
        elif now_s - route.trouble_s > self._options.retry_s:
            addresses = ", ".join(server.address for server in self.all)
            raise ServerUnavailable(
                f"{operation}: nothing has come from {addresses} for {now_s - route.trouble_s:.0f} s"
            )

    async def _given_up(self, server: Server, triton: TritonConnection, route: Route, sent_s: float) -> None:
        """A stream that cannot wait has cancelled a request. Where nothing at all comes for long, the connection is cut."""
        if server.last_answer_s >= sent_s:
            return
        route.trouble_s = sent_s if route.trouble_s is None else route.trouble_s
        now_s = time.monotonic()
        if server.triton is triton and now_s - max(server.last_answer_s, server.opened_s, route.trouble_s) > STALL_S:
            server.failed(now_s, sent_s)
            await self._reconnect(server, triton)

    async def _next(self, route: Route) -> Server:
        """The route's server as soon as it may be asked; where it has failed, another one."""
        pause_s = route.pacer.slot(time.monotonic()) - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        now_s = time.monotonic()
        server = route.server
        if server is None or server.retry_at_s > now_s:
            better = min(self.all, key=lambda s: (max(0.0, s.retry_at_s - now_s), s.routes))
            if server is None or better.retry_at_s < server.retry_at_s:
                self._lead(route, better)
                server = better
        if server.retry_at_s > now_s:
            await asyncio.sleep(server.retry_at_s - now_s)
        return server

    def _lead(self, route: Route, server: Server | None) -> None:
        if route.server is not None:
            route.server.routes -= 1
            route.moved += server is not None
        route.server = server
        if server is not None:
            server.routes += 1

    async def _reconnect(self, server: Server, old: Any) -> None:
        """A connection that swallows everything is not closed by the kernel for many minutes: take a new one."""
        replaced = server.triton is old and not self._closed
        if replaced:
            self._open(server)
            await old.close()

    def _open(self, server: Server) -> TritonConnection:
        server.triton, server.opened_s = self._open_channel(server.address), time.monotonic()
        return server.triton


async def _sent(request: Awaitable[_T], closed: str) -> _T:
    """Waits for a request. A connection that is closed meanwhile cancels it, which is not to be taken for our own end.

    Raises:
        ServerUnavailable: with the text `closed`.
    """
    task = asyncio.ensure_future(request)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    if task.cancelled():
        raise ServerUnavailable(closed)
    return task.result()
