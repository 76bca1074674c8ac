"""Locust user classes. Each instance starts one simulated user in a load process, and stops it when Locust does.

The load processes send events, which `LoadEnvironment.fire` passes on to Locust: every frame, first frame, registration
and job is a request in Locust's tables, charts and CSVs. A frame that missed its deadline counts as a failed request, as
does a rejected stream. `LoadEvents` has further hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, cast

import gevent

from insync.loadtest import events as kinds
from insync.loadtest.errors import LoadTestError
from insync.loadtest.events import Event
from insync.loadtest.measure.statistics import Tally
from insync.loadtest.runs.shapes import LoadTestShape
from insync.loadtest.workers.pool import Workers

# isort: split
# Must come after the import of shapes, which keeps Locust from patching this process.
from locust import User, task
from locust.env import Environment
from locust.event import EventHook, Events
from locust.exception import StopUser

__all__ = [
    "USERS",
    "BatchDub",
    "DeadlineMissed",
    "LiveStream",
    "LoadEnvironment",
    "Mixed",
    "TwinRegistration",
    "classes",
]

_IDLE_S = 0.5


class DeadlineMissed(LoadTestError):
    """The error of a live frame that missed its deadline."""


class FramesDropped(LoadTestError):
    """The error of frames that a camera's buffer dropped."""


class FramesSkipped(LoadTestError):
    """The error of late frames that a client skipped."""


class FrameRepeated(LoadTestError):
    """The error of a late frame for which a client repeated the previous one."""


class StreamRefused(LoadTestError):
    """The error of a stream that the server rejected because it had no capacity."""


class LoadEvents(Events):
    """Locust's event hooks and those of the load test. The latter are called with `event`.

    Attributes:
        first_frame: the first synced frame of a stream.
        frame: any synced frame.
        deadline_missed: a live frame that missed its deadline.
        frames_dropped: frames that a camera's buffer dropped.
        frames_skipped: late frames that a client skipped.
        frame_repeated: a late frame for which a client repeated the previous one.
        refused: a stream that the server rejected because it had no capacity.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first_frame = EventHook()
        self.frame = EventHook()
        self.deadline_missed = EventHook()
        self.frames_dropped = EventHook()
        self.frames_skipped = EventHook()
        self.frame_repeated = EventHook()
        self.refused = EventHook()


class LoadEnvironment(Environment):
    """Locust's environment, extended by the load processes that run its users.

    Args:
        workers: the load processes.
        tally: collects every event.
        deadline_ms: the deadline, for the error message of a late frame.
        users: weight of each role.
        shape: load shape that sets the number of users; None: the web page sets it.
        host: HOST:PORT of the server, shown on the web page.
    """

    def __init__(
        self,
        workers: Workers,
        tally: Tally,
        deadline_ms: float,
        users: Mapping[str, int],
        shape: LoadTestShape | None = None,
        host: str | None = None,
    ) -> None:
        super().__init__(user_classes=classes(users), shape_class=shape, events=LoadEvents(), host=host)
        self.workers, self.tally = workers, tally
        self._missed = DeadlineMissed(f"later than {deadline_ms:g} ms")

    def fire(self, event: Event) -> None:
        """Report an event to the tally, to Locust and to the listeners of the hooks."""
        self.tally.add(event)
        hooks = cast(LoadEvents, self.events)
        if event.kind == kinds.FRAME:
            self._request(event, exception=self._missed if event.late else None)
            hooks.frame.fire(event=event)
            if event.late:
                hooks.deadline_missed.fire(event=event)
        elif event.kind == kinds.FIRST:
            self._request(event, "first frame")
            hooks.first_frame.fire(event=event)
        elif event.kind in (kinds.REGISTERED, kinds.JOB):
            self._request(event, "registration" if event.kind == kinds.REGISTERED else "job")
        elif event.kind == kinds.DROPPED:
            for _ in range(event.count):
                self._request(event, "dropped", exception=FramesDropped("dropped: the client did not keep up"))
            hooks.frames_dropped.fire(event=event)
        elif event.kind == kinds.SKIPPED:
            for _ in range(event.count):
                self._request(event, "skipped", exception=FramesSkipped("late, skipped by the client"))
            hooks.frames_skipped.fire(event=event)
        elif event.kind == kinds.REPEATED:
            self._request(event, "repeated", exception=FrameRepeated("late, the client repeated the previous frame"))
            hooks.frame_repeated.fire(event=event)
        elif event.kind == kinds.REFUSED:
            self._request(event, "refused", exception=StreamRefused(event.text))
            hooks.refused.fire(event=event)
        elif event.kind in (kinds.ERROR, kinds.ORDER):
            self._request(event, "error", exception=LoadTestError(event.text or "response out of order"))

    def _request(self, event: Event, name: str = "frame", exception: Exception | None = None) -> None:
        """Report an event to Locust as a request."""
        self.events.request.fire(
            request_type=event.role,
            name=name,
            response_time=event.ms,
            response_length=0,
            exception=exception,
            context={},
        )


class InsyncUser(User):
    """The base class of the Locust users. Locust starts and stops it; `SimulatedUser` has its behaviour."""

    abstract = True
    role = ""
    _number = 0  # not started

    def on_start(self) -> None:
        """Start the simulated user in a load process."""
        try:
            self._number = self._load.workers.start(self.role)
        except LoadTestError as exc:  # its load process has died: the conductor detects and reports that
            raise StopUser from exc

    def on_stop(self) -> None:
        """Stop the simulated user, even in the middle of a stream or job."""
        with contextlib.suppress(LoadTestError):  # as above
            self._load.workers.stop(self._number)
        self._load.tally.stopped(self._number)

    @task
    def idle(self) -> None:
        """Sleep: Locust requires a task, but the load process does the work."""
        gevent.sleep(_IDLE_S)

    @property
    def _load(self) -> LoadEnvironment:
        return cast(LoadEnvironment, self.environment)


class LiveStream(InsyncUser):
    """A user that registers once, then streams at the camera's frame rate."""

    role = "live"


class BatchDub(InsyncUser):
    """A user that dubs clips as fast as the server allows."""

    role = "dub"


class TwinRegistration(InsyncUser):
    """A user that registers one person after another."""

    role = "twin"


class Mixed(InsyncUser):
    """A user of one of the other roles at random."""

    role = "mix"


USERS: dict[str, type[InsyncUser]] = {user.role: user for user in (LiveStream, BatchDub, TwinRegistration, Mixed)}


def classes(users: Mapping[str, int]) -> list[type[User]]:
    """Return Locust user classes with these weights. A run with as many users as the weights' sum has exactly that many of each."""
    chosen: list[type[User]] = []
    for role, weight in users.items():
        if weight > 0:
            attributes: dict[str, Any] = {"weight": weight, "__doc__": USERS[role].__doc__}
            chosen.append(cast("type[User]", type(USERS[role].__name__, (USERS[role],), attributes)))
    return chosen
