"""Tests of the simulated users in virtual time: the frames of a paced camera, and the events that its user reports."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import re
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pytest

from insync.client import NotFound, Overloaded, ServerUnavailable, TlsOptions
from insync.loadtest import events
from insync.loadtest.errors import LoadTestError
from insync.loadtest.events import Event
from insync.loadtest.options import UserOptions
from insync.loadtest.users import simulated
from insync.loadtest.users.footage import Footage
from insync.loadtest.users.live_source import CHUNK_SAMPLES, Camera, Microphone, bounced, ready_s

FPS = 25
FRAMES = tuple(np.full((2, 2, 3), k, np.uint8) for k in range(3))
SPEECH = np.arange(1000, dtype=np.float32)
TURNS = 20  # turns of the event loop, after which every task waits for the clock


class VirtualClock:
    """A clock that advances only in `run`."""

    def __init__(self) -> None:
        self._now, self._order = 100.0, itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep_until(self, moment_s: float) -> None:
        if moment_s <= self._now:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (moment_s, next(self._order), future))
        await future

    async def run(self, seconds: float) -> None:
        end_s = self._now + seconds
        for _ in range(100_000):
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if not self._waiting or self._waiting[0][0] > end_s:
                break
            self._now, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
        self._now = end_s


class Server:
    """A fake client and server: a stream takes `delay_s` for each frame, one after another."""

    def __init__(self, clock: VirtualClock, delay_s: float = 0.02) -> None:
        self.clock, self.delay_s = clock, delay_s
        self.registered: list[int] = []
        self.failures: list[Exception] = []
        self.swapped = False
        self.late: tuple[int, ...] = ()  # frames that the client skips, or replaces by the previous one
        self.refusals: list[Exception] = []
        self.requested: list[dict[str, Any]] = []

    def client(self, server: str, tls: TlsOptions | None) -> Server:
        assert (server, tls) == ("server:8001", None)
        return self

    async def __aenter__(self) -> Server:
        if self.failures:
            raise self.failures.pop(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        return None

    async def register(self, frames: Any) -> str:
        self.registered.append(len(frames))
        await self.clock.sleep_until(self.clock.now() + 0.5)
        return "twin"

    async def stream(self, frames: Any, audio: Any, *, twin: str, fps: float, **options: Any) -> AsyncIterator[Any]:
        assert twin == "twin"
        if isinstance(frames, list):
            for k in range(len(frames)):
                await self.clock.sleep_until(self.clock.now() + self.delay_s)
                yield SimpleNamespace(index=k, latency_s=self.delay_s)
            return
        self.requested.append(options)
        if self.refusals:
            raise self.refusals.pop(0)
        held: list[Any] = []
        samples = 0
        async for frame in frames:
            late = round(float(frame.time_s) * fps) in self.late
            if late and options["late"] == "skip":
                options["clock"].skipped += 1
                continue
            while samples < (float(frame.time_s) + 0.12) * 16_000 - 1e-6:
                samples += len(await anext(audio))
            await self.clock.sleep_until(self.clock.now() + self.delay_s)
            held.append(SimpleNamespace(time_s=float(frame.time_s), repeated=late and options["late"] == "repeat"))
            if not self.swapped:
                yield held.pop()
            elif len(held) == 2:
                yield held.pop()
                yield held.pop()


def run_user(
    role: str,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Server], None] = lambda server: None,
    **options: Any,
) -> list[Event]:
    """Run one user for some seconds and return its events."""
    happened: list[Event] = []

    async def run() -> None:
        clock = VirtualClock()
        server = Server(clock)
        change(server)
        monkeypatch.setattr(simulated, "Client", server.client)
        user = simulated.SimulatedUser(
            1, role, UserOptions("server:8001", "v", "a", **options), Footage(FRAMES, SPEECH), happened.append, clock
        )
        task = asyncio.create_task(user.run())
        await clock.run(seconds)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    return happened


def of_kind(happened: list[Event], kind: str) -> list[Event]:
    return [event for event in happened if event.kind == kind]


def test_footage_bounces() -> None:
    assert [bounced(k, 3) for k in range(7)] == [0, 1, 2, 1, 0, 1, 2]
    assert bounced(5, 1) == 0


def test_a_frame_is_ready_when_its_look_ahead_has_been_recorded() -> None:
    assert ready_s(0, 25) == pytest.approx(0.12)
    assert ready_s(1, 25) == pytest.approx(0.16)
    assert ready_s(1, 30) == pytest.approx(0.16)  # 33.3 + 120 ms, and a microphone delivers chunks of 20 ms


def test_camera_and_microphone_keep_time() -> None:
    async def watch() -> None:
        clock = VirtualClock()
        camera = Camera(FRAMES, FPS, clock, clock.now(), length_s=0.2)
        microphone = Microphone(SPEECH, clock, clock.now(), length_s=0.2)
        start_s = clock.now()

        async def filmed() -> list[tuple[float, float]]:
            return [(float(frame.time_s), clock.now() - start_s) async for frame in camera]

        async def recorded() -> list[tuple[float, float]]:
            return [(float(piece[0]), clock.now() - start_s) async for piece in microphone]

        both = asyncio.gather(filmed(), recorded())
        await clock.run(2)
        frames, pieces = await both
        assert frames == [pytest.approx((k / FPS, k / FPS)) for k in range(5)]
        assert len(pieces) == 16  # 0.2 s and the look-ahead
        assert pieces == [pytest.approx((k * CHUNK_SAMPLES % 1000, (k + 1) * 0.02)) for k in range(16)]

    asyncio.run(watch())


def test_a_camera_drops_what_is_older_than_its_buffer() -> None:
    async def watch() -> None:
        clock = VirtualClock()
        camera = Camera(FRAMES, FPS, clock, clock.now(), buffer_s=0.2)
        assert (await anext(camera)).time_s == 0
        await clock.run(1.0)
        assert float((await anext(camera)).time_s) == pytest.approx(0.8)
        assert camera.dropped == 19
        assert camera.answered(0.8) == (20, False)  # frame 0 is the next one in order
        assert camera.answered(0.0) == (0, True)
        assert not camera.outstanding

    asyncio.run(watch())


def test_a_live_stream_is_timed_from_its_complete_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = run_user("live", 3, monkeypatch)
    (registered,) = of_kind(happened, events.REGISTERED)
    assert registered.ms == pytest.approx(500)
    frames = of_kind(happened, events.FRAME)
    assert len(frames) > 50
    assert [event.ms for event in frames] == pytest.approx([20.0] * len(frames), abs=0.01)
    assert not any(event.late for event in frames)
    (first,) = of_kind(happened, events.FIRST)
    assert first.ms == pytest.approx(160)  # opened, 20 ms to the camera's start, the look-ahead, the server
    assert {event.kind for event in happened} == {events.REGISTERED, events.FRAME, events.FIRST}


def test_a_server_that_is_too_slow_costs_deadlines_and_then_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = run_user("live", 12, monkeypatch, lambda server: setattr(server, "delay_s", 0.08), deadline_ms=100)
    frames = of_kind(happened, events.FRAME)
    assert not frames[0].late
    assert frames[-1].late
    dropped = sum(event.count for event in of_kind(happened, events.DROPPED))
    # Half of the frames, except those in the buffer of one second; each frame has a response, is dropped or is in the buffer.
    assert 100 < dropped < 150
    assert abs(len(frames) + dropped - 11.4 * FPS) < 30
    assert not of_kind(happened, events.ORDER)


def test_frames_that_the_client_skips_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    late = (3, 4, 10, 23, 24)  # of 25, including the last two
    happened = run_user(
        "live",
        2,
        monkeypatch,
        lambda server: setattr(server, "late", late),
        late="skip",
        session_s=(1.0, 1.0),
        new_connection=1.0,
    )
    ended = next(k for k, event in enumerate(happened) if event.kind == events.ENDED)
    assert happened[ended].count == 0
    whole = happened[: ended + 1]
    assert sum(event.count for event in of_kind(whole, events.SKIPPED)) == len(late)
    assert len(of_kind(whole, events.FRAME)) == 25 - len(late)
    assert not of_kind(whole, events.ORDER) + of_kind(whole, events.DROPPED)


def test_skipped_frames_are_counted_while_no_responses_come(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = run_user(
        "live", 6, monkeypatch, lambda server: setattr(server, "late", tuple(range(1, 1000))), late="skip"
    )
    assert len(of_kind(happened, events.FRAME)) == 1
    skipped = of_kind(happened, events.SKIPPED)
    assert len(skipped) > 100
    assert all(event.count == 1 for event in skipped)


def test_repeated_frames_do_not_count_as_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = run_user("live", 2, monkeypatch, lambda server: setattr(server, "late", (3, 4, 10)), late="repeat")
    assert len(of_kind(happened, events.REPEATED)) == 3
    assert len(of_kind(happened, events.FRAME)) > 20
    assert not of_kind(happened, events.ORDER)


def test_a_rejected_user_keeps_its_connection_and_retries_after_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [Overloaded("full"), Overloaded("full")]
    refusals[1].retry_after_s = 3.0
    servers: list[Server] = []

    def change(server: Server) -> None:
        server.refusals.extend(refusals)
        servers.append(server)

    happened = run_user("live", 6, monkeypatch, change, deadline_ms=250, late="repeat")
    assert [(event.ms, event.text) for event in of_kind(happened, events.REFUSED)] == [
        (0.0, "Overloaded: full"),
        (3000.0, "Overloaded: full"),
    ]
    assert not of_kind(happened, events.ERROR)
    assert len(of_kind(happened, events.REGISTERED)) == 1
    second, first = of_kind(happened, events.REFUSED)[1], of_kind(happened, events.FIRST)[0]
    assert first.at_s - second.at_s == pytest.approx(3.16)
    assert [(options["deadline_s"], options["late"]) for options in servers[0].requested] == [(0.25, "repeat")] * 3


def test_responses_out_of_order_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = run_user("live", 2, monkeypatch, lambda server: setattr(server, "swapped", True))
    assert of_kind(happened, events.ORDER)


def test_sessions_end_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = run_user("live", 5, monkeypatch, session_s=(1.0, 1.0), new_connection=1.0)
    ended = of_kind(happened, events.ENDED)
    assert len(ended) >= 2
    assert all(event.count == 0 for event in ended)
    assert len(of_kind(happened, events.REGISTERED)) >= 2


def test_a_lost_frame_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # The last of 25 frames has no partner to swap with: this server never returns it.
    happened = run_user(
        "live",
        3,
        monkeypatch,
        lambda server: setattr(server, "swapped", True),
        session_s=(1.0, 1.0),
        new_connection=1.0,
    )
    assert [event.count for event in of_kind(happened, events.ENDED)][:1] == [1]


def test_jobs_and_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = of_kind(run_user("dub", 3, monkeypatch, job_frames=10), events.JOB)
    assert jobs
    assert all(event.count == 10 and event.ms == pytest.approx(200) for event in jobs)
    assert len(of_kind(run_user("twin", 3, monkeypatch), events.REGISTERED)) == 6


def test_a_user_reports_an_error_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "_BACK_OFF_S", (0.0, 0.0))
    failures: list[Exception] = [ServerUnavailable("gone"), NotFound("no such twin")]
    happened = run_user("live", 2, monkeypatch, lambda server: server.failures.extend(failures))
    assert [event.text for event in of_kind(happened, events.ERROR)] == [
        "ServerUnavailable: gone",
        "NotFound: no such twin",
    ]
    assert of_kind(happened, events.FRAME)


def test_events_and_options_survive_encoding() -> None:
    sent = [Event(events.FRAME, 3, "live", 1.5, 20.25, late=True), Event(events.ERROR, 4, "dub", 2.0, text="x\ny")]
    line = events.encode(sent)
    assert line.count(b"\n") == 1
    assert events.decode(line) == sent
    options = UserOptions("s", "v", "a", session_s=(1.0, 2.0), height=270)
    assert UserOptions.from_json(options.to_json()) == options
    options = UserOptions("s", "v", "a", tls=TlsOptions("ca.pem", server_name="insync.test"))
    assert UserOptions.from_json(options.to_json()) == options


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fps": 0}, "fps is 0; must be 0.1 to 240"),
        ({"height": -1}, "height is -1; must be 0 to 4320"),
        ({"late": "never"}, "late is 'never'; must be one of wait, skip, repeat"),
        ({"in_flight": 0}, "in-flight is 0; must be 1 to 256"),
        ({"new_connection": 1.5}, "new-connection is 1.5; must be 0 to 1"),
        ({"session_s": (2.0, 1.0)}, "session is 2 to 1 s; must be at least 0, and the first not above the second"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadTestError, match=re.escape(message)):
        UserOptions("s", "v", "a", **wrong)
