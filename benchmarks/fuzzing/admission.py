"""Check after fuzzing that the server's whole capacity is free: otherwise malformed requests still hold part of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from insync.client import Client, InsyncError, Overloaded
from insync.client.streaming.timings import StageClock
from insync.core.spec import SAMPLE_RATE_HZ
from insync.ensemble.models.admission import LEASE_S

_WAIT_S = 2 * LEASE_S  # the capacity of streams that went silent is released by then
_RETRY_EVERY_S = 0.25
_STREAM_S = 2.0  # of footage
_DEADLINE_S = 60.0  # the server's speed does not matter here


@dataclass(frozen=True)
class AdmissionCheck:
    """Result of one live stream that requests the whole capacity, after all others have ended.

    Attributes:
        capacity_fps: the server's capacity.
        waited_s: seconds until the stream was admitted.
        frames: frames received.
        sent: frames sent.
        refused: requests of the stream that were refused after it was admitted.
        newcomer: whether a second stream of 1 frame/s was refused, as no capacity was left.
        failure: why the stream was not admitted; empty if it was.
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
        """Whether the stream received all its frames, and a second stream was refused."""
        return not self.failure and 0 < self.sent == self.frames and not self.refused and self.newcomer

    def __str__(self) -> str:
        if self.failure:
            return f"a live stream of all {self.capacity_fps} frames/s failed: {self.failure}"
        return (
            f"{self.waited_s:.1f} s after the last request a live stream of all {self.capacity_fps} frames/s was admitted, received "
            f"{self.frames} of its {self.sent} frames, {self.refused} requests refused; a second stream of 1 frame/s was "
            f"{'refused' if self.newcomer else 'admitted'}"
        )


def check_admission(server: str, jpeg: bytes, twin: str, capacity_fps: int) -> AdmissionCheck:
    """Request the whole capacity until it is free, or for a few seconds.

    A server admits a stream that requests the whole capacity only if no other stream holds any of it.

    Args:
        server: HOST:PORT.
        jpeg: a frame with a face.
        twin: any registered id.
        capacity_fps: of the server; a stream may request at most 240.
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
                    await asyncio.sleep(_RETRY_EVERY_S)
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
