"""The capacity search: the number of live streams grows until too many frames are late, then bisection finds the limit."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from insync.loadtest.measure.resources import Group, Sample, Sampler
from insync.loadtest.measure.statistics import Summary, Tally
from insync.loadtest.measure.triton_metrics import ModelLoad, between
from insync.loadtest.runs.shapes import SPAWN_RATE, LoadTestShape

__all__ = ["CapacityShape", "Limits", "Search", "Step", "Usage", "usage"]


@dataclass(frozen=True)
class Limits:
    """The limits within which a number of streams counts as sustained ("held"), and the durations of the search.

    Attributes:
        p99_ms: maximum 99th percentile of the latency of live frames.
        miss_rate: maximum share of frames that are late or missing, 0 to 1.
        settle_s: pause between the start of the last stream and the measurement.
        measure_s: duration of a measurement.
        start_s: maximum wait for all streams to start; if they take longer, the number is not sustained.
        first: first number of streams to try.
        most: maximum number of streams to try.
        beyond: how many numbers to try above the first that is not sustained, so that the report shows the overload.
        at_least: how many numbers to try if not even one stream is sustained, for the same reason.
        run_time_s: no step starts that could end later than this, counted from the start of the run.
    """

    p99_ms: float = 100.0
    miss_rate: float = 0.01
    settle_s: float = 3.0
    measure_s: float = 8.0
    start_s: float = 15.0
    first: int = 1
    most: int = 256
    beyond: int = 1
    at_least: int = 1
    run_time_s: float = math.inf

    @property
    def step_s(self) -> float:
        """Seconds that one step takes if its streams start at once: events arrive up to a second late."""
        return self.settle_s + self.measure_s + 2


@dataclass(frozen=True)
class Usage:
    """The resource usage of an interval, in cores (1.0 is one core for all of the time) and bytes.

    Attributes:
        server_cores, stubs_cores, clients_cores: processor time per second.
        other_cores: processor time per second of everything else on the machine, the conductor included.
        machine_cpu: share of all cores in use, 0 to 1.
        server_bytes, stubs_bytes, clients_bytes: peak resident memory.
    """

    server_cores: float = 0.0
    stubs_cores: float = 0.0
    clients_cores: float = 0.0
    other_cores: float = 0.0
    machine_cpu: float = 0.0
    server_bytes: int = 0
    stubs_bytes: int = 0
    clients_bytes: int = 0


def usage(samples: Sequence[Sample]) -> Usage:
    """Compute the resource usage between the first and the last sample; zeros for fewer than two samples."""
    if len(samples) < 2:
        return Usage()
    seconds = samples[-1].at_s - samples[0].at_s

    def cores(group: Callable[[Sample], Group]) -> float:
        return max(0.0, group(samples[-1]).cpu_s - group(samples[0]).cpu_s) / seconds

    def memory(group: Callable[[Sample], Group]) -> int:
        return max(group(sample).rss_bytes for sample in samples)

    server, stubs, clients = cores(lambda s: s.server), cores(lambda s: s.stubs), cores(lambda s: s.clients)
    machine_cpu = sum(sample.machine_cpu for sample in samples[1:]) / (len(samples) - 1)
    return Usage(
        server_cores=server,
        stubs_cores=stubs,
        clients_cores=clients,
        other_cores=max(0.0, machine_cpu * (os.cpu_count() or 1) - server - stubs - clients),
        machine_cpu=machine_cpu,
        server_bytes=memory(lambda s: s.server),
        stubs_bytes=memory(lambda s: s.stubs),
        clients_bytes=memory(lambda s: s.clients),
    )


@dataclass(frozen=True)
class Step:
    """One measurement with a number of streams.

    Attributes:
        streams: number of streams.
        started: streams among them that had started when the measurement began.
        held: whether the number is sustained, i.e. within the limits.
        from_s, to_s: seconds of the run that were measured.
        summary: counts and latencies of the frames.
        models: load of each model.
        usage: resource usage.
    """

    streams: int
    started: int
    held: bool
    from_s: float
    to_s: float
    summary: Summary
    models: dict[str, ModelLoad]
    usage: Usage


class Search:
    """The choice of the next number of streams: doubling until a number is not sustained, then bisection.

    A number that is not sustained is measured a second time, because other work on the machine may be the cause; it counts
    as sustained if the second measurement is. Numbers above the first that was not sustained are measured once.

    Args:
        most: maximum number to try.
        beyond: how many numbers to try above the first that was not sustained, for the report's plots.
        first: first number to try.
        at_least: how many numbers to try if not even one stream is sustained; `beyond` then has no effect.
    """

    def __init__(self, most: int, beyond: int = 0, first: int = 1, at_least: int = 1) -> None:
        self._most, self._beyond, self._first, self._at_least = most, beyond, first, at_least
        self._results: dict[int, bool] = {}
        self._repeat: int | None = None  # was not sustained, and is to be measured a second time

    @property
    def held(self) -> int:
        """The largest number that was sustained and is below every number that was not; 0 if there is none."""
        broken = min((count for count, held in self._results.items() if not held), default=self._most + 1)
        return max((count for count, held in self._results.items() if held and count < broken), default=0)

    def next(self) -> int | None:
        """Return the next number to try, or None at the end of the search."""
        if self._repeat is not None:
            return self._repeat
        if not self._results:
            return min(self._first, self._most)
        largest = max(self._results)
        broken = [count for count, held in self._results.items() if not held]
        if not broken:
            return None if largest >= self._most else min(self._most, 2 * largest)
        past = sum(count > min(broken) for count in self._results)
        more = past < self._beyond if self.held else min(broken) == 1 and len(self._results) < self._at_least
        if more and largest < self._most:
            return min(self._most, max(largest + 1, largest * 3 // 2))
        low, high = self.held, min(broken)
        if high - low <= max(1, high // 20):
            return None
        return (low + high) // 2

    def tried(self, count: int, held: bool) -> None:
        """Record the result of a measurement."""
        beyond = any(broken < count for broken, good in self._results.items() if not good)
        if not held and not beyond and count != self._repeat:
            self._repeat = count
            return
        self._repeat = None
        self._results[count] = held


class CapacityShape(LoadTestShape):
    """Locust's load shape for the capacity search.

    Args:
        limits: limits of the search.
        tally, sampler: the run's events and samples.
        log: called with a line about each step.

    Attributes:
        steps: the measurements so far.
        search: the search and its results.
        cut: whether the run time ended before the search did.
    """

    def __init__(
        self, limits: Limits, tally: Tally, sampler: Sampler, log: Callable[[str], None] = lambda line: None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.search = Search(limits.most, limits.beyond, limits.first, limits.at_least)
        self.cut = False
        self._limits, self._tally, self._sampler, self._log = limits, tally, sampler, log
        self._streams = self.search.next()
        self._begun_s = 0.0  # when Locust got this number; 0: not yet
        self._measure_from_s = 0.0  # 0: streams are still starting

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users and the spawn rate, or None to end; Locust calls this every second."""
        now_s = time.monotonic() - self._tally.start_s
        if self._streams is None:
            return None
        if not self._begun_s:
            self._begun_s, self._measure_from_s = now_s, 0.0
        elif not self._measure_from_s:
            all_there = len(self._tally.streaming) >= self._streams
            if all_there or now_s - self._begun_s > self._limits.start_s:
                self._measure_from_s = now_s + (self._limits.settle_s if all_there else 0.0)
        elif now_s >= self._measure_from_s + self._limits.measure_s + 1:  # events arrive up to 0.1 s late
            self._conclude(self._streams)
            self._streams, self._begun_s = self.search.next(), 0.0
            if self._streams is not None and now_s + self._limits.step_s > self._limits.run_time_s:
                self._streams, self.cut = None, True
            return self.tick()
        return self._streams, SPAWN_RATE

    def _conclude(self, streams: int) -> None:
        """Record and log the measurement that has just ended."""
        limits = self._limits
        from_s = float(int(self._measure_from_s))
        to_s = from_s + int(limits.measure_s)
        summary = self._tally.window(from_s, to_s)
        started = min(streams, len(self._tally.streaming))
        held = started == streams and summary.p99_ms <= limits.p99_ms and summary.miss_rate <= limits.miss_rate
        samples = self._sampler.between(self._tally.start_s + from_s, self._tally.start_s + to_s)
        models = between(samples[0].models, samples[-1].models, samples[-1].at_s - samples[0].at_s) if samples else {}
        self.search.tried(streams, held)
        self.steps.append(Step(streams, started, held, from_s, to_s, summary, models, usage(samples)))
        self._log(
            f"{streams} streams: {'sustained' if held else 'not sustained'}; {summary.fps:.1f} frames/s, "
            + (f"p50 {summary.p50_ms:.0f} ms, p99 {summary.p99_ms:.0f} ms, " if summary.frames else "")
            + f"late or missing {100 * summary.miss_rate:.1f} %"
            + (f", {summary.refused} rejections" if summary.refused else "")
        )
