"""The three jobs of `insync loadtest`: a load of a given shape, the capacity search, and the soak."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from insync.loadtest.errors import LoadTestError
from insync.loadtest.options import UserOptions
from insync.loadtest.report import page
from insync.loadtest.runs.capacity import CapacityShape, Limits
from insync.loadtest.runs.runner import Conductor, Record
from insync.loadtest.runs.shapes import PLANS, PlannedShape, Soak
from insync.loadtest.runs.soak import Growth, judge, warm_up_s
from insync.loadtest.target import Target

__all__ = ["Job", "find_capacity", "load", "soak"]

_SLOWER = 5  # factor by which the frame rate is lowered if the server does not sustain one stream
_SOAK_USERS = {"live": 2, "dub": 1, "twin": 1}
_SOAK_SESSION_S = (15.0, 45.0)
_SOAK_AWAY_S = 20.0
_SOAK_RECONNECT = 0.3
_SOAK_SAMPLES = 720  # maximum over the whole run


@dataclass(frozen=True)
class Job:
    """The parameters that all jobs share.

    Attributes:
        options: options of every user.
        target: the server under test.
        users: number of users of each role; None uses the job's default.
        out: folder of the report.
        processes: number of load processes.
        web_port: port of Locust's web page, or None.
        command: the command line, for the report.
        log: called with each line of progress.
    """

    options: UserOptions
    target: Target
    users: Mapping[str, int] | None
    out: Path
    processes: int = 1
    web_port: int | None = None
    command: str = ""
    log: Callable[[str], None] = lambda line: None

    def conductor(self, users: Mapping[str, int], sample_s: float = 1.0) -> Conductor:
        """Return a conductor for these users."""
        if self.web_port is not None:
            self.log(f"Locust's web page: http://127.0.0.1:{self.web_port}")
        return Conductor(self.options, self.target, users, self.processes, sample_s, self.web_port, self.log)

    def data(self, kind: str, record: Record) -> page.Data:
        """Return the data that the reports of all jobs have in common."""
        return page.gather(kind, record, self.options, self.target, self.command)


def load(job: Job, shape: str, run_time_s: float) -> str:
    """Run a load of a given shape and return how it ended. With a web page and a steady shape, it runs until Ctrl-C."""
    users = job.users or {"live": 1}
    total = sum(users.values())
    endless = job.web_port is not None and shape == "steady"
    planned = None if endless else PlannedShape(PLANS[shape](total, run_time_s))
    record = job.conductor(users).run(planned)
    if endless and record.ended == "interrupted":
        record.ended = "complete"  # Ctrl-C is the normal end of such a run
    page.write(job.out, job.data("load", record))
    return record.ended


def find_capacity(job: Job, limits: Limits) -> str:
    """Add live streams until they miss their deadline, and return how the search ended.

    If the server does not sustain even one stream, a second search uses streams of a fifth of the frame rate.

    Args:
        job: the number of its live users is the first number to try; users of other roles are rejected.
        limits: limits of the search; `first` is taken from the job.

    Raises:
        LoadTestError: an invalid option.
    """
    if job.users is not None and set(job.users) != {"live"}:
        raise LoadTestError(f"--users is {', '.join(job.users)}; with --find-capacity all users must be live")
    if limits.most < 1 or limits.measure_s < 2:
        raise LoadTestError(
            f"--most is {limits.most}, --step is {limits.measure_s:g} s; must be at least 1 and at least 2 s"
        )
    limits = dataclasses.replace(limits, first=job.users["live"] if job.users else 1)
    started_s = time.monotonic()
    record, shape = _search(job, limits)
    data = job.data("capacity", record)
    page.add_search(data, shape, limits, job.options.fps)
    left_s = limits.run_time_s - (time.monotonic() - started_s)
    slower_fps = job.options.fps / _SLOWER
    if record.ended == "complete" and shape.steps and not shape.search.held and left_s > 2 * limits.step_s:
        job.log(f"not one stream is sustained; searching again with streams of {slower_fps:g} frames/s")
        job = dataclasses.replace(job, options=dataclasses.replace(job.options, fps=slower_fps))
        limits = dataclasses.replace(limits, first=1, at_least=_SLOWER, run_time_s=left_s)
        record, shape = _search(job, limits)
        searches = data["searches"]
        data = job.data("capacity", record)
        page.add_search(data, shape, limits, slower_fps, searches)
    page.write(job.out, data)
    return record.ended


def _search(job: Job, limits: Limits) -> tuple[Record, CapacityShape]:
    """Run one capacity search."""
    conductor = job.conductor({"live": 1})
    shape = CapacityShape(limits, conductor.tally, conductor.sampler, job.log)
    return conductor.run(shape), shape


def soak(job: Job, run_time_s: float) -> str:
    """Run a mixed load with clients that connect and leave, and return how it ended. It fails if a resource grows after warm-up."""
    given, default = job.options, UserOptions("", "", "")
    options = dataclasses.replace(
        given,
        session_s=given.session_s if given.session_s != default.session_s else _SOAK_SESSION_S,
        away_s=given.away_s if given.away_s != default.away_s else _SOAK_AWAY_S,
        new_connection=given.new_connection if given.new_connection != default.new_connection else _SOAK_RECONNECT,
    )
    job = dataclasses.replace(job, options=options)
    users = job.users or _SOAK_USERS
    conductor = job.conductor(users, max(1.0, run_time_s / _SOAK_SAMPLES))
    record = conductor.run(PlannedShape(Soak(sum(users.values()), run_time_s)))
    ended_s = record.users[-1][0] if record.users else 0.0
    data = job.data("soak", record)
    start_s = conductor.tally.start_s
    growth: list[Growth] = []
    try:
        growth = judge(record.samples, start_s + warm_up_s(ended_s), start_s + ended_s)
    except LoadTestError as exc:
        record.ended = str(exc) if record.ended == "complete" else record.ended
    grown = [one.name for one in growth if not one.flat]
    if grown and record.ended == "complete":
        record.ended = f"grew after warm-up: {', '.join(grown)}"
    data["ended"] = record.ended
    page.add_growth(data, growth, warm_up_s(ended_s))
    page.write(job.out, data)
    return record.ended
