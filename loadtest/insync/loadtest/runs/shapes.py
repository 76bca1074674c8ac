"""How many users there are at each moment of a run: plans without a clock of their own, and Locust's shape around them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

# Locust would patch the standard library of this process, its threads and subprocesses too. Nothing here needs that: what
# waits in the conductor waits on gevent's own calls, and the clients run in processes of their own (see `engine`).
os.environ.setdefault("LOCUST_SKIP_MONKEY_PATCH", "1")

from locust import LoadTestShape

__all__ = ["PLANS", "LoadTestShape", "Plan", "PlannedShape", "Ramp", "Soak", "Spike", "Steady"]

SPAWN_RATE = 10.0  # users started per second


class Plan(Protocol):
    """Users over time."""

    def users_at(self, second: float) -> int | None:
        """How many, or None when the run is over."""


@dataclass(frozen=True)
class Steady:
    """The same number all the time; `run_time_s` of infinity never ends."""

    users: int
    run_time_s: float

    def users_at(self, second: float) -> int | None:
        """See `Plan`."""
        return self.users if second < self.run_time_s else None


@dataclass(frozen=True)
class Ramp:
    """From one user to `users` in even steps: towards saturation and, with enough users, past it."""

    users: int
    run_time_s: float

    def users_at(self, second: float) -> int | None:
        """See `Plan`."""
        if second >= self.run_time_s:
            return None
        return 1 + int(max(0.0, second) / self.run_time_s * self.users) if self.users > 1 else self.users


@dataclass(frozen=True)
class Spike:
    """`users`, with four times as many in the middle fifth of the run."""

    users: int
    run_time_s: float

    def users_at(self, second: float) -> int | None:
        """See `Plan`."""
        if second >= self.run_time_s:
            return None
        return 4 * self.users if 0.4 <= second / self.run_time_s < 0.6 else self.users


@dataclass(frozen=True)
class Soak:
    """`users` for long; in the last quarter of every `period_s` one of them is away, so that clients come and go."""

    users: int
    run_time_s: float
    period_s: float = 40.0

    def users_at(self, second: float) -> int | None:
        """See `Plan`."""
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
    """Locust follows a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._plan = plan

    def tick(self) -> tuple[int, float] | None:
        """What Locust asks every second: users and spawn rate, or None to end."""
        users = self._plan.users_at(self.get_run_time())  # type: ignore[no-untyped-call]
        return None if users is None else (users, SPAWN_RATE)
