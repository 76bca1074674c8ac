"""The load process: it runs simulated users on one event loop, reads commands on standard input, and writes events on standard output.

Locust uses gevent; gRPC's asyncio client uses threads and an event loop. Locust patches the standard library's sockets,
threads and locks when it is imported, and a patched process hangs in `grpc.aio`. So no process imports both: the clients
run here, without Locust, and the Locust users only start and stop them. This also keeps the work of Locust's web page out
of the clients' latencies, since it does not share their interpreter lock, and it can use as many cores as there are load
processes.

Standard input has one JSON object per line: {"start": number, "role": role} or {"stop": number}; the process ends with it.
Standard output has at most one line every 100 ms: see `insync.loadtest.events`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from insync.core.errors import InsyncError
from insync.loadtest.events import ERROR, Event, encode
from insync.loadtest.options import UserOptions
from insync.loadtest.users import footage
from insync.loadtest.users.simulated import SimulatedUser

__all__ = ["READY", "Engine", "main"]

READY = b"ready\n"
_FLUSH_S = 0.1


class Engine:
    """The users of one load process.

    Args:
        options: options of every user.
        out: file descriptor that events are written to.
    """

    def __init__(self, options: UserOptions, out: int) -> None:
        self._options = options
        self._footage = footage.load(Path(options.video), Path(options.audio), options.height)
        self._out = out
        self._events: list[Event] = []
        self._users: dict[int, asyncio.Task[None]] = {}

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Execute commands until their stream ends, then cancel every user."""
        os.write(self._out, READY)
        flusher = asyncio.create_task(self._flush())
        try:
            while line := await commands.readline():
                self._execute(json.loads(line))
        finally:
            users = list(self._users.values())
            for task in (*users, flusher):
                task.cancel()
            await asyncio.gather(*users, flusher, return_exceptions=True)

    def _execute(self, command: dict[str, Any]) -> None:
        """Start or stop a user."""
        if "start" in command:
            number = int(command["start"])
            user = SimulatedUser(number, command["role"], self._options, self._footage, self._events.append)
            task = asyncio.create_task(user.run())
            self._users[number] = task
            task.add_done_callback(lambda done: self._ended(number, command["role"], done))
        elif (running := self._users.get(int(command["stop"]))) is not None:
            running.cancel()

    def _ended(self, number: int, role: str, task: asyncio.Task[None]) -> None:
        """Remove a user whose task has ended, and report its exception."""
        self._users.pop(number, None)
        # A user never ends by itself: an exception is a bug in the load test.
        if not task.cancelled() and (exc := task.exception()) is not None:
            now_s = asyncio.get_running_loop().time()
            self._events.append(Event(ERROR, number, role, now_s, text=f"{type(exc).__name__}: {exc}"))

    async def _flush(self) -> None:
        """Write new events every 100 ms."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            if self._events:
                events, self._events[:] = list(self._events), []
                os.write(self._out, encode(events))


async def _serve(options: UserOptions, out: int) -> None:
    """Run the users that the commands on standard input start."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await Engine(options, out).run(reader)


def main() -> int:
    """Run one load process; its only argument is `UserOptions` as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the conductor handles Ctrl-C and closes our standard input
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # so that no print breaks the protocol
    try:
        asyncio.run(_serve(UserOptions.from_json(sys.argv[1]), out))
    except BrokenPipeError:
        return 0  # the conductor has ended
    except InsyncError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
