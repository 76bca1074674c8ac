"""The load process: simulated users on one event loop, told what to do on standard input, telling on standard output.

Locust lives on gevent and gRPC's asyncio client on threads and an event loop of its own. Locust patches the standard
library's sockets, threads and locks when it is imported, and a patched process hangs in `grpc.aio`. So no process has
both: the clients run here, where Locust is never imported, and Locust's users only start and stop them. That also
measures what is to be measured, the clients' own delay, without the web page's work under the same interpreter lock, and
takes as many cores as there are load processes.

Standard input has one JSON object a line: {"start": number, "role": role} or {"stop": number}; its end ends the process.
Standard output has one line every 100 ms at most: see `insync.loadtest.events`.
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
    """Users of one process.

    Args:
        options: of all of them.
        out: file descriptor that events are written to.
    """

    def __init__(self, options: UserOptions, out: int) -> None:
        self._options = options
        self._footage = footage.load(Path(options.video), Path(options.audio), options.height)
        self._out = out
        self._events: list[Event] = []
        self._users: dict[int, asyncio.Task[None]] = {}

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Obeys until the commands end; cancels every user then."""
        os.write(self._out, READY)
        flusher = asyncio.create_task(self._flush())
        try:
            while line := await commands.readline():
                self._obey(json.loads(line))
        finally:
            users = list(self._users.values())
            for task in (*users, flusher):
                task.cancel()
            await asyncio.gather(*users, flusher, return_exceptions=True)

    def _obey(self, command: dict[str, Any]) -> None:
        if "start" in command:
            number = int(command["start"])
            user = SimulatedUser(number, command["role"], self._options, self._footage, self._events.append)
            task = asyncio.create_task(user.run())
            self._users[number] = task
            task.add_done_callback(lambda done: self._ended(number, command["role"], done))
        elif (running := self._users.get(int(command["stop"]))) is not None:
            running.cancel()

    def _ended(self, number: int, role: str, task: asyncio.Task[None]) -> None:
        self._users.pop(number, None)
        if (
            not task.cancelled() and (exc := task.exception()) is not None
        ):  # a user never ends by itself: a fault of ours
            now_s = asyncio.get_running_loop().time()
            self._events.append(Event(ERROR, number, role, now_s, text=f"{type(exc).__name__}: {exc}"))

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            if self._events:
                events, self._events[:] = list(self._events), []
                os.write(self._out, encode(events))


async def _serve(options: UserOptions, out: int) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await Engine(options, out).run(reader)


def main() -> int:
    """Runs one load process; its one argument is `UserOptions` as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the conductor's: it closes our standard input
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whoever prints must not break the protocol
    try:
        asyncio.run(_serve(UserOptions.from_json(sys.argv[1]), out))
    except BrokenPipeError:
        return 0  # the conductor is gone
    except InsyncError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
