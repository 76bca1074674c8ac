"""One stream: frames and audio in, synced frames out, in order, with a bounded number of frames in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from insync.client.streaming.audio_windows import AudioWindows, slices
from insync.client.streaming.frame_dropping import LATE, FrameDropper, Late
from insync.client.streaming.pictures import Picture, RgbPicture, TimedFrame, decode_image, open_picture
from insync.client.streaming.region import Region, RegionResult, RegionTracker
from insync.client.streaming.sources import Source
from insync.client.streaming.timings import StageClock
from insync.core import spec
from insync.core.compositing import place
from insync.core.errors import BadInput, ProtocolError
from insync.core.images import Image, encode_jpeg

__all__ = ["Stream", "StreamOptions", "SyncedFrame"]

_FRAME_THREADS = 2  # threads that cut, encode, decode and paste pictures; OpenCV releases the GIL


@dataclass(frozen=True)
class StreamOptions:
    """Options of a stream; see `Client.stream`.

    Attributes:
        fps: frames per second of frames that carry no time of their own, above 0 and up to 1000.
        audio_rate_hz: samples per second of the audio.
        in_flight: maximum number of frames that are read but not yet yielded, 1 to 256.
        region: send only the face's surroundings, not larger than the crop needs.
        composite: "client" blends the patch into the client's own pixels; "server" returns the whole frame as a JPEG.
        jpeg_quality: JPEG quality of the pictures sent, 1 to 100.
        deadline_s: seconds from having the frame and its audio to its synced frame; None: not a live stream.
        late: the policy for a live stream's frame that misses its deadline.

    Raises:
        BadInput: an option is not allowed.
    """

    fps: float | Fraction = 25
    audio_rate_hz: int = spec.SAMPLE_RATE_HZ
    in_flight: int = 8
    region: bool = True
    composite: Literal["client", "server"] = "client"
    jpeg_quality: int = 92
    deadline_s: float | None = None
    late: Late = "wait"

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 1000:
            raise BadInput(f"fps is {self.fps}; it must be more than 0, up to 1000")
        if not 1 <= self.in_flight <= 256:
            raise BadInput(f"in_flight is {self.in_flight}; it must be 1 to 256 frames")
        if self.composite not in ("client", "server"):
            raise BadInput(f"composite is {self.composite!r}; it must be 'client' or 'server'")
        if not 1 <= self.jpeg_quality <= 100:
            raise BadInput(f"jpeg_quality is {self.jpeg_quality}; it must be 1 to 100")
        if self.deadline_s is not None and not 0 < self.deadline_s <= 60:
            raise BadInput(f"deadline_s is {self.deadline_s}; it must be more than 0, up to 60 s, or None")
        if self.late not in LATE:
            raise BadInput(f"late is {self.late!r}; it must be one of {', '.join(map(repr, LATE))}")
        if self.late != "wait" and self.deadline_s is None:
            raise BadInput(f"late is {self.late!r} without deadline_s; set the deadline of each frame in seconds")


@dataclass(frozen=True)
class SyncedFrame:
    """A frame whose mouth follows the audio, as `Client.stream` yields it.

    Attributes:
        index: index of the frame in the stream, from 0. Frames left out count.
        time_s: seconds, the frame's time on the audio's clock.
        picture: the frame with the patch blended in, in its own pixel format; `image` has its pixels as RGB.
        confidence: face confidence in [0, 1]. The patch is invisible up to 0.3 and fully visible from 0.7; 0 means that no
            face was found.
        face: float32 [4], bounding box x0, y0, x1, y1 of the face in frame pixels; zeros without a face.
        mouth: float32 [12], the predicted mouth code.
        transform: float64 [2, 3], from frame pixels to crop pixels; None if the server composited.
        changed: whether a patch was blended in; if not, the pixels are the source's.
        latency_s: seconds from having the frame and its audio to the synced frame.
        sent_bytes: bytes of the pictures sent for it.
        encoded: the synced frame as a JPEG (or the unchanged source bytes) if the server composited, else None.
        late: it missed the stream's deadline, or was not sent because frames before it were late.
        repeated: it is late, and replaced by the previous one: picture, face, mouth and transform are the previous frame's.
        skipped: number of late frames that were left out between the previous frame and this one.
    """

    index: int
    time_s: float
    picture: Picture = field(repr=False)
    confidence: float
    face: NDArray[np.float32]
    mouth: NDArray[np.float32] = field(repr=False)
    transform: NDArray[np.float64] | None = field(repr=False)
    changed: bool
    latency_s: float
    sent_bytes: int
    encoded: bytes | None = field(default=None, repr=False)
    late: bool = False
    repeated: bool = False
    skipped: int = 0

    @property
    def image(self) -> Image:
        """The pixels: uint8 [H, W, 3] RGB, of the source frame's size. Do not write to them."""
        return self.picture.rgb()


@dataclass(frozen=True)
class _Ticket:
    """A frame in flight; without a task, one that is not sent. `ready_s` is the time.perf_counter at which the frame and its
    audio had arrived."""

    index: int
    time_s: float
    ready_s: float
    task: asyncio.Task[SyncedFrame] | None


Infer = Callable[[str, dict[str, NDArray[Any]], str], Awaitable[dict[str, NDArray[Any]]]]


class Stream:
    """One run over frames and audio; see `Client.stream`.

    Args:
        infer: calls a model: (name, inputs without batch dimension, operation) → outputs without batch dimension.
        frames, audio: any iterables; audio may be one array.
        twin: id of the registered person.
        options: options of the stream.
        clock: collects the stages' times.
    """

    def __init__(
        self,
        infer: Infer,
        frames: Iterable[Any] | AsyncIterable[Any],
        audio: Iterable[Any] | AsyncIterable[Any] | NDArray[Any],
        twin: str,
        options: StreamOptions,
        clock: StageClock | None = None,
    ) -> None:
        if not isinstance(twin, str) or not twin:
            raise BadInput(f"twin is {twin!r}; it must be the id that register() returned")
        self._infer = infer
        self._twin = np.array([twin.encode()], dtype=np.object_)
        self._options = options
        self._clock = clock or StageClock()
        self._windows = AudioWindows(options.audio_rate_hz)
        self._frames = Source(frames, "frames")
        self._audio = Source(slices(audio, options.audio_rate_hz) if isinstance(audio, np.ndarray) else audio, "audio")
        self._tracker = self._new_tracker()
        self._slots = asyncio.Semaphore(options.in_flight)
        # Never full: each entry but the end marker holds a slot.
        self._queue: asyncio.Queue[_Ticket | None] = asyncio.Queue(options.in_flight + 1)
        self._tasks: set[asyncio.Task[SyncedFrame]] = set()
        self._last: SyncedFrame | None = None  # yielded to the consumer
        self._skipped = 0  # since then
        lossy = options.deadline_s is not None and options.late != "wait"
        self._dropper = FrameDropper(float(options.fps), options.deadline_s or 0.0) if lossy else None

    async def run(self) -> AsyncGenerator[SyncedFrame, None]:
        """Yield the synced frames in order. Closing the generator early cancels the requests in flight."""
        self._threads = ThreadPoolExecutor(_FRAME_THREADS, thread_name_prefix="insync-picture")
        producer = asyncio.create_task(self._produce())
        try:
            while True:
                ticket = await self._queue.get()
                if ticket is None:
                    await producer  # raises its error, if it failed
                    return
                synced = await self._outcome(ticket)
                self._slots.release()
                if synced is not None:
                    self._last, self._skipped = synced, 0
                    yield synced
        finally:
            pending: list[asyncio.Task[Any]] = [producer, *self._tasks]
            for task_ in pending:
                task_.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            # The tasks' exceptions refer to this stream, and the stream to the connection: break the reference cycle.
            while not self._queue.empty():
                self._queue.get_nowait()
            await self._frames.close()
            await self._audio.close()
            self._threads.shutdown(wait=False)

    async def _outcome(self, ticket: _Ticket) -> SyncedFrame | None:
        """Return the ticket's frame, or what the policy for late frames replaces it with; None: it is left out."""
        options, task = self._options, ticket.task
        # Always wait for the first frame: there is no previous frame to repeat.
        if options.deadline_s is not None and self._dropper is not None and self._last is not None:
            if task is not None and not task.done():
                left_s = ticket.ready_s + options.deadline_s - time.perf_counter()
                await asyncio.wait({task}, timeout=max(0.0, left_s))
                if not task.done():
                    task.cancel()
                    self._dropper.late(time.perf_counter())
                    task = None
            if task is None:
                self._clock.late += 1
                if options.late == "skip":
                    self._clock.skipped += 1
                    self._skipped += 1
                    return None
                self._clock.repeated += 1
                return replace(
                    self._last,
                    index=ticket.index,
                    time_s=ticket.time_s,
                    latency_s=time.perf_counter() - ticket.ready_s,
                    sent_bytes=0,
                    late=True,
                    repeated=True,
                    skipped=0,
                )
        assert task is not None  # only a stream with a dropper has frames without a task
        synced = await task
        late = options.deadline_s is not None and synced.latency_s > options.deadline_s
        self._clock.late += late
        if self._dropper is not None:
            if late:
                self._dropper.late(time.perf_counter())
            else:
                self._dropper.in_time()
        return replace(synced, late=late, skipped=self._skipped) if late or self._skipped else synced

    def _on_done(self, task: asyncio.Task[SyncedFrame]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn about the exception of a late frame

    async def _produce(self) -> None:
        """Read frames while slots are free, with the audio that each needs, and start their requests."""
        try:
            index = 0
            last = Fraction(0)
            while True:
                await self._slots.acquire()
                with self._clock.measure("decode"):
                    more, item = await self._frames.next()
                if not more:
                    return
                name = f"frame {index}"
                time_s = Fraction(index) / Fraction(self._options.fps)
                cut = index == 0
                if isinstance(item, TimedFrame):
                    item, time_s, cut = item.frame, Fraction(item.time_s), cut or item.cut
                if time_s < last:
                    raise BadInput(
                        f"{name} has time {float(time_s):.4f} s, before the previous frame's; times must not decrease"
                    )
                last = time_s
                picture = open_picture(item, name)
                await self._receive_audio(time_s)
                window = self._windows.window_at(time_s)
                ready_s = time.perf_counter()
                if cut:  # frames before it that are still on their way keep their own
                    self._tracker = self._new_tracker()
                task = None
                if index == 0 or self._dropper is None or self._dropper.due(ready_s):
                    task = asyncio.create_task(self._sync(index, time_s, picture, window, self._tracker))
                    self._tasks.add(task)
                    task.add_done_callback(self._on_done)
                self._queue.put_nowait(_Ticket(index, float(time_s), ready_s, task))
                if cut and task is not None:
                    # The face's position decides which region of later frames is sent, so waiting for it once pays off.
                    await asyncio.wait({task})
                index += 1
        finally:
            self._queue.put_nowait(None)

    async def _receive_audio(self, time_s: Fraction) -> None:
        """Read audio until the window of the frame at this time is complete."""
        while not self._windows.ready(time_s):
            more, chunk = await self._audio.next()
            if more:
                self._windows.push(chunk)
            else:
                self._windows.finish()

    def _new_tracker(self) -> RegionTracker:
        return RegionTracker(self._options.region and self._options.composite == "client")

    async def _sync(
        self, index: int, time_s: Fraction, picture: Picture, window: NDArray[np.float32], tracker: RegionTracker
    ) -> SyncedFrame:
        start = time.perf_counter()
        name = f"frame {index}"
        if self._options.composite == "server":
            return await self._composited(index, time_s, picture, window, tracker, start)

        async def call(region: Region, hint: NDArray[np.float32]) -> RegionResult:
            return await self._call(name, picture, window, region, hint)

        result = await tracker.locate(index, picture.width, picture.height, picture.pixel_aspect, call)
        changed = await self._in_thread("paste", _paste, picture, result)
        return SyncedFrame(
            index=index,
            time_s=float(time_s),
            picture=picture,
            confidence=result.confidence,
            face=result.face,
            mouth=result.mouth,
            transform=result.transform,
            changed=changed,
            latency_s=time.perf_counter() - start,
            sent_bytes=result.sent_bytes,
        )

    async def _call(
        self, name: str, picture: Picture, window: NDArray[np.float32], region: Region, hint: NDArray[np.float32]
    ) -> RegionResult:
        data = await self._in_thread("prepare", _encoded, picture, region, self._options.jpeg_quality)
        outputs = await self._timed_infer("lipsync_patch", data, window, region.box_to_sent(hint), name)
        transform = outputs["TRANSFORM"].astype(np.float64)
        confidence = float(outputs["CONFIDENCE"][0])
        (a, b, _), (c, d, _) = transform.tolist()
        if not np.isfinite(transform).all() or a * d == b * c or not 0 <= confidence <= 1:
            raise ProtocolError(f"{name}: the server's TRANSFORM or CONFIDENCE is invalid")
        return RegionResult(
            region=region,
            confidence=confidence,
            face=region.box_to_frame(outputs["FACE"]),
            mouth=outputs["MOUTH"],
            transform=region.transform_to_frame(transform),
            patch=outputs["PATCH"],
            sent_bytes=len(data),
        )

    async def _composited(
        self,
        index: int,
        time_s: Fraction,
        picture: Picture,
        window: NDArray[np.float32],
        tracker: RegionTracker,
        start: float,
    ) -> SyncedFrame:
        name = f"frame {index}"
        region = RegionTracker(enabled=False).propose(picture.width, picture.height)
        data = await self._in_thread("prepare", _encoded, picture, region, self._options.jpeg_quality)
        outputs = await self._timed_infer("lipsync", data, window, tracker.hint, name)
        confidence = float(outputs["CONFIDENCE"][0])
        tracker.follow(index, outputs["FACE"])
        encoded = outputs["SYNCED"].tobytes()
        image = await self._in_thread("paste", decode_image, encoded, f"{name} as the server returned it")
        return SyncedFrame(
            index=index,
            time_s=float(time_s),
            picture=RgbPicture(image, encoded),
            confidence=confidence,
            face=outputs["FACE"],
            mouth=outputs["MOUTH"],
            transform=None,
            changed=encoded != data,
            latency_s=time.perf_counter() - start,
            sent_bytes=len(data),
            encoded=encoded,
        )

    async def _timed_infer(
        self, model: str, data: bytes, window: NDArray[np.float32], hint: NDArray[np.float32], name: str
    ) -> dict[str, NDArray[Any]]:
        if len(data) > spec.MAX_FRAME_BYTES:
            raise BadInput(f"{name} is {len(data)} bytes when encoded; it must be at most {spec.MAX_FRAME_BYTES}")
        self._clock.requests += 1
        self._clock.sent_bytes += len(data)
        # Zeros mean no hint. The input is always sent, since the server batches only requests with the same inputs.
        inputs: dict[str, NDArray[Any]] = {
            "FRAME": np.frombuffer(data, np.uint8),
            "AUDIO": window,
            "TWIN": self._twin,
            "FACE_HINT": hint.astype(np.float32),
        }
        with self._clock.measure("server"):
            return await self._infer(model, inputs, name)

    async def _in_thread(self, stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        def timed() -> Any:
            with self._clock.measure(stage):
                return function(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self._threads, timed)


def _encoded(picture: Picture, region: Region, quality: int) -> bytes:
    """Encode a region for sending: the caller's own bytes if the region is the whole frame as it was given, else a JPEG."""
    unchanged = region.whole and (region.width, region.height) == (picture.width, picture.height)
    own = getattr(picture, "encoded", None)
    return own if unchanged and own is not None else encode_jpeg(picture.cut(region), quality)


def _paste(picture: Picture, result: RegionResult) -> bool:
    try:
        placed = place(result.patch, result.transform, result.confidence, picture.width, picture.height)
    except ValueError as exc:
        raise ProtocolError(f"the server's patch cannot be placed: {exc}") from exc
    if placed is None:
        return False
    picture.paste(placed)
    return True
