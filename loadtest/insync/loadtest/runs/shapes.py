"""The number of users over time: plans, which are pure functions of time, and the Locust load shape that follows one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

# Without this, Locust would monkey-patch the standard library of this process, threads and subprocesses included. That is
# not needed: the conductor waits with gevent's own calls, and the clients run in separate processes (see `workers.worker`).
os.environ.setdefault("LOCUST_SKIP_MONKEY_PATCH", "1")

from locust import LoadTestShape

__all__ = ["PLANS", "LoadTestShape", "Plan", "PlannedShape", "Ramp", "Soak", "Spike", "Steady"]

SPAWN_RATE = 10.0  # users started per second


class Plan(Protocol):
    """The number of users over time."""

    def users_at(self, second: float) -> int | None:
        """Return the number of users at a second of the run, or None when the run is over."""


@dataclass(frozen=True)
class Steady:
    """A constant number of users; with a `run_time_s` of infinity it never ends."""

    users: int
    run_time_s: float

    def users_at(self, second: float) -> int | None:
        """Return the number of users; see `Plan`."""
        return self.users if second < self.run_time_s else None


@dataclass(frozen=True)
class Ramp:
    """A growth from one user to `users` in equal steps, towards saturation and, with enough users, beyond it."""

    users: int
    run_time_s: float

    def users_at(self, second: float) -> int | None:
        """Return the number of users; see `Plan`."""
        if second >= self.run_time_s:
            return None
        return 1 + int(max(0.0, second) / self.run_time_s * self.users) if self.users > 1 else self.users


@dataclass(frozen=True)
class Spike:
    """A constant number of users, with four times as many in the middle fifth of the run."""

    users: int
    run_time_s: float

    def users_at(self, second: float) -> int | None:
        """Return the number of users; see `Plan`."""
        if second >= self.run_time_s:
            return None
        return 4 * self.users if 0.4 <= second / self.run_time_s < 0.6 else self.users


@dataclass(frozen=True)
class Soak:
    """A constant number of users, one of whom is stopped for the last quarter of every `period_s`, so that clients connect and leave."""

    users: int
    run_time_s: float
    period_s: float = 40.0

    def users_at(self, second: float) -> int | None:
        """Return the number of users; see `Plan`."""
        if second >= self.run_time_s:
            return None
        away = self.users > 1 and second % self.period_s >= 0.75 * self.period_s
        return self.users - 1 if away else self.users


PLANS: dict[str, type[Steady] | type[Ramp] | type[Spike] | type[Soak]] = {
    "steady": Steady,
    "ramp": Ramp,
    "spike": Spike,
    "soak": Soak,
}


class PlannedShape(LoadTestShape):
    """The Locust load shape that follows a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._plan = plan

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users and the spawn rate, or None to end; Locust calls this every second."""
        users = self._plan.users_at(self.get_run_time())  # type: ignore[no-untyped-call]
        return None if users is None else (users, SPAWN_RATE)
