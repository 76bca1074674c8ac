"""One run: Locust's runner, the load processes, the sampler and, optionally, Locust's web page."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType

import gevent

from insync.loadtest.errors import LoadTestError
from insync.loadtest.measure.resources import Sample, Sampler, Watched
from insync.loadtest.measure.statistics import Summary, Tally
from insync.loadtest.options import UserOptions
from insync.loadtest.runs.locust_users import LoadEnvironment
from insync.loadtest.runs.shapes import LoadTestShape
from insync.loadtest.target import Target
from insync.loadtest.workers.pool import Workers

# isort: split
from locust.runners import STATE_STOPPED
from locust.stats import stats_history

__all__ = ["Conductor", "Record"]

_DRAIN_S = 0.1
_PROGRESS_S = 1
_SETTLE_S = 3.0  # between the last user's stop and the final sample, so that resources freed late do not count
WEB_HOST = "127.0.0.1"


@dataclass
class Record:
    """The results of a run.

    Attributes:
        tally: all events, by the second.
        samples: samples of the machine; the first one before any user starts, the last one after all have stopped.
        users: (second, number of users) at every change.
        ended: "complete", "interrupted", or the reason of a failure.
    """

    tally: Tally
    samples: list[Sample] = field(default_factory=list)
    users: list[tuple[float, int]] = field(default_factory=list)
    ended: str = "complete"

    def seconds(self, sample: Sample) -> float:
        """Return a sample's time, in seconds since the start of the run."""
        return sample.at_s - self.tally.start_s


class Conductor:
    """The process that controls a run: it drives Locust and the load processes, and collects events and samples.

    Args:
        options: options of every user.
        target: the server under test.
        users: weight of each role.
        processes: number of load processes.
        sample_s: seconds between two samples of the machine.
        web_port: port of Locust's web page on this machine; None: no page.
        log: called with a line of progress every second.

    Attributes:
        tally: collects the events of the run.
        sampler: collects the samples of the run.
    """

    def __init__(
        self,
        options: UserOptions,
        target: Target,
        users: Mapping[str, int],
        processes: int = 1,
        sample_s: float = 1.0,
        web_port: int | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._options, self._target, self._users = options, target, users
        self._processes, self._web_port, self._log = processes, web_port, log
        self._workers: Workers | None = None
        self.tally = Tally(time.monotonic())
        self.sampler = Sampler(
            Watched(target.pid, target.shared_memory_prefix, target.metrics, lambda: self._pids()), sample_s
        )

    def run(self, shape: LoadTestShape | None) -> Record:
        """Run until the shape ends, Ctrl-C, or a failure; without a shape until Ctrl-C.

        Raises:
            LoadTestError: the run could not start. A later failure is in the record's `ended`, so that its data are kept.
        """
        with Workers(self._options, self._processes) as self._workers, _stop_signals() as stopped:
            self.tally.start_s = time.monotonic()
            record = Record(self.tally)
            first = self.sampler.take()
            environment = LoadEnvironment(
                self._workers,
                self.tally,
                self._options.deadline_ms,
                self._users,
                shape,
                self._target.server,
            )
            with self.sampler:
                try:
                    self._drive(environment, record, stopped)
                except LoadTestError as exc:
                    record.ended = str(exc)
                if stopped:
                    record.ended = "interrupted"
                time.sleep(_SETTLE_S)
            record.samples = [first, *self.sampler.samples, self.sampler.take()]
            return record

    def _drive(self, environment: LoadEnvironment, record: Record, stopped: list[int]) -> None:
        """Run Locust and pass on events until the run ends."""
        assert self._workers is not None
        runner = environment.create_local_runner()
        page = environment.create_web_ui(WEB_HOST, self._web_port) if self._web_port is not None else None
        history = gevent.spawn(stats_history, runner) if page is not None else None
        if environment.shape_class is not None:
            runner.start_shape()
        elif page is not None:
            runner.start(sum(self._users.values()), 1)
        logged_s, count = 0, -1
        try:
            while not stopped:
                gevent.sleep(_DRAIN_S)
                for event in self._workers.drain():
                    environment.fire(event)
                self._workers.check()
                self._target.check()
                second = time.monotonic() - self.tally.start_s
                if runner.user_count != count:
                    count = runner.user_count
                    record.users.append((round(second, 1), count))
                if second >= logged_s + _PROGRESS_S:
                    logged_s = int(second)
                    self._log(progress(second, count, self.tally.window(logged_s - 5, logged_s)))
                if page is None and runner.state == STATE_STOPPED:
                    break
        finally:
            with contextlib.suppress(LoadTestError):  # a load process that has died has no users to stop
                runner.quit()
            if page is not None:
                page.stop()
            if history is not None:
                history.kill()
            for event in self._workers.drain():
                environment.fire(event)
            record.users.append((round(time.monotonic() - self.tally.start_s, 1), 0))

    def _pids(self) -> list[int]:
        return self._workers.pids if self._workers is not None else []


def progress(second: float, users: int, last: Summary) -> str:
    """Format the current state as one line of progress."""
    parts = [f"{int(second) // 60}:{int(second) % 60:02d}", f"{users} users"]
    if last.frames or last.late:
        parts.append(
            f"live {last.fps:.1f} frames/s, p50 {last.p50_ms:.0f} ms, p99 {last.p99_ms:.0f} ms, "
            f"late or missing {100 * last.miss_rate:.1f} %"
        )
    if last.dubbed:
        parts.append(f"dubbing {last.dubbed / last.seconds:.1f} frames/s")
    if last.registrations:
        parts.append(f"{last.registrations} registrations")
    if last.refused:
        parts.append(f"{last.refused} rejections")
    if last.errors:
        parts.append(f"{last.errors} errors")
    return ", ".join(parts)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield a list that receives the signal's number at the first Ctrl-C or SIGTERM; a second one ends the program as usual."""
    got: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        got.append(number)
        for again in before:
            signal.signal(again, signal.default_int_handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
