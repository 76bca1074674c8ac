"""The conductor's side of the load processes: it starts and stops users in them, and collects their events."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections import deque
from types import TracebackType
from typing import Any

from insync.loadtest.errors import LoadTestError
from insync.loadtest.events import Event, decode
from insync.loadtest.options import ROLES, UserOptions
from insync.loadtest.workers.worker import READY

__all__ = ["Workers"]

_END_TIMEOUT_S = 5.0
MAX_WAITING = 1_000_000  # events that wait for `drain`; beyond that, the oldest are lost


class _Worker:
    """One load process."""

    def __init__(self, options: UserOptions, events: deque[Event]) -> None:
        self.users: set[int] = set()
        self.ready = threading.Event()  # set also when it has ended
        self.ended = threading.Event()
        self._events = events
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process runs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "insync.loadtest.workers.worker", options.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that only the conductor receives Ctrl-C
        )
        self._reader = threading.Thread(target=self._read, name="insync-load-events", daemon=True)
        self._reader.start()

    def send(self, command: dict[str, Any]) -> None:
        """Send a command to the process."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, OSError) as exc:
            raise LoadTestError(f"a load process died: {self.reason()}") from exc

    def reason(self) -> str:
        """Return the last line that the process wrote on standard error, or its exit code."""
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {self.process.poll()}"

    def close(self) -> None:
        """End the process; kill it if it does not end in time."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(_END_TIMEOUT_S)
        self._errors.close()

    def _read(self) -> None:
        """Read the process's events until it ends."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line == READY:
                    self.ready.set()
                elif line.endswith(b"\n"):  # the last line of a killed process may be incomplete
                    self._events.extend(decode(line))
        self.ended.set()
        self.ready.set()


class Workers:
    """The load processes, as a context manager. A new user goes to the process with the fewest users.

    Args:
        options: options of every user.
        processes: number of load processes; one is enough for a few dozen live streams.

    Raises:
        LoadTestError: a process could not start, for example because the footage cannot be read.
    """

    def __init__(self, options: UserOptions, processes: int = 1) -> None:
        if not 1 <= processes <= 64:
            raise LoadTestError(f"processes is {processes}; must be 1 to 64")
        self._events: deque[Event] = deque(maxlen=MAX_WAITING)
        self._workers = [_Worker(options, self._events) for _ in range(processes)]
        self._next = 0
        try:
            for worker in self._workers:
                worker.ready.wait(60)
            self.check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the load processes."""
        return [worker.process.pid for worker in self._workers]

    def start(self, role: str) -> int:
        """Start a user and return its number."""
        if role not in ROLES:
            raise LoadTestError(f"the role of a user is {role!r}; must be one of {', '.join(ROLES)}")
        worker = min(self._workers, key=lambda w: len(w.users))
        self._next += 1
        worker.send({"start": self._next, "role": role})
        worker.users.add(self._next)
        return self._next

    def stop(self, user: int) -> None:
        """Stop a user; do nothing if there is no user of this number."""
        for worker in self._workers:
            if user in worker.users:
                worker.users.discard(user)
                worker.send({"stop": user})

    def drain(self) -> list[Event]:
        """Return the events received since the last call, in order."""
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def check(self) -> None:
        """Raise LoadTestError if a load process has ended."""
        for worker in self._workers:
            if worker.ended.is_set() or worker.process.poll() is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):  # its output ends shortly before the process does
                    worker.process.wait(_END_TIMEOUT_S)
                raise LoadTestError(f"a load process died: {worker.reason()}")

    def close(self) -> None:
        """Stop all users and end all processes."""
        for worker in self._workers:
            worker.close()
