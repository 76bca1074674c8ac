"""A live stream as an application runs it: frames paced at their rate, one stream, each frame timed on its own."""

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
from insync.core.spec import SAMPLE_RATE_HZ

FPS = 25
IN_FLIGHT = 4
HELD = 75  # decoded frames kept in memory, shown forwards and backwards in turns
_FIRST_S = 1.0  # of the stream, which is not counted: the face is looked for, memory is fetched


@dataclass(frozen=True)
class Live:
    """What one stream got.

    Attributes:
        frames: counted.
        p50_ms, p99_ms: from a frame's due time to its finished picture.
        late: share of the frames that took longer than the time between two.
        fps: finished frames per second.
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
    samples = _samples(speech)
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
            # A frame that the stream was not ready to read yet has waited since it was due: that counts.
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


def _samples(speech: Path) -> NDArray[np.float32]:
    """The whole of a sound at 16 kHz, mono: float32 [N]."""
    with av.open(str(speech)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate(parts)
