"""What hostile requests leave of a server's promised frames per second: all of it, or something is claimed by nobody."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from insync.client import Client, InsyncError, Overloaded
from insync.client.streaming.timings import StageClock
from insync.core.spec import SAMPLE_RATE_HZ
from insync.ensemble.models.admission import LEASE_S

_WAIT_S = 2 * LEASE_S  # streams that fell silent have lost their room by then
_ASK_EVERY_S = 0.25
_STREAM_S = 2.0  # of footage
_DEADLINE_S = 60.0  # how fast the server is, is no matter here


@dataclass(frozen=True)
class AdmissionCheck:
    """A live stream of the whole capacity, when all others have ended.

    Attributes:
        capacity_fps: that the server promises.
        waited_s: until the stream was let in.
        frames: that came of those sent.
        sent: frames.
        refused: requests of the stream, once it was in.
        newcomer: a stream of 1 frame/s beside it was refused, as there was no room left.
        failure: why it got nothing; empty where it did.
    """

    capacity_fps: int
    waited_s: float = 0.0
    frames: int = 0
    sent: int = 0
    refused: int = 0
    newcomer: bool = False
    failure: str = ""

    @property
    def whole(self) -> bool:
        """The stream got everything, and nobody else anything."""
        return not self.failure and 0 < self.sent == self.frames and not self.refused and self.newcomer

    def __str__(self) -> str:
        if self.failure:
            return f"a live stream of all {self.capacity_fps} frames/s got nothing: {self.failure}"
        return (
            f"{self.waited_s:.1f} s after the last request a live stream of all {self.capacity_fps} frames/s was let in, got "
            f"{self.frames} of its {self.sent} frames, {self.refused} requests refused; a newcomer of 1 frame/s beside it was "
            f"{'refused' if self.newcomer else 'let in'}"
        )


def check_admission(server: str, jpeg: bytes, twin: str, capacity_fps: int) -> AdmissionCheck:
    """Asks for the whole capacity until it is free, but not for long.

    A server lets a stream that asks for everything in only if nobody else holds anything.

    Args:
        server: HOST:PORT.
        jpeg: a frame with a face.
        twin: of anybody.
        capacity_fps: of the server; a stream may ask for 240 at most.
    """
    return asyncio.run(_check_admission(server, jpeg, twin, capacity_fps))


async def _check_admission(server: str, jpeg: bytes, twin: str, capacity_fps: int) -> AdmissionCheck:
    started_s = time.monotonic()
    try:
        async with Client(server) as client:
            while True:
                try:
                    return await _whole(client, jpeg, twin, capacity_fps, started_s)
                except Overloaded:
                    if time.monotonic() - started_s > _WAIT_S:
                        raise
                    await asyncio.sleep(_ASK_EVERY_S)
    except InsyncError as exc:
        return AdmissionCheck(capacity_fps, failure=f"{type(exc).__name__}: {exc}")


async def _whole(client: Client, jpeg: bytes, twin: str, capacity_fps: int, started_s: float) -> AdmissionCheck:
    sent = round(_STREAM_S * capacity_fps)
    speech, clock = np.zeros(round(_STREAM_S * SAMPLE_RATE_HZ), np.float32), StageClock()
    frames, waited_s, newcomer = 0, 0.0, False
    stream = client.stream(
        [jpeg] * sent, speech, twin=twin, fps=capacity_fps, in_flight=4, deadline_s=_DEADLINE_S, clock=clock
    )
    async for _ in stream:
        frames += 1
        if frames == 1:
            waited_s = time.monotonic() - started_s
            try:
                async for _ in client.stream([jpeg], speech, twin=twin, fps=1, deadline_s=_DEADLINE_S):
                    pass
            except Overloaded:
                newcomer = True
    return AdmissionCheck(capacity_fps, waited_s, frames, sent, clock.refused, newcomer)
