"""Tests of the capacity search, the load shapes, the summaries of events and of Triton's metrics, and the soak's verdict."""

from __future__ import annotations

import math
import mmap
import os
import random
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest

from insync.loadtest import events
from insync.loadtest.errors import LoadTestError
from insync.loadtest.events import Event
from insync.loadtest.measure import resources, triton_metrics
from insync.loadtest.measure.resources import Group, Sample
from insync.loadtest.measure.statistics import Tally, percentile
from insync.loadtest.runs import capacity, shapes, soak
from insync.loadtest.runs.capacity import CapacityShape, Limits, Search

PAGE = """\
# TYPE nv_inference_count counter
nv_inference_count{model="face",version="1"} 8
nv_inference_count{model="face",version="2"} 4
nv_inference_exec_count{model="face",version="1"} 6
nv_inference_request_success{model="face",version="1"} 10
nv_inference_request_failure{model="face",reason="OTHER",version="1"} 2
nv_inference_queue_duration_us{model="face",version="1"} 30000
nv_inference_compute_infer_duration_us{model="face",version="1"} 50000
nv_inference_compute_input_duration_us{model="face",version="1"} 10000
nv_inference_request_duration_us{model="face",version="1"} 100000
nv_cpu_utilization 0.5
"""


@pytest.mark.parametrize("first", [1, 5, 300])
@pytest.mark.parametrize("most", [1, 7, 256])
@pytest.mark.parametrize("truth", [0, 1, 2, 3, 7, 31, 200, 1000])
def test_the_search_finds_the_limit(truth: int, most: int, first: int) -> None:
    search = Search(most, beyond=1, first=first)
    tried = 0
    while (count := search.next()) is not None:
        assert 1 <= count <= most
        search.tried(count, count <= truth)
        tried += 1
        assert tried < 30
    found, right = search.held, min(truth, most)
    assert found <= right
    assert right - found <= max(1, right // 20) - (right < 40)  # exact to one stream, or to 5 %


def test_the_search_also_measures_overload() -> None:
    search = Search(256, beyond=1)
    tried = []
    while (count := search.next()) is not None:
        tried.append(count)
        search.tried(count, count <= 5)
    assert tried == [1, 2, 4, 8, 8, 12, 6, 6, 5]  # 8 and 6 are measured twice; 12 is for the plots only
    nothing = Search(256, beyond=1)
    for _ in range(2):
        nothing.tried(cast(int, nothing.next()), False)
    assert nothing.next() is None
    assert nothing.held == 0
    some = Search(256, beyond=1, at_least=4)
    for count in (1, 1, 2, 3, 4):
        assert some.next() == count
        some.tried(count, False)
    assert some.next() is None


def test_one_noisy_measurement_does_not_end_the_search() -> None:
    noisy = {2, 3, 5}
    search = Search(256, beyond=1)
    tried = []
    while (count := search.next()) is not None:
        tried.append(count)
        search.tried(count, count <= 3 and not (count in noisy and tried.count(count) == 1))
    assert tried == [1, 2, 2, 4, 4, 6, 3, 3]
    assert search.held == 3
    unfinished = Search(256)
    unfinished.tried(1, True)
    unfinished.tried(2, False)  # and no time is left to measure it again
    assert unfinished.held == 1


def test_a_number_sustained_above_one_that_was_not_does_not_count() -> None:
    search = Search(256)
    for count, held in ((2, True), (4, False), (4, False), (8, True)):
        search.tried(count, held)
    assert search.held == 2


def _follow(monkeypatch: pytest.MonkeyPatch, limits: Limits, truth: int, begin: bool = True) -> CapacityShape:
    """Play Locust's part: call the shape every second, and run as many streams as it returns."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(capacity, "time", SimpleNamespace(monotonic=lambda: clock.now))
    tally = Tally(clock.now)
    shape = CapacityShape(limits, tally, resources.Sampler(resources.Watched()))
    for _ in range(2000):
        tick = shape.tick()
        if tick is None:
            return shape
        users = tick[0]
        tally.streaming = set(range(users)) if begin else set()
        for k in range(users):
            tally.add(
                Event(events.FRAME, k, "live", clock.now + 0.5, 30.0 if users <= truth else 400.0, late=users > truth)
            )
        clock.now += 1.0
    raise AssertionError("the search does not end")


def test_locust_follows_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = _follow(monkeypatch, Limits(), truth=2)
    assert [(step.streams, step.held) for step in shape.steps] == [
        (1, True),
        (2, True),
        (4, False),
        (4, False),
        (6, False),
        (3, False),
        (3, False),
    ]
    assert shape.search.held == 2
    assert not shape.cut
    for step in shape.steps:
        assert step.to_s - step.from_s == Limits().measure_s == step.summary.seconds
        assert step.summary.frames == step.streams * Limits().measure_s
        assert step.summary.miss_rate == (0 if step.held else 1)


def test_the_search_keeps_its_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(run_time_s=60)
    shape = _follow(monkeypatch, limits, truth=1000)
    assert shape.cut
    assert 60 - 2 * limits.step_s < shape.steps[-1].to_s <= 60
    assert shape.search.held == shape.steps[-1].streams


def test_streams_that_do_not_start_are_not_sustained(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = _follow(monkeypatch, Limits(), truth=1000, begin=False)
    assert [(step.started, step.held) for step in shape.steps] == [(0, False)] * 2


def test_users_over_time() -> None:
    for plan in (shapes.Steady(4, 50), shapes.Ramp(4, 50), shapes.Spike(4, 50), shapes.Soak(4, 50)):
        assert plan.users_at(50) is None
    assert [shapes.Ramp(4, 40).users_at(s) for s in (0, 9.9, 10, 39.9)] == [1, 1, 2, 4]
    assert [shapes.Spike(4, 50).users_at(s) for s in (0, 19, 20, 29, 30)] == [4, 4, 16, 16, 4]
    assert [shapes.Soak(4, 500).users_at(s) for s in (0, 29, 30, 39, 40)] == [4, 4, 3, 3, 4]
    assert shapes.Soak(1, 500).users_at(35) == 1
    assert shapes.Steady(4, math.inf).users_at(1e9) == 4


def test_percentile_is_the_nearest_rank() -> None:
    values = [random.Random(k).random() for k in range(101)]
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        expected = min(v for v in values if sum(w <= v for w in values) >= share * len(values))
        assert percentile(values, share) == expected
    assert math.isnan(percentile([], 0.5))


def test_a_window_has_whole_seconds_only() -> None:
    tally = Tally(10.0)
    for second in range(10):
        for k in range(4):
            slow = second >= 5
            tally.add(Event(events.FRAME, 1, "live", 10 + second + k / 4, 200.0 if slow else 20.0, late=slow))
    tally.add(Event(events.DROPPED, 1, "live", 19.5, count=6))
    tally.add(Event(events.FRAME, 2, "dub", 12.0, 5.0))
    window = tally.window(2.5, 5)
    assert (window.frames, window.seconds, window.fps) == (8, 2.0, 4.0)
    assert (window.p99_ms, window.miss_rate) == (20.0, 0.0)
    late = tally.window(8, 10)
    assert late.miss_rate == (8 + 6) / (8 + 6)
    assert tally.window().dubbed == 1
    assert tally.window(90, 95).miss_rate == 1.0
    assert [second for second, _ in tally.timeline(4)] == [0, 4, 8]


def test_skipped_repeated_and_rejected_count() -> None:
    tally = Tally(0.0)
    for k in range(4):
        tally.add(Event(events.FRAME, 1, "live", k / 4, 20.0))
    tally.add(Event(events.FIRST, 1, "live", 0.1, 160.0))
    tally.add(Event(events.SKIPPED, 1, "live", 0.5, count=3))
    tally.add(Event(events.REPEATED, 1, "live", 0.5))
    tally.add(Event(events.REFUSED, 2, "live", 0.5, 3000.0, text="full"))
    tally.add(Event(events.REFUSED, 1, "live", 0.5, text="full"))
    one = tally.window(0, 1)
    assert (one.frames, one.skipped, one.repeated, one.late, one.miss_rate) == (4, 3, 1, 4, 0.5)
    assert (one.refused, one.hinted, one.hint_p50_ms, one.hint_max_ms) == (2, 1, 3000.0, 3000.0)
    assert one.errors == 0
    assert one.p99_ms == 20.0  # of the frames with a response
    assert not tally.streaming


def test_the_tally_tracks_running_streams_and_masks_digits() -> None:
    tally = Tally(0.0)
    for user in (1, 2, 3):
        tally.add(Event(events.FIRST, user, "live", 0.5, 160.0))
    tally.add(Event(events.ENDED, 1, "live", 1.5, count=2))
    tally.add(Event(events.ERROR, 2, "live", 1.5, text="lost 17 of 250"))
    tally.stopped(3)
    assert not tally.streaming
    for k in range(500):
        tally.add(Event(events.ERROR, 2, "dub", 2.5, text="x" * k))
    assert tally.errors["lost ## of ###"] == 1
    assert len(tally.errors) <= 51
    assert tally.window().errors == 501
    assert tally.window().lost == 2


def test_metrics_between_two_readings() -> None:
    page = triton_metrics.parse(PAGE)
    assert set(page) == {"face"}
    load = triton_metrics.between({}, page, 5.0)["face"]
    assert (load.requests_per_s, load.failures, load.batch) == (2.0, 2, 2.0)
    assert (load.queue_ms, load.compute_ms, load.request_ms) == (3.0, 6.0, 10.0)
    assert not triton_metrics.between(page, page, 5.0)  # idle
    again = triton_metrics.parse(PAGE.replace(" 10\n", " 3\n"))  # the server has restarted
    assert triton_metrics.between(page, again, 1.0)["face"].requests_per_s == 3.0
    assert triton_metrics.scrape("127.0.0.1:9") is None


def test_metrics_labels_may_hold_any_text() -> None:
    page = triton_metrics.parse('nv_inference_count{version="1",model="a } \\"b\\" \\\\ , c"} 8\n')
    assert page == {'a } "b" \\ , c': triton_metrics.Counters(inferences=8.0)}
    with pytest.raises(ValueError, match="html"):
        triton_metrics.parse("<html>not found</html>\n")


def samples(values: Sequence[float], **fixed: Any) -> list[Sample]:
    """Return one sample a second with this much memory of the server, in MiB."""
    return [
        Sample(float(k), Group(1, int(mib * 2**20), handles=50, threads=9), Group(), Group(), 0, 0, 0.5, **fixed)
        for k, mib in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("grows", "flat"), [(lambda k: 500.0, True), (lambda k: 500 + 0.1 * k, True), (lambda k: 500 + 0.5 * k, False)]
)
def test_growth_is_judged_after_warm_up(grows: Any, flat: bool) -> None:
    noise = random.Random(1)
    values = [grows(k) + noise.uniform(-5, 5) + (300 if k == 70 else 0) for k in range(200)]
    values[:50] = list(np.linspace(100, 500, 50))
    verdict = {one.name: one for one in soak.judge(samples(values), 50, 200)}
    assert verdict[soak.SERVER_MEMORY].flat == flat
    assert verdict["server and models, file handles"].flat
    assert "clients, memory" not in verdict  # there are no clients


def test_counts_may_grow_by_two() -> None:
    few = samples([500.0] * 100)
    more = [
        Sample(s.at_s, Group(1, 500 * 2**20, handles=50 + (s.at_s > 80) * extra), Group(), Group(), 0, 0, 0.5)
        for extra in (2, 6)
        for s in few
    ]
    verdicts = [{one.name: one.flat for one in soak.judge(part, 20, 100)} for part in (more[:100], more[100:])]
    assert [verdict["server and models, file handles"] for verdict in verdicts] == [True, False]
    with pytest.raises(LoadTestError, match="too few"):
        soak.judge(few[:3], 0, 100)


def test_warm_up() -> None:
    assert [soak.warm_up_s(s) for s in (10, 40, 60, 480, 3600, 36_000)] == [5, 20, 20, 120, 600, 600]


def test_usage_of_an_interval() -> None:
    two = [
        Sample(0.0, Group(cpu_s=1.0), Group(cpu_s=5.0), Group(rss_bytes=7), 0, 0, 0.9),
        Sample(4.0, Group(cpu_s=3.0), Group(cpu_s=6.0), Group(rss_bytes=5), 0, 0, 0.5),
    ]
    used = capacity.usage(two)
    assert (used.server_cores, used.stubs_cores, used.clients_bytes, used.machine_cpu) == (0.5, 0.25, 7, 0.5)
    assert used.other_cores == pytest.approx(max(0.0, 0.5 * (os.cpu_count() or 1) - 0.75))
    assert capacity.usage(two[:1]) == capacity.Usage()


def test_a_process_is_measured() -> None:
    group = resources.measure(psutil.Process())
    assert group.processes == 1
    assert group.rss_bytes > 10 * 2**20
    with mmap.mmap(-1, 8 * 2**20) as shared:  # anonymous shared memory
        shared.write(bytes(8 * 2**20))
        grown = resources.measure(psutil.Process())
    assert grown.shared_bytes - group.shared_bytes >= 8 * 2**20
    assert group.handles > 2
    assert resources.server_groups(None) == (Group(), Group())
    assert resources.shared_memory("no-such-prefix-") == (0, 0)
    with resources.Sampler(resources.Watched(clients=lambda: [os.getpid()]), 0.1) as sampler:
        for _ in range(100):
            if len(sampler.samples) >= 2:
                break
            time.sleep(0.05)
    assert sampler.samples[-1].clients.processes == 1
