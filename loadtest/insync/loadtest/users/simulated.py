"""One simulated user, which streams, dubs or registers through the client's public interface until it is cancelled."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from insync.client import Client, InsyncError, Overloaded
from insync.client.streaming.pictures import TimedFrame
from insync.client.streaming.timings import StageClock
from insync.loadtest.events import (
    DROPPED,
    ENDED,
    ERROR,
    FIRST,
    FRAME,
    JOB,
    ORDER,
    REFUSED,
    REGISTERED,
    REPEATED,
    SKIPPED,
    Event,
)
from insync.loadtest.options import UserOptions
from insync.loadtest.users.footage import Footage
from insync.loadtest.users.live_source import Camera, Clock, Microphone, WallClock, ready_s

__all__ = ["SimulatedUser"]

MIX = {"live": 6, "dub": 1, "twin": 1}  # weights of the roles that a mixed user may get
_BACK_OFF_S = (0.5, 8.0)  # first and maximum wait after an error
_START_AFTER_S = 0.02  # between opening a stream and its first frame


class SimulatedUser:
    """A user with its own connection.

    Args:
        number: number of the user; seeds its session lengths and pauses.
        role: one of `ROLES`; "mix" draws one of the others.
        options: the user's options.
        footage: the frames and the speech that it sends.
        emit: called with every event.
        clock: the source of time.
    """

    def __init__(
        self,
        number: int,
        role: str,
        options: UserOptions,
        footage: Footage,
        emit: Callable[[Event], None],
        clock: Clock | None = None,
    ) -> None:
        self._number, self._options, self._footage = number, options, footage
        self._send = emit
        self._clock = clock or WallClock()
        self._random = random.Random(f"{options.seed}/{number}")
        self._role = self._random.choices(list(MIX), list(MIX.values()))[0] if role == "mix" else role

    async def run(self) -> None:
        """Run until cancelled. After an error, report it, wait, and start again with a new connection."""
        act = {"live": self._live, "dub": self._dub, "twin": self._register}[self._role]
        wait_s = _BACK_OFF_S[0]
        while True:
            try:
                async with Client(self._options.server, tls=self._options.tls) as client:
                    twin = await self._registered(client)
                    wait_s = _BACK_OFF_S[0]
                    while True:
                        try:
                            await act(client, twin)
                        except Overloaded as exc:  # not an error: keep the connection, and retry after the hint
                            await self._rejected(exc)
                            continue
                        await asyncio.sleep(self._random.uniform(0, self._options.away_s))
                        if self._random.random() < self._options.new_connection:
                            break
            except InsyncError as exc:
                self._emit(ERROR, text=f"{type(exc).__name__}: {exc}")
                await asyncio.sleep(wait_s * self._random.uniform(0.5, 1.0))  # not all of them at once
                wait_s = min(2 * wait_s, _BACK_OFF_S[1])

    async def _rejected(self, exc: Overloaded) -> None:
        """Report a rejection and wait until the retry hint."""
        self._emit(REFUSED, 1000 * (exc.retry_after_s or 0.0), text=f"{type(exc).__name__}: {exc}")
        pause_s = _BACK_OFF_S[0] if exc.retry_after_s is None else exc.retry_after_s
        await self._clock.sleep_until(self._clock.now() + pause_s)

    async def _registered(self, client: Client) -> str:
        """Register the person, report the duration, and return the twin's id."""
        start_s = self._clock.now()
        twin = await client.register(self._footage.registration)
        self._emit(REGISTERED, 1000 * (self._clock.now() - start_s))
        return twin

    async def _register(self, client: Client, twin: str) -> None:
        """Pause, then register the person again: opening the connection has already registered it once."""
        await asyncio.sleep(self._random.uniform(0, self._options.away_s))
        await self._registered(client)

    async def _live(self, client: Client, twin: str) -> None:
        """Run one live stream to its end."""
        options, clock = self._options, self._clock
        shortest, longest = options.session_s
        length_s = self._random.uniform(shortest, longest) if longest else math.inf
        opened_s = clock.now()
        start_s = opened_s + _START_AFTER_S
        camera = Camera(self._footage.frames, options.fps, clock, start_s, length_s, options.buffer_s)
        microphone = Microphone(self._footage.speech, clock, start_s, length_s)
        stages, reported = StageClock(), Counter[str]()

        def report() -> None:
            """Report the frames that the camera dropped or the client skipped since the last call."""
            camera.skip(stages.skipped - reported[SKIPPED])
            for kind, count in ((DROPPED, camera.dropped), (SKIPPED, stages.skipped)):
                if count > reported[kind]:
                    self._emit(kind, count=count - reported[kind])
                    reported[kind] = count

        async def filmed() -> AsyncIterator[TimedFrame]:
            async for frame in camera:
                report()  # also while no responses come
                yield frame

        stream = client.stream(
            filmed(),
            microphone,
            twin=twin,
            fps=options.fps,
            in_flight=options.in_flight,
            audio_rate_hz=16_000,
            deadline_s=options.deadline_ms / 1000,
            late=options.late,
            clock=stages,
        )
        first = True
        try:
            async with aclosing(stream):
                async for synced in stream:
                    now_s = clock.now()
                    report()
                    index, in_order = camera.answered(synced.time_s)
                    ms = 1000 * (now_s - start_s - ready_s(index, options.fps))
                    if first:
                        self._emit(FIRST, 1000 * (now_s - opened_s))
                        first = False
                    if synced.repeated:
                        self._emit(REPEATED)
                    else:
                        self._emit(FRAME, ms, late=ms > options.deadline_ms)
                    if not in_order:
                        self._emit(ORDER)
        finally:
            report()
        self._emit(ENDED, count=len(camera.outstanding))

    async def _dub(self, client: Client, twin: str) -> None:
        """Run one dubbing job."""
        options, footage = self._options, self._footage
        start_s = self._clock.now()
        frames = [footage.frames[k % len(footage.frames)] for k in range(options.job_frames)]
        stream = client.stream(frames, footage.speech, twin=twin, fps=25, in_flight=options.in_flight)
        expected = 0
        async with aclosing(stream):
            async for synced in stream:
                if synced.index == 0:
                    self._emit(FIRST, 1000 * (self._clock.now() - start_s))
                self._emit(FRAME, 1000 * synced.latency_s)
                if synced.index != expected:
                    self._emit(ORDER)
                expected = synced.index + 1
        self._emit(JOB, 1000 * (self._clock.now() - start_s), count=expected)

    def _emit(self, kind: str, ms: float = 0.0, count: int = 1, late: bool = False, text: str = "") -> None:
        self._send(Event(kind, self._number, self._role, self._clock.now(), round(ms, 3), count, late, text))
