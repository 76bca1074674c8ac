"""Dubbing of files: from a video and an audio file to a video of the same person speaking that audio."""

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
from insync.client.media.audio_reader import AudioFile
from insync.client.media.extension import EXTENSIONS, extended, filled
from insync.client.media.reader import VideoFile
from insync.client.media.scenes import SMALL, Scenes
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

MAX_FPS = Fraction(240)  # that a server admits for one stream
CHROMA = ("420", "source")
REGISTRATION_S = 24  # of the video's beginning are used to register; twice what a twin needs


@dataclass(frozen=True)
class DubReport:
    """The result of a dub.

    Attributes:
        out: path of the written file.
        twin: id of the person's twin, as given or newly registered.
        frames: number of frames written.
        changed: number of frames with a new mouth; the others passed through unchanged.
        duration_s: duration of the written video, in seconds.
        stages: mean time of each stage in ms per frame, and counters of requests and late frames.
        mark: how the file is marked as synthetic: `Mark.SIGNED`, `TAGGED` or `NONE`.
        failed_to_sign: the reason why a file that could have been signed is not; empty if it is signed, or should not be.
        notes: messages for the user, such as conversions, cut audio, frames without a face, and late frames.
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
        """Total wall time of each stage over the whole job, in seconds, by the stage's name."""
        return self.stages.totals_s


@dataclass(frozen=True)
class DubOptions:
    """Options of a dub.

    Attributes:
        twin: id of a registered person; None registers the person in the video.
        extend: if the audio is longer, the video plays backwards and forwards in turn ("bounce"), starts again ("loop"),
            repeats its last frame ("freeze"), or ends and the audio is cut ("none").
        trim: if the video is longer, end with the audio; otherwise the rest of the video has a resting mouth.
        quality: "lossless" (every pixel outside the mouth stays exactly the same), "high", "medium" or "low".
        in_flight: maximum number of frames in flight, 1 to 256. With `deadline_s`, it should be at least the video's frame
            rate × `deadline_s`.
        region: send only the face's surroundings; False sends whole frames.
        progress: show a progress bar on stderr.
        provenance: mark the output as synthetic, with a signed C2PA manifest (.mp4, .m4v, .mov) and a metadata tag. Leave it
            on, unless you mark the output yourself.
        deadline_s: None dubs as fast as possible. A number simulates a live camera: frames are read at their own times, and
            each must be synced within so many seconds, above 0 and up to 60, after it was read and its audio arrived.
        late: the policy for frames that miss the deadline: "wait", "skip" or "repeat", as in `Client.stream`. Only with
            `deadline_s`.
        retry_s: seconds for which requests are sent again while no server responds.
        tls: certificates and keys for TLS with the server; None connects without TLS.
        video_track: number of the video's video track, from 1; None takes the file's default one.
        audio_track: number of the audio file's audio track, likewise.
        chroma: "420" writes 4:2:0 with even sides, which every player shows; "source" keeps the source's form, as "lossless"
            always does.

    Raises:
        BadInput: an option is not allowed.
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
    video_track: int | None = None
    audio_track: int | None = None
    chroma: str = "420"

    def __post_init__(self) -> None:
        if self.extend not in EXTENSIONS:
            raise BadInput(f"extend is {self.extend!r}; it must be one of {', '.join(EXTENSIONS)}")
        if self.quality not in QUALITIES:
            raise BadInput(f"quality is {self.quality!r}; it must be one of {', '.join(QUALITIES)}")
        if self.chroma not in CHROMA:
            raise BadInput(f"chroma is {self.chroma!r}; it must be one of {', '.join(CHROMA)}")
        StreamOptions(in_flight=self.in_flight, deadline_s=self.deadline_s, late=self.late)  # checks these three


def dub(
    video: str | Path, audio: str | Path, out: str | Path, *, server: str, options: DubOptions | None = None
) -> DubReport:
    """Make the person in `video` speak `audio`, and write the result to `out`.

    Do not call it inside a running event loop; use `Client` there.

    Args:
        video: a video file, or a photo, which becomes a still video at 25 fps.
        audio: any file with an audio track.
        out: .mp4, .m4v, .mov or .mkv; an existing file is replaced. Size, frame rate, rotation and colours are the video's.
        server: HOST:PORT of a server, or several separated by commas.
        options: options of the dub; None uses the defaults.

    Returns:
        The report: what was written, its marks, and the time of each stage.

    Raises:
        MediaError: a file cannot be read, or `out` cannot be written; see its subclasses.
        BadInput: no face was found to register, an audio sample is not finite, or `out` is one of the inputs.
        NotFound: no twin has the given id.
        ServerUnavailable, ServerTimeout, Overloaded: no server responds or has capacity in time.
        InsyncError: any other failure. No incomplete file is left behind.
    """
    return DubJob(video, audio, out, options).run(server)


class DubJob:
    """A dub of files whose inputs are checked before a server is needed; `dub` is the short form.

    If the video is longer than the audio, the mouth rests after the audio's end, unless `trim` is set. Frames without a face
    pass through unchanged. The output appears once it is complete; a failed job leaves no file.

    Args:
        video: a video file, or a photo, which becomes a still video at 25 fps.
        audio: any file with an audio track. It is decoded once here, to find its exact length.
        out: .mp4, .m4v, .mov or .mkv; an existing file is replaced.
        options: options of the dub; None uses the defaults.

    Raises:
        MediaError: a file cannot be read, or the output cannot be written; see its subclasses.
        BadInput: an audio sample is not finite, or `out` is one of the inputs.
    """

    def __init__(
        self, video: str | Path, audio: str | Path, out: str | Path, options: DubOptions | None = None
    ) -> None:
        self._options = options or DubOptions()
        self._out = Path(out)
        check_output(self._out, Path(video), Path(audio))
        self._video = VideoFile(
            Path(video),
            upright=not carries_display_matrix(self._out),
            track=self._options.video_track,
            playable=self._options.chroma == "420" and self._options.quality != "lossless",
        )
        self._audio = AudioFile(Path(audio), self._options.audio_track)
        self._times: dict[int, int] = {}  # pts of the frames in flight
        self._added = self._cuts = 0

    def run(self, server: str) -> DubReport:
        """Run the job on a server, and write the output. Do not call it inside a running event loop.

        Args:
            server: HOST:PORT of a server, or several separated by commas.

        Raises:
            InsyncError: as in `dub`.
        """
        return asyncio.run(self._run(server))

    async def _run(self, server: str) -> DubReport:
        options, video = self._options, self._video
        clock = StageClock()
        async with Client(server, tls=options.tls, retry_s=options.retry_s) as client:
            twin = options.twin or await self._register(client)
            clock.restart()
            with VideoWriter(
                self._out,
                video,
                self._audio,
                options.quality,
                options.provenance,
                self._audio.duration_s if options.trim else None,
            ) as writer:
                pictures = self._pictures()
                stream = client.stream(
                    pictures if options.deadline_s is None else _paced(pictures),
                    self._audio.speech(),
                    twin=twin,
                    # The rate for which a live stream claims capacity. Frames have their own times.
                    fps=min(video.fps, MAX_FPS),
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
            notes=tuple(
                [*self._notes(frames, changed, end_s, writer.unsigned), *writer.notes, *_failover_notes(clock)]
            ),
        )

    async def _write(
        self, stream: AsyncGenerator[SyncedFrame, None], writer: VideoWriter, clock: StageClock
    ) -> tuple[int, int, int]:
        """Write every frame of the stream; return how many, how many of them with a new mouth, and the last one's pts."""
        frames = changed = done = pts = 0
        with tqdm(total=self._expected(), unit="frame", desc="dub", disable=not self._options.progress) as bar:
            try:
                async for synced in stream:
                    picture = synced.picture
                    assert isinstance(picture, YuvPicture)  # as `_pictures` made it
                    pts = self._times[synced.index]
                    for index in range(done, synced.index + 1):  # includes skipped frames
                        self._times.pop(index)
                    done = synced.index + 1
                    # The writer keeps the frame, so a frame that may be repeated has to be copied.
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
        lead = round(video.lead_s / video.time_base)
        until_s, scenes = self._audio.duration_s - video.lead_s, Scenes()
        frames = extended(video, until_s, options.extend, options.trim)
        for index, (decoded, added) in enumerate(filled(frames, video, until_s)):
            self._added += added
            picture = video.picture(decoded.frame)
            cut = not added and scenes.cut(picture.small(SMALL))
            self._cuts += cut and index > 0
            pts = decoded.pts + lead
            self._times[index] = decoded.frame.pts = pts
            yield TimedFrame(picture, pts * video.time_base, cut)

    async def _register(self, client: Client) -> Twin:
        video = self._video
        try:
            return await client.register(registration_pictures(video))
        except BadInput:
            # The person may appear later: try the key frames of the whole video.
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
            yield f"{self._out} has a metadata tag that marks it as synthetic, but it is not signed: {unsigned}"
        yield from video.notes
        yield from audio.notes
        if video.mended:
            yield f"{video.path}: {video.mended} frames had no time, or a wrong one: they follow at the usual distance"
        if video.skipped:
            yield f"{video.path}: {video.skipped} damaged packets were skipped"
        if self._added:
            yield f"{self._added} frames were added where the video holds a picture while somebody speaks"
        if self._cuts:
            yield f"{self._cuts} cuts to another shot were found: whoever is seen after one gets the mouth of the person who was registered"
        if self._options.extend == "none" and not video.photo and audio.duration_s > end_s + Fraction(1, 20):
            yield f"the audio ({float(audio.duration_s):.1f} s) was cut at the video's end ({float(end_s):.1f} s)"
        if not changed:
            yield "no face was found in any frame: the video is unchanged"
        elif changed < frames:
            yield f"{frames - changed} of {frames} frames show no face that can be synced and passed through unchanged"


async def _paced(frames: Iterator[TimedFrame]) -> AsyncIterator[TimedFrame]:
    """Yield frames at their own times, like a camera."""
    started_s = time.monotonic()
    while (timed := await asyncio.to_thread(next, frames, None)) is not None:
        await asyncio.sleep(max(0.0, started_s + float(timed.time_s) - time.monotonic()))
        yield timed


def _failover_notes(clock: StageClock) -> Iterator[str]:
    """Yield notes on late frames, retries and changes of server."""
    if clock.late:
        waited = clock.late - clock.skipped - clock.repeated
        yield f"{clock.late} frames were late: {waited} waited for, {clock.skipped} skipped, {clock.repeated} repeated"
    if clock.resent or clock.moved:
        yield f"{clock.resent} requests were sent again, and the server was changed {clock.moved} times; no frame was lost"


def registration_pictures(video: VideoFile) -> Iterator[YuvPicture]:
    """Yield pictures to register a person from: frames of the first 24 s, sampled evenly, at most as many as are sent."""
    expected = min(video.frames_expected, math.ceil(REGISTRATION_S * video.fps))
    stride = max(1, math.ceil(expected / REGISTRATION_FRAMES))
    for index, decoded in enumerate(video.frames()):
        if decoded.pts * video.time_base >= REGISTRATION_S:
            return
        if index % stride == 0:
            yield video.picture(decoded.frame)
