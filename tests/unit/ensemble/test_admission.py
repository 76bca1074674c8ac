"""Admission in virtual time."""

from __future__ import annotations

import pytest

from insync.core.errors import BadInput, Overloaded, overload_text, retry_hint_s
from insync.core.spec import CANARY
from insync.ensemble.models.admission import LEASE_S, Admission


class Clock:
    """Seconds that pass only when a test advances them."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def wait_s(error: Overloaded) -> float:
    """Return the retry hint, which every refusal must have."""
    assert error.retry_after_s is not None
    return error.retry_after_s


def passes(admission: Admission, stream: str | None, rate: float | None) -> bool:
    try:
        admission.admit(stream, rate)
    except Overloaded:
        return False
    return True


def test_streams_are_admitted_until_the_capacity_is_used(clock: Clock) -> None:
    admission = Admission(50, clock)
    admission.admit("a", 25)
    admission.admit("b", 25)
    with pytest.raises(Overloaded, match=r"2 streams use 50 of its 50 frames/s, this one needs 25") as caught:
        admission.admit("c", 25)
    hints = {wait_s(caught.value)}
    for _ in range(20):
        with pytest.raises(Overloaded) as caught:
            admission.admit("c", 25)
        hints.add(wait_s(caught.value))
    assert len(hints) > 10  # refused streams do not all retry at once
    assert LEASE_S / 2 <= min(hints) <= max(hints) <= LEASE_S
    assert passes(admission, "a", 25)  # an admitted stream stays admitted
    assert admission.leased_fps == 50


def test_the_client_can_read_the_hint_in_the_text(clock: Clock) -> None:
    error = overload_text(Overloaded("full", 1.25))
    assert retry_hint_s(f"in ensemble 'lipsync', {error}") == 1.25
    assert retry_hint_s("Stub process is not healthy") is None


def test_capacity_is_released_after_the_end_or_after_silence(clock: Clock) -> None:
    admission = Admission(25, clock)
    admission.admit("a", 25)
    assert not passes(admission, "b", 25)
    admission.admit("a", 0)
    admission.admit("b", 25)
    clock.now_s += LEASE_S - 0.1
    assert not passes(admission, "c", 25)
    clock.now_s += 0.2
    assert passes(admission, "c", 25)
    assert not passes(admission, "b", 25)  # it was silent for too long, and must request admission again


def test_each_frame_renews_the_lease(clock: Clock) -> None:
    admission = Admission(25, clock)
    for _ in range(20):
        admission.admit("a", 25)
        clock.now_s += LEASE_S / 2
        assert not passes(admission, "b", 25)


def test_an_empty_server_admits_any_one_stream(clock: Clock) -> None:
    admission = Admission(10, clock)
    admission.admit("large", 60)
    assert not passes(admission, "small", 1)


def test_a_rate_is_raised_only_into_free_capacity(clock: Clock) -> None:
    admission = Admission(50, clock)
    admission.admit("a", 20)
    admission.admit("b", 20)
    assert not passes(admission, "a", 40)
    assert admission.leased_fps == 40
    admission.admit("a", 30)
    admission.admit("a", 10)
    admission.admit("c", 20)
    assert admission.leased_fps == 50


def test_a_stream_that_sends_too_fast_is_limited_to_its_rate(clock: Clock) -> None:
    admission = Admission(100, clock)
    sent = admitted = 0
    for _ in range(1000):
        sent += 1
        admitted += passes(admission, "a", 10)
        clock.now_s += 0.01
    assert sent == 1000
    assert 10 * 10 <= admitted <= 1.5 * 10 * 10 + 11
    while passes(admission, "a", 10):
        pass
    with pytest.raises(Overloaded, match="faster than the 10 frames/s") as caught:
        admission.admit("a", 10)
    clock.now_s += wait_s(caught.value)
    assert passes(admission, "a", 10)


def test_a_paced_stream_is_never_refused(clock: Clock) -> None:
    admission = Admission(30, clock)
    for k in range(2000):
        admission.admit("a", 30)
        if k % 10 == 0:
            admission.admit("a", 30)  # the face was searched for again
        clock.now_s += 1 / 30


def test_unpaced_requests_get_what_is_left(clock: Clock) -> None:
    admission = Admission(50, clock)
    assert all(passes(admission, None, None) for _ in range(500))  # there are no live streams
    admitted = 0
    for k in range(2000):
        if k % 4 == 0:
            admission.admit("a", 25)
        admitted += passes(admission, None, None)
        clock.now_s += 0.01
    assert admitted == pytest.approx(25 * 20, abs=4)


def test_unpaced_requests_are_not_starved(clock: Clock) -> None:
    admission = Admission(40, clock)
    admitted = 0
    for _ in range(1000):
        admission.admit("a", 20)
        admission.admit("b", 20)
        admitted += passes(admission, None, None)
        clock.now_s += 0.05
    assert admitted == pytest.approx(2 * 50, abs=4)


def test_the_hint_of_an_unpaced_request_is_right(clock: Clock) -> None:
    admission = Admission(30, clock)
    admission.admit("a", 20)
    while passes(admission, None, None):
        pass
    with pytest.raises(Overloaded, match="live streams leave 10 frames/s") as caught:
        admission.admit(None, None)
    clock.now_s += wait_s(caught.value)
    assert passes(admission, None, None)


def test_probes_get_through_a_full_server_but_cannot_bypass_admission(clock: Clock) -> None:
    admission = Admission(25, clock)
    admission.admit("a", 25)
    assert passes(admission, CANARY, 1)
    assert admission.leased_fps == 25
    assert sum(passes(admission, CANARY, 1) for _ in range(100)) < 10


def test_without_a_limit_nothing_is_refused_or_kept(clock: Clock) -> None:
    admission = Admission(0, clock)
    for k in range(1000):
        admission.admit(f"stream {k}", 200)
        admission.admit(None, None)
    assert admission.leased_fps == 0


@pytest.mark.parametrize(
    ("stream", "rate", "text"),
    [
        (None, 25.0, "RATE was sent without STREAM"),
        ("", 25.0, "STREAM has 0 characters"),
        ("x" * 65, 25.0, "STREAM has 65 characters"),
        ("a", None, "RATE is missing"),
        ("a", -1.0, "RATE is -1"),
        ("a", 0.5, "RATE is 0.5"),
        ("a", 1e9, r"RATE is 1e\+09"),
        ("a", float("nan"), "RATE is nan"),
        ("a", float("inf"), "RATE is inf"),
    ],
)
def test_what_is_not_allowed(clock: Clock, stream: str | None, rate: float | None, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Admission(50, clock).admit(stream, rate)


@pytest.mark.parametrize("capacity", [-1.0, float("nan"), float("inf")])
def test_a_capacity_that_is_none(capacity: float) -> None:
    with pytest.raises(BadInput, match="capacity_fps must be a number of at least 0"):
        Admission(capacity)


def test_a_request_is_admitted_whole_or_not_at_all(clock: Clock) -> None:
    admission = Admission(50, clock)
    admission.admit("a", 10)
    with pytest.raises(Overloaded, match="this one needs 30"):
        admission.admit_all([("b", 20), ("c", 30)])
    with pytest.raises(BadInput, match="RATE is missing"):
        admission.admit_all([("b", 40), ("c", None)])
    assert admission.leased_fps == 10
    admission.admit_all([("b", 20), ("a", 10), ("c", 20), ("b", 20)])
    assert admission.leased_fps == 50
    with pytest.raises(Overloaded):
        admission.admit_all([("a", 10), ("b", 20), ("d", 1)])
    assert admission.leased_fps == 50  # admitted streams stay admitted
