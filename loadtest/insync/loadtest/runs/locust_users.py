"""Locust's users: each starts one simulated user in a load process, and stops it when Locust says so.

What happens there comes back as events, which `LoadEnvironment.fire` turns into Locust's: every frame, first frame,
registration and job is a request of its own in Locust's tables, charts and CSVs, and a frame that missed its deadline is a
failed one, as is a refused stream. Hooks of our own besides: see `LoadEvents`.
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
# After shapes, which keeps Locust from patching this process.
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

_STAY_S = 0.5


class DeadlineMissed(LoadTestError):
    """A live frame came too late."""


class FramesDropped(LoadTestError):
    """A camera had to throw frames away."""


class FramesSkipped(LoadTestError):
    """A client left late frames out."""


class FrameRepeated(LoadTestError):
    """A client gave a frame again in place of a late one."""


class StreamRefused(LoadTestError):
    """The server had no room."""


class LoadEvents(Events):
    """Locust's events and our own.

    Attributes:
        first_frame: a live stream's first synced frame; called with `event`.
        frame: any synced frame.
        deadline_missed: a live frame that came too late.
        frames_dropped: a camera had to throw frames away.
        frames_skipped: a client left late frames out.
        frame_repeated: a client gave a frame again in place of a late one.
        refused: the server had no room.
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
    """Locust's environment, with the load processes that its users live in.

    Args:
        workers: the load processes.
        tally: takes every event.
        deadline_ms: for the words of a missed deadline.
        shape: says how many users there are; None: whoever sits at the web page does.
        users: shares of the roles.
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
        """Tells Locust, its listeners and the tally what happened."""
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
                self._request(event, "dropped", exception=FramesDropped("the client did not keep up"))
            hooks.frames_dropped.fire(event=event)
        elif event.kind == kinds.SKIPPED:
            for _ in range(event.count):
                self._request(event, "skipped", exception=FramesSkipped("late, and left out by the client"))
            hooks.frames_skipped.fire(event=event)
        elif event.kind == kinds.REPEATED:
            self._request(event, "repeated", exception=FrameRepeated("late, and the one before was given again"))
            hooks.frame_repeated.fire(event=event)
        elif event.kind == kinds.REFUSED:
            self._request(event, "refused", exception=StreamRefused(event.text))
            hooks.refused.fire(event=event)
        elif event.kind in (kinds.ERROR, kinds.ORDER):
            self._request(event, "error", exception=LoadTestError(event.text or "a frame came out of order"))

    def _request(self, event: Event, name: str = "frame", exception: Exception | None = None) -> None:
        self.events.request.fire(
            request_type=event.role,
            name=name,
            response_time=event.ms,
            response_length=0,
            exception=exception,
            context={},
        )


class InsyncUser(User):
    """A user of some role. Locust decides when it comes and goes; what it does is `SimulatedUser`'s."""

    abstract = True
    role = ""
    _number = 0  # nobody's

    def on_start(self) -> None:
        """Comes."""
        try:
            self._number = self._load.workers.start(self.role)
        except LoadTestError as exc:  # its load process has died: the conductor finds that out and says it
            raise StopUser from exc

    def on_stop(self) -> None:
        """Goes, in the middle of whatever it does."""
        with contextlib.suppress(LoadTestError):  # as above
            self._load.workers.stop(self._number)
        self._load.tally.left(self._number)

    @task
    def stay(self) -> None:
        """Locust's users must do something; everything happens in the load process."""
        gevent.sleep(_STAY_S)

    @property
    def _load(self) -> LoadEnvironment:
        return cast(LoadEnvironment, self.environment)


class LiveStream(InsyncUser):
    """Registers once, then streams at the camera's pace."""

    role = "live"


class BatchDub(InsyncUser):
    """Dubs clips as fast as the server allows."""

    role = "dub"


class TwinRegistration(InsyncUser):
    """Registers persons one after the other."""

    role = "twin"


class Mixed(InsyncUser):
    """One of the others by lot."""

    role = "mix"


USERS: dict[str, type[InsyncUser]] = {user.role: user for user in (LiveStream, BatchDub, TwinRegistration, Mixed)}


def classes(users: Mapping[str, int]) -> list[type[User]]:
    """Locust user classes with these weights; where a run's users are as many as the weights' sum, exactly so many each."""
    chosen: list[type[User]] = []
    for role, weight in users.items():
        if weight > 0:
            attributes: dict[str, Any] = {"weight": weight, "__doc__": USERS[role].__doc__}
            chosen.append(cast("type[User]", type(USERS[role].__name__, (USERS[role],), attributes)))
    return chosen
