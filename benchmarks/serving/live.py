"""Latency of one live stream, as an application runs it: frames sent at their rate, each frame timed on its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from insync.client import Client
from insync.client.media.audio_reader import AudioFile

FPS = 25
IN_FLIGHT = 4
HELD = 75  # decoded frames kept in memory, sent forwards and backwards in turns
_FIRST_S = 1.0  # at the start of the stream, which is not counted: the face is searched, memory is allocated


@dataclass(frozen=True)
class Live:
    """Result of one stream.

    Attributes:
        frames: number of counted frames.
        p50_ms, p99_ms: latency from a frame's due time to its synced picture.
        late: share of the frames whose latency is longer than the time between two frames.
        fps: synced frames per second.
    """

    frames: int
    p50_ms: float
    p99_ms: float
    late: float
    fps: float


def stream(clip: Path, speech: Path, server: str, seconds: float) -> Live:
    """Run one stream of RGB frames against a server, with the twin registered from the clip's first frames."""
    return asyncio.run(_stream(clip, speech, server, seconds))


async def _stream(clip: Path, speech: Path, server: str, seconds: float) -> Live:
    with av.open(str(clip)) as container:
        decoded = itertools.islice(container.decode(video=0), HELD)
        forwards = [frame.to_ndarray(format="rgb24") for frame in decoded]
    shown = [*forwards, *forwards[-2:0:-1]]
    samples = np.concatenate(list(AudioFile(speech).speech()))
    due: list[float] = []

    async def frames() -> AsyncIterator[NDArray[np.uint8]]:
        start = time.perf_counter()
        for index in range(round((seconds + _FIRST_S) * FPS)):
            due.append(start + index / FPS)
            await asyncio.sleep(max(0.0, due[-1] - time.perf_counter()))
            yield shown[index % len(shown)]

    took: list[float] = []
    ended: list[float] = []
    async with Client(server) as client:
        twin = await client.register(forwards[::5])
        async for synced in client.stream(frames(), samples, twin=twin, fps=FPS, in_flight=IN_FLIGHT):
            ended.append(time.perf_counter())
            # A frame that the stream did not read when it was due has waited since: that counts as latency.
            took.append(1000 * (ended[-1] - due[synced.index]))
    first = round(_FIRST_S * FPS)
    counted = np.array(took[first:])
    return Live(
        len(counted),
        float(np.percentile(counted, 50)),
        float(np.percentile(counted, 99)),
        float(np.mean(counted > 1000 / FPS)),
        (len(counted) - 1) / (ended[-1] - ended[first]),
    )
