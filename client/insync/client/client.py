"""The client: talks to the served models over gRPC, and to nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from insync.client.streaming.frame_dropping import Late
from insync.client.streaming.pictures import open_picture
from insync.client.streaming.region import Region
from insync.client.streaming.sources import Source
from insync.client.streaming.stream import Stream, StreamOptions, SyncedFrame
from insync.client.streaming.timings import StageClock
from insync.client.transport.errors import mapped_errors
from insync.client.transport.failover import RetryOptions, Route, Servers
from insync.client.transport.tls import TlsOptions, diagnosis
from insync.client.transport.triton import TritonConnection
from insync.core import spec
from insync.core.errors import BadInput, InsyncError, ProtocolError, ServerTimeout, ServerUnavailable
from insync.core.images import encode_jpeg

__all__ = ["DEFAULT_SERVER", "Client", "Twin"]

DEFAULT_SERVER = "127.0.0.1:8001"
MAX_REGISTRATION_BYTES = 48 * 2**20
REGISTRATION_FRAMES = 64  # most that are sent
REGISTRATION_SIDE = 1280  # pixels; larger frames are scaled down
REGISTRATION_QUALITY = 95
RETRY_S = 30.0
_END_TIMEOUT_S = 0.5
_DTYPES = {"UINT8": np.uint8, "FP32": np.float32, "STRING": np.object_}


class Twin(str):
    """The id of a registered person, with the server's report on the registration.

    Attributes:
        report: what the server says of the frames: how many were used, which were chosen, and so on.
    """

    report: dict[str, Any]

    def __new__(cls, identifier: str, report: dict[str, Any] | None = None) -> Twin:
        twin = super().__new__(cls, identifier)
        twin.report = report or {}
        return twin


class Client:
    """A connection to a server. Used by one event loop; any number of streams may run on it at once.

    ::

        async with Client("127.0.0.1:8001") as client:
            twin = await client.register(frames)
            async for synced in client.stream(frames, audio, twin=twin, fps=25):
                ...

    A request whose answer gets lost is sent again, to the same server or the next: no frame is lost or given twice, and
    their order is kept. Several servers have to share one twin store.

    Args:
        server: HOST:PORT of the server's gRPC endpoint; several as a sequence, or with commas between them. A stream stays
            with one of them while it answers, and goes on at another where it does not.
        connect_timeout_s: for the first answer.
        request_timeout_s: for each frame's answer, before it is asked for again.
        registration_timeout_s: for a registration's.
        tls: how to speak TLS; None speaks without.
        retry_s: for how long requests are sent again while nothing answers; 0: not at all.
        overload_s: how long a frame waits for room on a full server, where its stream has no deadline.

    Raises:
        BadInput: `server` is no HOST:PORT, or `tls` names a file that is not what it should be.
    """

    def __init__(
        self,
        server: str | Sequence[str] = DEFAULT_SERVER,
        *,
        connect_timeout_s: float = 5.0,
        request_timeout_s: float = 30.0,
        registration_timeout_s: float = 120.0,
        tls: TlsOptions | None = None,
        retry_s: float = RETRY_S,
        overload_s: float = 600.0,
    ) -> None:
        addresses = server.split(",") if isinstance(server, str) else list(server)
        hosts = {address: _host_and_port(address) for address in addresses}
        if not hosts:
            raise BadInput("server is an empty sequence; allowed: one HOST:PORT or more")
        self.server = ",".join(hosts)
        self._hosts = hosts
        self._tls = tls
        self._credentials = None if tls is None else tls.credentials()
        self._servers = Servers(list(hosts), self._open, RetryOptions(retry_s, overload_s))
        self._connected = False
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._registration_timeout_s = registration_timeout_s
        self._streams: weakref.WeakSet[AsyncGenerator[SyncedFrame, None]] = weakref.WeakSet()

    async def __aenter__(self) -> Client:
        await self.connect()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Opens the connections and makes sure that our models answer at one server at least.

        Raises:
            ServerUnavailable: nobody answers, or the models are not ready.
        """
        if not self._connected:
            await self._servers.open(self._check_server)
            self._connected = True

    async def _check_server(self, triton: TritonConnection, address: str) -> None:
        try:
            with mapped_errors("connecting", address):
                ready = await triton.model_ready("lipsync_patch", self._connect_timeout_s)
        except (ServerTimeout, ServerUnavailable) as exc:
            limit_s = min(2.0, self._connect_timeout_s)
            why = await asyncio.to_thread(diagnosis, *self._hosts[address], self._tls, limit_s)
            if why is not None:
                raise ServerUnavailable(f"connecting to {address}: {why}", retryable=False) from exc
            if isinstance(exc, ServerTimeout):
                raise ServerUnavailable(
                    f"connecting: nothing answers at {address} within {self._connect_timeout_s:g} s; "
                    "start a server with 'insync serve' or check the address"
                ) from exc
            raise
        if not ready:
            raise ServerUnavailable(
                f"connecting: {address} answers, but its model lipsync_patch is not ready: "
                "it is still loading, or serves other models"
            )

    def _open(self, address: str) -> TritonConnection:
        return TritonConnection(*self._hosts[address], self._tls, self._credentials)

    async def close(self) -> None:
        """Ends every stream and closes the connections."""
        for stream in list(self._streams):
            await _closed(stream)
        self._connected = False
        await self._servers.close()

    async def register(self, frames: Iterable[Any] | AsyncIterable[Any]) -> Twin:
        """Registers a person.

        Args:
            frames: any iterable of frames that show one person: 12 s of footage are plenty, one photo is the least.
                Each is uint8 [H, W, 3] RGB, or the bytes of a JPEG or PNG. Of many, up to 64 are sampled evenly.

        Returns:
            The twin's id.

        Raises:
            BadInput: no frames, frames that cannot be decoded, or frames without a usable face.
        """
        source = Source(frames, "frames")
        kept: list[tuple[int, bytes]] = []
        stride = 1
        index = 0
        try:
            while True:
                more, frame = await source.next()
                if not more:
                    break
                if index % stride == 0:
                    kept.append((index, await asyncio.to_thread(_registration_jpeg, frame, f"frame {index}")))
                    if len(kept) > REGISTRATION_FRAMES or sum(len(d) for _, d in kept) > MAX_REGISTRATION_BYTES:
                        stride *= 2
                        kept = [entry for entry in kept if entry[0] % stride == 0]
                index += 1
        finally:
            await source.close()
        if not kept:
            raise BadInput("registering needs at least one frame; got none")
        data = np.empty(len(kept), np.object_)
        data[:] = [jpeg for _, jpeg in kept]
        outputs = await self._infer(
            "lipsync_twin", {"FRAMES": data}, "registering", timeout_s=self._registration_timeout_s
        )
        try:
            report = json.loads(outputs["REPORT"].tobytes())
        except ValueError as exc:
            raise ProtocolError("registering: the server's REPORT is not JSON") from exc
        return Twin(outputs["TWIN"].tobytes().decode(), report)

    async def delete(self, twin: str) -> None:
        """Deletes a registered person from the server's store, for all servers that share it. It cannot be undone.

        Args:
            twin: from `register`: whoever knows the id may delete it.

        Raises:
            NotFound: there is none of this id.
        """
        data = np.array([str(twin)], np.object_)
        await self._infer("lipsync_twin", {"FORGET": data}, "deleting", timeout_s=self._registration_timeout_s)

    def stream(
        self,
        frames: Iterable[Any] | AsyncIterable[Any],
        audio: Iterable[Any] | AsyncIterable[Any] | NDArray[Any],
        *,
        twin: str,
        fps: float | Fraction = 25,
        audio_rate_hz: int = spec.SAMPLE_RATE_HZ,
        in_flight: int = 8,
        region: bool = True,
        composite: Literal["client", "server"] = "client",
        deadline_s: float | None = None,
        late: Late = "wait",
        clock: StageClock | None = None,
    ) -> AsyncGenerator[SyncedFrame, None]:
        """Makes the person in `frames` speak `audio`.

        A frame is answered when the audio up to 120 ms after it has come, or has ended; after the audio's end there is
        silence. Frames are read only while fewer than `in_flight` wait for the consumer. Closing the generator early
        (`aclose()`, or leaving the client's block) cancels what is under way.

        Args:
            frames: any iterable, plain or asynchronous: uint8 [H, W, 3] RGB arrays, or the bytes of JPEGs or PNGs, or
                `TimedFrame`s of those where the frame rate varies.
            audio: any iterable of arrays [N] or [N, channels], float in [-1, 1] or int16; or one such array.
            twin: from `register`.
            fps: frames per second.
            audio_rate_hz: samples per second of `audio`.
            in_flight: most frames under way; fewer give less latency, more give more throughput.
            region: send only the face's surroundings.
            composite: "client" blends on the caller's own pixels; "server" gets finished JPEGs from the server.
            deadline_s: makes the stream a live one, paced at `fps`: each frame is wanted so many seconds after it and its
                audio have come. The server keeps room for a live stream, or refuses it at once.
            late: what becomes of a live stream's frame that is not there in time. "wait": it comes late. "skip": it is left
                out. "repeat": the synced frame before it comes again. SyncedFrame and the clock say so. While frames come
                late, fewer are sent: as many as come back in time.
            clock: takes the times of the stages.

        Yields:
            One SyncedFrame for each frame, in order. A frame without a face passes through untouched.

        Raises:
            InsyncError: see its tree; frames before the failing one are yielded first. `Overloaded` where no server has
                room for another live stream.
        """
        if not self._connected:
            raise BadInput("the client is not connected: use it as 'async with Client(...)', or call connect()")
        options = StreamOptions(fps, audio_rate_hz, in_flight, region, composite, deadline_s=deadline_s, late=late)
        clock = clock or StageClock()
        route = Route(live=deadline_s is not None)
        # Frames of a live stream carry its name and rate: any server can let it in, whatever became of the one before.
        name = np.array([secrets.token_hex(16).encode()], np.object_)
        rate = max(1.0, float(fps))
        tag = {"STREAM": name, "RATE": np.array([rate], np.float32)} if route.live else {}

        async def infer(model: str, arrays: dict[str, NDArray[Any]], operation: str) -> dict[str, NDArray[Any]]:
            return await self._infer(model, {**arrays, **tag}, operation, route=route)

        run = self._routed(Stream(infer, frames, audio, twin, options, clock), route, name, rate, clock)
        self._streams.add(run)
        return run

    async def _routed(
        self, stream: Stream, route: Route, name: NDArray[Any], rate: float, clock: StageClock
    ) -> AsyncGenerator[SyncedFrame, None]:
        frames = stream.run()
        try:
            if route.live:  # before anything is read of its frames, which a full server would have prepared in vain
                await self._claim(name, rate, "asking for room", route)
            async for synced in frames:
                yield synced
        finally:
            await frames.aclose()
            clock.resent, clock.moved, clock.refused = route.resent, route.moved, route.refused
            if route.live and route.admitted and route.trouble_s is None and self._connected:
                # RATE 0 gives the stream's room to another now; unsaid, silence does the same seconds later.
                with contextlib.suppress(InsyncError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._claim(name, 0.0, "ending the stream", route), _END_TIMEOUT_S)
            self._servers.leave(route)

    async def _claim(self, name: NDArray[Any], rate: float, operation: str, route: Route) -> None:
        """Tells a server how many frames/s a live stream wants, with the smallest frame that there is."""
        arrays: dict[str, NDArray[Any]] = {
            "FRAME": np.frombuffer(encode_jpeg(np.zeros((16, 16, 3), np.uint8), 50), np.uint8),
            "AUDIO": np.zeros(spec.WINDOW_SAMPLES, np.float32),
            "TWIN": np.array([spec.CANARY.encode()], np.object_),
            "STREAM": name,
            "RATE": np.array([rate], np.float32),
        }
        await self._infer("lipsync_guard", arrays, operation, route=route)

    async def _infer(
        self,
        model: str,
        arrays: dict[str, NDArray[Any]],
        operation: str,
        *,
        timeout_s: float | None = None,
        route: Route | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Asks a model, with shapes as in the specification, and holds the answer to it."""
        described = spec.MODELS[model]
        batched = described.max_batch_size > 0
        sent = {name: array[None] for name, array in arrays.items()} if batched else arrays
        limit_s = timeout_s if timeout_s is not None else self._request_timeout_s
        own = route or Route()
        try:
            received = await self._servers.call(
                lambda triton: triton.infer(model, described.inputs, sent, limit_s), operation, own
            )
        finally:
            if route is None:
                self._servers.leave(own)
        outputs: dict[str, NDArray[Any]] = {}
        for tensor in described.outputs:
            array = received.get(tensor.name)
            if array is not None and batched:
                array = array[0]
            if (
                array is None
                or array.dtype != _DTYPES[tensor.dtype]
                or len(array.shape) != len(tensor.shape)
                or any(want not in (-1, have) for want, have in zip(tensor.shape, array.shape, strict=True))
            ):
                got = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
                raise ProtocolError(
                    f"{operation}: {model}'s {tensor.name} is {got}, expected {tensor.dtype} {list(tensor.shape)}; "
                    "do the client's and the server's versions differ?"
                )
            outputs[tensor.name] = array
        return outputs


def _host_and_port(server: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})", server)
    if not match or not 0 < int(match[2]) < 65536:
        raise BadInput(f"server is {server!r}; allowed: HOST:PORT of its gRPC endpoint, as in {DEFAULT_SERVER}")
    return match[1].strip("[]"), int(match[2])


async def _closed(stream: AsyncGenerator[SyncedFrame, None]) -> None:
    try:
        await stream.aclose()
    except RuntimeError:
        # It is being iterated by another task just now: its next request fails, and it ends by itself.
        return


def _registration_jpeg(frame: Any, name: str) -> bytes:
    picture = open_picture(frame, name)
    scale = min(1.0, REGISTRATION_SIDE / max(picture.width, picture.height))
    width = max(1, round(picture.width * scale * min(1.0, picture.pixel_aspect)))
    height = max(1, round(picture.height * scale * min(1.0, 1 / picture.pixel_aspect)))
    return encode_jpeg(
        picture.cut(Region(0, 0, picture.width, picture.height, width, height, True)), REGISTRATION_QUALITY
    )
