"""The whole job: a video and an audio file in, a video of the same person speaking that audio out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from insync.client.client import REGISTRATION_FRAMES, RETRY_S, Client, Twin
from insync.client.media.extension import EXTENSIONS, extended
from insync.client.media.reader import AudioFile, VideoFile
from insync.client.media.writer import QUALITIES, VideoWriter, carries_display_matrix, check_output
from insync.client.media.yuv import YuvPicture, copy_frame
from insync.client.provenance.manifest import Mark, can_be_signed
from insync.client.streaming.frame_dropping import Late
from insync.client.streaming.pictures import TimedFrame
from insync.client.streaming.stream import StreamOptions, SyncedFrame
from insync.client.streaming.timings import StageClock, Stages
from insync.client.transport.tls import TlsOptions
from insync.core.errors import BadInput
from insync.core.spec import SAMPLE_RATE_HZ

__all__ = ["DubJob", "DubOptions", "DubReport", "dub", "registration_pictures"]

MOST_FPS = Fraction(240)  # that a server admits of one stream
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


@dataclass(frozen=True)
class DubOptions:
    """How a job is done.

    Attributes:
        twin: id of a registered person; None registers the one in the video.
        extend: how the video goes on where the audio is longer: "bounce", "loop", "freeze", or "none" (audio is cut).
        trim: end with the audio where the video is longer.
        quality: "lossless", "high", "medium" or "low".
        in_flight: frames under way at once.
        region: send only the face's surroundings.
        progress: show a progress bar on stderr.
        provenance: mark the output as synthetic. Leave it on, unless you mark it yourself.
        deadline_s: take the video for a camera: its frames come at their own pace, each is wanted so many seconds later.
        late: the policy for a frame that is not there in time, as in `Client.stream`.
        retry_s: for how long frames are sent again while no server answers.
        tls: how to speak TLS with the server; None speaks without.

    Raises:
        BadInput: an option is outside of what is allowed.
    """

    twin: str | None = None
    extend: str = "bounce"
    trim: bool = False
    quality: str = "high"
    in_flight: int = 8
    region: bool = True
    progress: bool = True
    provenance: bool = True
    deadline_s: float | None = None
    late: Late = "wait"
    retry_s: float = RETRY_S
    tls: TlsOptions | None = None

    def __post_init__(self) -> None:
        if self.extend not in EXTENSIONS:
            raise BadInput(f"extend is {self.extend!r}; allowed: {', '.join(EXTENSIONS)}")
        if self.quality not in QUALITIES:
            raise BadInput(f"quality is {self.quality!r}; allowed: {', '.join(QUALITIES)}")
        StreamOptions(in_flight=self.in_flight, deadline_s=self.deadline_s, late=self.late)  # checks these three


def dub(
    video: str | Path, audio: str | Path, out: str | Path, *, server: str, options: DubOptions | None = None
) -> DubReport:
    """Make the person in `video` speak `audio`, and write the result to `out`.

    Not for use inside a running event loop: there, use `Client`.

    Args:
        video, audio, out: as of `DubJob`.
        server: HOST:PORT of a server, or several with commas between them.
        options: how to do it; None takes the defaults.

    Returns:
        What was done, and where the time went.

    Raises:
        InsyncError: see its tree. `NoVideoTrack`, `NoAudioTrack` and the like for files; `BadInput` where no face is
            found to register.
    """
    return DubJob(video, audio, out, options).run(server)


class DubJob:
    """One job on files, checked before any server is needed.

    Where the video is longer than the audio, its rest is spoken to silence: the mouth rests. Frames without a face pass
    through untouched. The output appears when it is whole; a failed job leaves nothing.

    Args:
        video: a video file, or a photo (which becomes a still video at 25 fps).
        audio: any file with an audio track.
        out: .mp4, .m4v, .mov or .mkv; an existing file is replaced.
        options: how to do it; None takes the defaults.

    Raises:
        MediaError: a file cannot be read, or the output cannot be written.
    """

    def __init__(
        self, video: str | Path, audio: str | Path, out: str | Path, options: DubOptions | None = None
    ) -> None:
        self._options = options or DubOptions()
        self._out = Path(out)
        check_output(self._out, Path(video), Path(audio))
        self._video = VideoFile(Path(video), upright=not carries_display_matrix(self._out))
        self._audio = AudioFile(Path(audio))
        self._times: dict[int, int] = {}  # pts of the frames under way

    def run(self, server: str) -> DubReport:
        """Do the job by a server at HOST:PORT, or several with commas between them.

        Raises:
            InsyncError: see its tree.
        """
        return asyncio.run(self._run(server))

    async def _run(self, server: str) -> DubReport:
        options, video = self._options, self._video
        clock = StageClock()
        async with Client(server, tls=options.tls, retry_s=options.retry_s) as client:
            twin = options.twin or await self._register(client)
            clock.restart()
            with VideoWriter(self._out, video, self._audio, options.quality, options.provenance) as writer:
                pictures = self._pictures()
                stream = client.stream(
                    pictures if options.deadline_s is None else _paced(pictures),
                    self._audio.speech(),
                    twin=twin,
                    # What a live stream asks the server's capacity for. Frames bring their own times.
                    fps=min(video.fps, MOST_FPS),
                    audio_rate_hz=SAMPLE_RATE_HZ,
                    in_flight=options.in_flight,
                    region=options.region,
                    deadline_s=options.deadline_s,
                    late=options.late,
                    clock=clock,
                )
                frames, changed, pts = await self._write(stream, writer, clock)
                if options.extend != "none" or video.photo:
                    writer.write_audio(None)
        end_s = (pts + video.step) * video.time_base
        return DubReport(
            out=self._out,
            twin=twin,
            frames=frames,
            changed=changed,
            duration_s=float(end_s),
            stages=clock.stages(frames),
            mark=writer.mark,
            failed_to_sign=writer.unsigned if can_be_signed(self._out) else "",
            notes=tuple([*self._notes(frames, changed, end_s, writer.unsigned), *_trouble(clock)]),
        )

    async def _write(
        self, stream: AsyncGenerator[SyncedFrame, None], writer: VideoWriter, clock: StageClock
    ) -> tuple[int, int, int]:
        """Write every frame of the stream; returns how many, how many of them with a new mouth, and the last one's pts."""
        frames = changed = done = pts = 0
        with tqdm(total=self._expected(), unit="frame", desc="dub", disable=not self._options.progress) as bar:
            try:
                async for synced in stream:
                    picture = synced.picture
                    assert isinstance(picture, YuvPicture)  # as `_pictures` made it
                    pts = self._times[synced.index]
                    for index in range(done, synced.index + 1):  # those left out, too
                        self._times.pop(index)
                    done = synced.index + 1
                    # The writer keeps what it is given: what is repeated has to be a copy.
                    frame = copy_frame(picture.frame) if self._options.late == "repeat" else picture.frame
                    with clock.measure("encode"):
                        await asyncio.to_thread(writer.write, frame, pts)
                    frames += 1
                    changed += synced.changed
                    bar.update()
            finally:
                await stream.aclose()
        return frames, changed, pts

    def _pictures(self) -> Iterator[TimedFrame]:
        video, options = self._video, self._options
        for index, decoded in enumerate(extended(video, self._audio.duration_s, options.extend, options.trim)):
            self._times[index] = decoded.frame.pts = decoded.pts
            yield TimedFrame(video.picture(decoded.frame), decoded.pts * video.time_base)

    async def _register(self, client: Client) -> Twin:
        video = self._video
        try:
            return await client.register(registration_pictures(video))
        except BadInput:
            # The person may come into view later: look through the whole video, at its key frames.
            if video.photo or video.frames_expected <= REGISTRATION_S * video.fps:
                raise
            return await client.register(video.picture(frame) for frame in video.keyframes())

    def _expected(self) -> int | None:
        spoken = math.ceil(self._audio.duration_s * self._video.fps)
        shown = self._video.frames_expected
        if not shown:
            return None
        if self._video.photo:
            return max(1, spoken)
        if self._options.extend == "none":
            return min(shown, spoken) if self._options.trim else shown
        return spoken if self._options.trim else max(shown, spoken)

    def _notes(self, frames: int, changed: int, end_s: Fraction, unsigned: str) -> Iterator[str]:
        video, audio = self._video, self._audio
        if unsigned:
            yield f"{self._out} has a metadata tag that says it is synthetic, but it is not signed: {unsigned}"
        yield from video.notes
        if video.skipped:
            yield f"{video.path}: {video.skipped} damaged packets were left out"
        if self._options.extend == "none" and not video.photo and audio.duration_s > end_s + Fraction(1, 20):
            yield f"the audio ({float(audio.duration_s):.1f} s) was cut at the video's end ({float(end_s):.1f} s)"
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
