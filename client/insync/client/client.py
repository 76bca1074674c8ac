"""The client of the served models, over gRPC."""

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
REGISTRATION_FRAMES = 64  # at most so many are sent
REGISTRATION_SIDE = 1280  # pixels; larger frames are scaled down
REGISTRATION_QUALITY = 95
RETRY_S = 30.0
_END_TIMEOUT_S = 0.5
_DTYPES = {"UINT8": np.uint8, "FP32": np.float32, "STRING": np.object_}


class Twin(str):
    """The id of a registered person: a str of 32 hexadecimal digits that can be stored and passed to `Client.stream`.

    Anyone who knows the id can use or delete the twin.

    Attributes:
        report: the server's report on the registration: "frames" (number received), "faces" (number with a usable face),
            "references" (one dict for each reference crop: "frame" is its index, "opening" its mouth aperture,
            "sharpness", and "pose_deg" three angles in degrees) and "warnings" (list of str). Empty if the id does not
            come from `Client.register`.
    """

    report: dict[str, Any]

    def __new__(cls, identifier: str, report: dict[str, Any] | None = None) -> Twin:
        twin = super().__new__(cls, identifier)
        twin.report = report or {}
        return twin


class Client:
    """A connection to one or more servers, for use from one event loop. Any number of streams may run on it at once.

    ::

        async with Client("127.0.0.1:8001") as client:
            twin = await client.register(frames)
            async for synced in client.stream(frames, audio, twin=twin, fps=25):
                ...

    A request whose response is lost is sent again, to the same server or the next: no frame is lost or yielded twice, and
    the order is kept.

    Args:
        server: HOST:PORT of the server's gRPC endpoint; several as a sequence, or separated by commas. A stream stays
            with one server while it responds, and moves to another when it does not. Servers must share one twin store.
        connect_timeout_s: seconds to wait for a server's first response in `connect`.
        request_timeout_s: seconds to wait for each frame's response before the request is sent again.
        registration_timeout_s: seconds to wait for the response to `register` or `delete`.
        tls: certificates and keys for TLS; None connects without TLS.
        retry_s: seconds for which requests are sent again while no server responds; 0 does not retry.
        overload_s: seconds for which a frame waits for capacity on an overloaded server, if its stream has no deadline.

    Raises:
        BadInput: `server` is not HOST:PORT, or a file of `tls` is missing or invalid.
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
            raise BadInput("server is an empty sequence; it must have at least one HOST:PORT")
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
        """Open the connections, and check that at least one server responds and has loaded the models.

        `async with Client(...)` does it on entry. A second call does nothing.

        Raises:
            ServerUnavailable: no server responds within `connect_timeout_s`, TLS fails, or the models are not ready.
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
                    f"connecting: no response from {address} within {self._connect_timeout_s:g} s; "
                    "start a server with 'insync serve' or check the address"
                ) from exc
            raise
        if not ready:
            raise ServerUnavailable(
                f"connecting: {address} responds, but its model lipsync_patch is not ready: "
                "the server is still loading, or serves other models"
            )

    def _open(self, address: str) -> TritonConnection:
        return TritonConnection(*self._hosts[address], self._tls, self._credentials)

    async def close(self) -> None:
        """End all streams and close the connections. `async with` does it on exit."""
        for stream in list(self._streams):
            await _close(stream)
        self._connected = False
        await self._servers.close()

    async def register(self, frames: Iterable[Any] | AsyncIterable[Any]) -> Twin:
        """Register a person, and return the id of their twin.

        Do it once per person: the id stays valid until it is deleted. All frames are read; of more than 64, at most 64 are
        sampled evenly. They are scaled down to at most 1280 pixels a side and sent as JPEGs, at most 48 MiB together.

        Args:
            frames: any iterable of frames that show one person, plain or asynchronous; from one photo up, and 12 s of
                footage are enough. Each frame is uint8 [H, W, 3] RGB, or the bytes of a JPEG or PNG.

        Returns:
            The twin's id, with the server's report.

        Raises:
            BadInput: there are no frames, one cannot be decoded, or none shows a usable face.
            ServerError: the server failed; for example its twin store cannot be written.
            ServerUnavailable, ServerTimeout, Overloaded: no server accepts the request in time.
            ProtocolError: the response is not what this client's version expects.
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
            raise BadInput("registering: got no frames; there must be at least one frame")
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
        """Delete a registered person from the twin store, for all servers that share it. This cannot be undone.

        Args:
            twin: id that `register` returned. Anyone who knows it can delete the twin.

        Raises:
            NotFound: no twin has this id.
            BadInput: this is not a valid id.
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
        """Yield the frames with the mouth of `twin` speaking `audio`.

        A frame is sent once the audio up to 120 ms after its time has arrived, or the audio has ended; after its end there
        is silence. Frames are read only while fewer than `in_flight` are held, so a slow consumer slows down reading.
        Nothing paces a file: its frames are read and sent as fast as the server responds. Live sources pace themselves, by
        blocking or awaiting until the next frame or chunk of audio exists. Closing the generator early (`aclose()`, or
        leaving the client's block) cancels the requests in flight.

        Args:
            frames: any iterable, plain or asynchronous, of uint8 [H, W, 3] RGB arrays, at least 16×16 pixels; of the bytes
                of JPEGs or PNGs; or of `TimedFrame`s with one of these, for variable frame rates. A plain iterator may
                block: it runs in its own thread.
            audio: any iterable, plain or asynchronous, of arrays [N] or [N, channels], or one such array: float in
                [-1, 1], int16, int32 or uint8 PCM. Channels are averaged.
            twin: id that `register` returned.
            fps: frames per second, above 0 and up to 1000: the time of frame k is k / fps s on the audio's clock, unless it
                is a `TimedFrame`. It is also the rate for which a live stream claims capacity.
            audio_rate_hz: samples per second of `audio`, 4,000 to 384,000.
            in_flight: maximum number of frames that are read but not yet yielded, 1 to 256. Fewer give less latency, more
                give more throughput. For a live stream it should be at least fps × `deadline_s`, or reading stalls before
                the deadline is over.
            region: send only the face's surroundings, at no more than the crop's resolution; False sends whole frames.
            composite: "client" blends the patch into a copy of the caller's own pixels; "server" returns whole frames as JPEGs.
            deadline_s: makes this a live stream; seconds, above 0 and up to 60. It counts from the moment the stream has
                read the frame and its audio has arrived (up to 120 ms after the frame's time), not from the camera's
                capture, until the synced frame is ready. The server reserves capacity for a live stream, or refuses it at once.
            late: the policy for a live stream's frame that misses its deadline. "wait" yields it late. "skip" leaves it
                out. "repeat" yields the previous synced frame again in its place. With "skip" and "repeat", the client
                sends fewer frames while they are late, as many as return in time. `SyncedFrame` and `clock` record it.
            clock: collects the time of each stage and counts requests and late frames; one per stream.

        Yields:
            One SyncedFrame per frame, in order; with `late="skip"` without those left out. A frame without a face passes
            through unchanged.

        Raises:
            BadInput: an option is not allowed or the client is not connected (raised by the call itself); or a frame or
                audio chunk is not allowed.
            NotFound: no twin has this id.
            Overloaded: no server has capacity for another live stream, or for a frame within `overload_s`
                (`retry_s` in a live stream).
            InsyncError: any other failure. The frames before the failed one are yielded first.
        """
        if not self._connected:
            raise BadInput("the client is not connected; use 'async with Client(...)', or call connect()")
        options = StreamOptions(fps, audio_rate_hz, in_flight, region, composite, deadline_s=deadline_s, late=late)
        clock = clock or StageClock()
        route = Route(live=deadline_s is not None)
        # Frames of a live stream carry its name and rate, so that any server can admit it if the previous server has failed.
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
            if route.live:  # before any frame is read: preparing it for an overloaded server would be wasted
                await self._claim(name, rate, "claiming capacity", route)
            async for synced in frames:
                yield synced
        finally:
            await frames.aclose()
            clock.resent, clock.moved, clock.refused = route.resent, route.moved, route.refused
            if route.live and route.admitted and route.failing_since_s is None and self._connected:
                # RATE 0 releases the stream's capacity now; without it, the server does so seconds after the last frame.
                with contextlib.suppress(InsyncError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._claim(name, 0.0, "ending the stream", route), _END_TIMEOUT_S)
            self._servers.release(route)

    async def _claim(self, name: NDArray[Any], rate: float, operation: str, route: Route) -> None:
        """Claim `rate` frames/s of a server's capacity for a live stream; sends the smallest possible frame."""
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
        """Call a model with arrays of the specified shapes, and check the response against the specification."""
        described = spec.MODELS[model]
        batched = described.max_batch_size > 0
        sent = {name: array[None] for name, array in arrays.items()} if batched else arrays
        limit_s = timeout_s if timeout_s is not None else self._request_timeout_s
        own_route = route or Route()
        try:
            received = await self._servers.call(
                lambda triton: triton.infer(model, described.inputs, sent, limit_s), operation, own_route
            )
        finally:
            if route is None:
                self._servers.release(own_route)
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
                    "the client's and the server's versions may differ"
                )
            outputs[tensor.name] = array
        return outputs


def _host_and_port(server: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})", server)
    if not match or not 0 < int(match[2]) < 65536:
        raise BadInput(f"server is {server!r}; it must be HOST:PORT of a gRPC endpoint, such as {DEFAULT_SERVER}")
    return match[1].strip("[]"), int(match[2])


async def _close(stream: AsyncGenerator[SyncedFrame, None]) -> None:
    try:
        await stream.aclose()
    except RuntimeError:
        # Another task is iterating it now: its next request fails, and it ends by itself.
        return


def _registration_jpeg(frame: Any, name: str) -> bytes:
    picture = open_picture(frame, name)
    scale = min(1.0, REGISTRATION_SIDE / max(picture.width, picture.height))
    width = max(1, round(picture.width * scale * min(1.0, picture.pixel_aspect)))
    height = max(1, round(picture.height * scale * min(1.0, 1 / picture.pixel_aspect)))
    return encode_jpeg(
        picture.cut(Region(0, 0, picture.width, picture.height, width, height, True)), REGISTRATION_QUALITY
    )
