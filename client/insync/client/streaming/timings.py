"""Time of each stage of a stream, per frame."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["StageClock", "Stages"]


@dataclass(frozen=True)
class Stages:
    """Times of a stream's stages, as means over its frames in milliseconds of wall time, and its counters.

    Stages overlap: their sum can exceed `frame_ms`.

    Attributes:
        frames: number of frames that the means are over.
        wall_s: seconds since the clock was made or restarted.
        decode_ms: reading and decoding the source's frame; waiting for a live source counts.
        prepare_ms: cutting the region out and encoding it as a JPEG.
        server_ms: from sending a request to its response, including its wait in the server's queue.
        paste_ms: placing and blending the patch.
        encode_ms: encoding and muxing, when files are dubbed.
        client_cpu_ms: CPU time of the client's process, all threads.
        requests: requests sent for frames; more than `frames` if a second picture of a frame had to be sent.
        sent_bytes: total length of all pictures sent.
        late, skipped, repeated: number of a live stream's frames that missed the deadline; how many of them were left out;
            how many of them were replaced by the previous frame.
        resent, moved, refused: number of requests sent again after a failure, of changes of server, and of requests that an
            overloaded server refused.
    """

    frames: int
    wall_s: float
    decode_ms: float
    prepare_ms: float
    server_ms: float
    paste_ms: float
    encode_ms: float
    client_cpu_ms: float
    requests: int
    sent_bytes: int
    late: int = 0
    skipped: int = 0
    repeated: int = 0
    resent: int = 0
    moved: int = 0
    refused: int = 0

    @property
    def fps(self) -> float:
        """Frames per second of wall time."""
        return self.frames / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def totals_s(self) -> dict[str, float]:
        """Wall seconds of each stage over all frames."""
        means = {
            "decode": self.decode_ms,
            "prepare": self.prepare_ms,
            "server": self.server_ms,
            "paste": self.paste_ms,
            "encode": self.encode_ms,
        }
        return {stage: mean * self.frames / 1000 for stage, mean in means.items()}

    @property
    def frame_ms(self) -> float:
        """Mean milliseconds from one finished frame to the next."""
        return 1000 * self.wall_s / max(1, self.frames)


class StageClock:
    """Collects the time of each stage of one stream, for `Client.stream(clock=...)`. Thread-safe.

    ::

        clock = StageClock()
        async for synced in client.stream(frames, audio, twin=twin, clock=clock):
            frames += 1
        print(clock.stages(frames).server_ms)

    Attributes:
        requests, sent_bytes: as in `Stages`, so far.
        late, skipped, repeated: as in `Stages`, so far.
        resent, moved, refused: as in `Stages`; set when the stream ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}
        self._start = time.perf_counter()
        self._cpu = _cpu_s()
        self.requests = 0
        self.sent_bytes = 0
        self.late = self.skipped = self.repeated = 0
        self.resent = self.moved = self.refused = 0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's wall time to a stage: "decode", "prepare", "server", "paste" or "encode"."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        with self._lock:
            self._sums[stage] = self._sums.get(stage, 0.0) + seconds

    def restart(self) -> None:
        """Restart the measurement of wall and CPU time; the stages' sums and the counters stay."""
        self._start, self._cpu = time.perf_counter(), _cpu_s()

    def stages(self, frames: int) -> Stages:
        """Return the means so far over a number of frames, and the counters."""
        with self._lock:
            mean = {stage: 1000 * seconds / max(1, frames) for stage, seconds in self._sums.items()}
        return Stages(
            frames=frames,
            wall_s=time.perf_counter() - self._start,
            decode_ms=mean.get("decode", 0.0),
            prepare_ms=mean.get("prepare", 0.0),
            server_ms=mean.get("server", 0.0),
            paste_ms=mean.get("paste", 0.0),
            encode_ms=mean.get("encode", 0.0),
            client_cpu_ms=1000 * (_cpu_s() - self._cpu) / max(1, frames),
            requests=self.requests,
            sent_bytes=self.sent_bytes,
            late=self.late,
            skipped=self.skipped,
            repeated=self.repeated,
            resent=self.resent,
            moved=self.moved,
            refused=self.refused,
        )


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system
