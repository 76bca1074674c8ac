"""The whole job: a video and an audio file in, a video of the same person speaking that audio out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from insync.client.client import REGISTRATION_FRAMES, RETRY_S, Client, Twin
from insync.client.errors import BadInput, InsyncError, MissingExtra, ServerError
from insync.client.extend import EXTENSIONS, extended
from insync.client.media import AudioFile, VideoFile
from insync.client.pacer import Late
from insync.client.picture import TimedFrame
from insync.client.provenance import Mark, can_be_signed
from insync.client.stages import StageClock, Stages
from insync.client.stream import StreamOptions
from insync.client.tls import TlsOptions
from insync.client.writer import QUALITIES, VideoWriter, carries_display_matrix, check_output
from insync.client.yuv import YuvPicture, copy_frame
from insync.ensemble.spec import SAMPLE_RATE_HZ

__all__ = ["DubReport", "dub", "embedded_server", "registration_pictures"]

MOST_FPS = Fraction(240)  # that a server reserves room for
REGISTRATION_S = 24  # of the video's beginning; twice what a twin needs


@dataclass(frozen=True)
class DubReport:
    """What a job did.

    Attributes:
        out: the written file.
        twin: id of the person, as given or registered.
        frames: written.
        changed: of them, frames with a new mouth; the others passed through untouched.
        duration_s: of the written video.
        stages: where the time went.
        mark: what marks the file as synthetic.
        failed_to_sign: why a file that could have been signed is not; empty where it is, or should not be.
        notes: what the user should know: conversions, cut audio, frames without a face.
    """

    out: Path
    twin: str
    frames: int
    changed: int
    duration_s: float
    stages: Stages
    mark: Mark
    failed_to_sign: str
    notes: tuple[str, ...]

    @property
    def stages_s(self) -> dict[str, float]:
        """Wall seconds of each client stage over the whole job, and of waiting for the server."""
        return self.stages.totals_s


def dub(
    video: str | Path,
    audio: str | Path,
    out: str | Path,
    *,
    server: str | None = None,
    twin: str | None = None,
    extend: str = "bounce",
    trim: bool = False,
    quality: str = "high",
    in_flight: int = 8,
    region: bool = True,
    progress: bool = True,
    tls: TlsOptions | None = None,
    provenance: bool = True,
    deadline_s: float | None = None,
    late: Late = "wait",
    retry_s: float = RETRY_S,
) -> DubReport:
    """Makes the person in `video` speak `audio`, and writes the result to `out`.

    Where the video is longer than the audio, its rest is spoken to silence: the mouth rests. Frames without a face pass
    through untouched. The output appears when it is whole; a failed job leaves nothing. Not for use inside a running
    event loop: there, use `Client`.

    Args:
        video: a video file, or a photo (which becomes a still video at 25 fps).
        audio: any file with an audio track.
        out: .mp4, .m4v, .mov or .mkv; an existing file is replaced.
        server: HOST:PORT of a server, or several with commas between them; None starts one on this machine for the job.
        twin: id of a registered person; None registers the one in `video`.
        extend: how the video goes on where the audio is longer: "bounce", "loop", "freeze", or "none" (audio is cut).
        trim: end with the audio where the video is longer.
        quality: "lossless", "high", "medium" or "low".
        in_flight: frames under way at once.
        region: send only the face's surroundings.
        progress: show a progress bar on stderr.
        tls: how to speak TLS with `server`.
        provenance: mark the output as synthetic. Leave it on, unless you mark it yourself.
        deadline_s: takes `video` for a camera: its frames come at their own pace, and each is wanted so many seconds later.
        late: what becomes of a frame that is not there in time, as in `Client.stream`.
        retry_s: for how long frames are sent again while no server answers.

    Returns:
        What was done, and where the time went.

    Raises:
        InsyncError: see its tree. `NoVideoTrack`, `NoAudioTrack` and the like for files; `BadInput` where no face is
            found to register.
    """
    video, audio, out = Path(video), Path(audio), Path(out)
    if extend not in EXTENSIONS:
        raise BadInput(f"extend is {extend!r}; allowed: {', '.join(EXTENSIONS)}")
    if quality not in QUALITIES:
        raise BadInput(f"quality is {quality!r}; allowed: {', '.join(QUALITIES)}")
    StreamOptions(in_flight=in_flight, deadline_s=deadline_s, late=late)  # refuses before anything is started
    check_output(out, video, audio)
    source = VideoFile(video, upright=not carries_display_matrix(out))
    speech = AudioFile(audio)
    if tls is not None and server is None:
        raise BadInput("TLS options need a server: one for this job alone listens on loopback, without TLS")
    job = _Job(
        video=source,
        audio=speech,
        out=out,
        twin=twin,
        extend=extend,
        trim=trim,
        quality=quality,
        in_flight=in_flight,
        region=region,
        progress=progress,
        tls=tls,
        provenance=provenance,
        deadline_s=deadline_s,
        late=late,
        retry_s=retry_s,
    )
    with nullcontext(server) if server is not None else embedded_server() as address:
        return asyncio.run(job.run(address))


@dataclass(frozen=True)
class _Job:
    video: VideoFile
    audio: AudioFile
    out: Path
    twin: str | None
    extend: str
    trim: bool
    quality: str
    in_flight: int
    region: bool
    progress: bool
    tls: TlsOptions | None
    provenance: bool
    deadline_s: float | None
    late: Late
    retry_s: float

    async def run(self, server: str) -> DubReport:
        clock = StageClock()
        frames = changed = done = 0
        pts = 0
        times: dict[int, int] = {}  # pts of the frames under way
        async with Client(server, tls=self.tls, retry_s=self.retry_s) as client:
            twin = self.twin or await self._register(client)
            clock.restart()
            with (
                VideoWriter(self.out, self.video, self.audio, self.quality, self.provenance) as writer,
                tqdm(total=self._expected(), unit="frame", desc="dub", disable=not self.progress) as bar,
            ):
                pictures = self._pictures(times)
                stream = client.stream(
                    pictures if self.deadline_s is None else _paced(pictures),
                    self.audio.speech(),
                    twin=twin,
                    # What a live stream asks the server's room for. Frames bring their own times.
                    fps=min(self.video.fps, MOST_FPS),
                    audio_rate_hz=SAMPLE_RATE_HZ,
                    in_flight=self.in_flight,
                    region=self.region,
                    deadline_s=self.deadline_s,
                    late=self.late,
                    clock=clock,
                )
                try:
                    async for synced in stream:
                        picture = synced.picture
                        assert isinstance(picture, YuvPicture)  # as `_pictures` made it
                        pts = times[synced.index]
                        for index in range(done, synced.index + 1):  # those left out, too
                            times.pop(index)
                        done = synced.index + 1
                        # The writer keeps what it is given: what is repeated has to be a copy.
                        frame = copy_frame(picture.frame) if self.late == "repeat" else picture.frame
                        with clock.measure("encode"):
                            await asyncio.to_thread(writer.write, frame, pts)
                        frames += 1
                        changed += synced.changed
                        bar.update()
                finally:
                    await stream.aclose()
                if self.extend != "none" or self.video.photo:
                    writer.write_audio(None)
        end_s = (pts + self.video.step) * self.video.time_base
        return DubReport(
            out=self.out,
            twin=twin,
            frames=frames,
            changed=changed,
            duration_s=float(end_s),
            stages=clock.stages(frames),
            mark=writer.mark,
            failed_to_sign=writer.unsigned if can_be_signed(self.out) else "",
            notes=tuple([*self._notes(frames, changed, end_s, writer.unsigned), *_trouble(clock)]),
        )

    def _pictures(self, times: dict[int, int]) -> Iterator[TimedFrame]:
        for index, decoded in enumerate(extended(self.video, self.audio.duration_s, self.extend, self.trim)):
            times[index] = decoded.frame.pts = decoded.pts
            yield TimedFrame(self.video.picture(decoded.frame), decoded.pts * self.video.time_base)

    async def _register(self, client: Client) -> Twin:
        try:
            return await client.register(registration_pictures(self.video))
        except BadInput:
            # The person may come into view later: look through the whole video, at its key frames.
            if self.video.photo or self.video.frames_expected <= REGISTRATION_S * self.video.fps:
                raise
            return await client.register(self.video.picture(frame) for frame in self.video.keyframes())

    def _expected(self) -> int | None:
        spoken = math.ceil(self.audio.duration_s * self.video.fps)
        shown = self.video.frames_expected
        if not shown:
            return None
        if self.video.photo:
            return max(1, spoken)
        if self.extend == "none":
            return min(shown, spoken) if self.trim else shown
        return spoken if self.trim else max(shown, spoken)

    def _notes(self, frames: int, changed: int, end_s: Fraction, unsigned: str) -> Iterator[str]:
        if unsigned:
            yield f"{self.out} has a metadata tag that says it is synthetic, but it is not signed: {unsigned}"
        yield from self.video.notes
        if self.video.skipped:
            yield f"{self.video.path}: {self.video.skipped} damaged packets were left out"
        if self.extend == "none" and not self.video.photo and self.audio.duration_s > end_s + Fraction(1, 20):
            yield f"the audio ({float(self.audio.duration_s):.1f} s) was cut at the video's end ({float(end_s):.1f} s)"
        if not changed:
            yield "no face was found in any frame: the picture is unchanged"
        elif changed < frames:
            yield f"{frames - changed} of {frames} frames show no face that can be synced and passed through untouched"


async def _paced(frames: Iterator[TimedFrame]) -> AsyncIterator[TimedFrame]:
    """Frames at their own times, as a camera gives them: it waits for nobody."""
    started_s = time.monotonic()
    while (timed := await asyncio.to_thread(next, frames, None)) is not None:
        await asyncio.sleep(max(0.0, started_s + float(timed.time_s) - time.monotonic()))
        yield timed


def _trouble(clock: StageClock) -> Iterator[str]:
    """What went on between the client and its servers."""
    if clock.late:
        came = clock.late - clock.skipped - clock.repeated
        yield f"{clock.late} frames were late: {came} waited for, {clock.skipped} left out, {clock.repeated} repeated"
    if clock.resent or clock.moved:
        yield f"{clock.resent} requests were sent again, and the server was changed {clock.moved} times: nothing is lost"


def registration_pictures(video: VideoFile) -> Iterator[YuvPicture]:
    """Pictures to register a person from: the video's beginning, evenly thinned to as many as are sent."""
    expected = min(video.frames_expected, math.ceil(REGISTRATION_S * video.fps))
    stride = max(1, math.ceil(expected / REGISTRATION_FRAMES))
    for index, decoded in enumerate(video.frames()):
        if decoded.pts * video.time_base >= REGISTRATION_S:
            return
        if index % stride == 0:
            yield video.picture(decoded.frame)


def embedded_server(twin_store: Path | None = None) -> AbstractContextManager[str]:
    """A server on this machine for as long as the block runs: a context manager that gives its address.

    Raises:
        MissingExtra: the serving part is not installed.
        ServerError: the server does not start.
    """
    return _Embedded(twin_store)


class _Embedded(AbstractContextManager[str]):
    def __init__(self, twin_store: Path | None) -> None:
        self._twin_store = twin_store
        self._server: Any = None

    def __enter__(self) -> str:
        try:
            from insync.ensemble.errors import EnsembleError
            from insync.ensemble.server import EmbeddedServer
        except ImportError as exc:
            raise missing_extra("serve", exc) from exc
        try:
            self._server = EmbeddedServer(twin_store=self._twin_store)
            self._server.start()
        except EnsembleError as exc:
            text = str(exc)
            kind: type[InsyncError] = MissingExtra if "insync[serve]" in text else ServerError
            raise kind(f"no --server was given, and none can be started here: {text}") from exc
        return str(self._server.grpc_url)

    def __exit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.stop(drain=False)  # nobody waits for an answer any more


def missing_extra(extra: str, exc: ImportError) -> MissingExtra:
    """The error for a part that is not installed."""
    return MissingExtra(f"this needs a part that is not installed ({exc.name}): pip install 'insync[{extra}]'")
