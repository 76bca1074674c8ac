"""Make a live camera speak: `python examples/live_camera.py SPEECH [--camera NUMBER or CLIP] [--out FOLDER]`.

SPEECH simulates a microphone: the stream gets its samples in real time. A clip simulates a camera: its frames come at their
own times. Without --out, the frames are shown in a window.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from insync.client import Client, InsyncError, SyncedFrame, TimedFrame

RATE_HZ = 16_000
CHUNK = RATE_HZ // 50  # samples that a microphone delivers at once: 20 ms
REGISTRATION_FRAMES = 50


def load_speech(path: str) -> Any:
    """Decode a sound file as int16 [N] at RATE_HZ, mono."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    with av.open(path) as file:
        if not file.streams.audio:
            sys.exit(f"live_camera: {path} has no sound; it must be a file with an audio track")
        decoded = [*file.decode(audio=0), None]  # None flushes the resampler
        return np.concatenate([part.to_ndarray()[0] for frame in decoded for part in resampler.resample(frame)])


def microphone(speech: Any, start_s: float) -> Iterator[Any]:
    """Yield chunks of the speech in real time, like a microphone that was switched on at `start_s`."""
    for first in range(0, len(speech), CHUNK):
        chunk = speech[first : first + CHUNK]
        time.sleep(max(0.0, start_s + (first + len(chunk)) / RATE_HZ - time.monotonic()))
        yield chunk


def live_frames(camera: Any, is_clip: bool, fps: float, start_s: float, length_s: float) -> Iterator[TimedFrame]:
    """Yield a camera's frames, each with its capture time in seconds after `start_s`.

    The stream requests the next frame only when it has the audio for this one, 120 ms later. So a thread captures the frames,
    to record their true times. If the stream does not request them for longer, it drops the oldest.
    """
    captured: queue.Queue[TimedFrame | None] = queue.Queue()
    ended = threading.Event()

    def capture() -> None:
        while not ended.is_set():
            success, bgr = camera.read()
            time_s = camera.get(cv2.CAP_PROP_POS_MSEC) / 1000 if is_clip else time.monotonic() - start_s
            if not success or time_s >= length_s:
                break
            if is_clip:
                time.sleep(max(0.0, start_s + time_s - time.monotonic()))
            if captured.qsize() > fps * 0.25:
                captured.get()
            captured.put(TimedFrame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), time_s))
        captured.put(None)

    threading.Thread(target=capture, daemon=True).start()
    try:
        yield from iter(captured.get, None)
    finally:
        ended.set()


async def show(synced: SyncedFrame, out: Path | None) -> None:
    """Show one frame in the window, or write it into the folder `out`, named by its time in milliseconds."""
    bgr = cv2.cvtColor(synced.image, cv2.COLOR_RGB2BGR)
    if out:
        await asyncio.to_thread(cv2.imwrite, str(out / f"{round(synced.time_s * 1000):06d}.jpg"), bgr)
    else:
        cv2.imshow("InSync", bgr)
        cv2.waitKey(1)


async def speak(options: argparse.Namespace) -> None:
    """Register the person in front of the camera, then show them speaking the speech until it ends."""
    speech = load_speech(options.speech)
    is_clip = not options.camera.isdigit()
    camera = cv2.VideoCapture(options.camera if is_clip else int(options.camera))
    if not camera.isOpened():
        sys.exit(f"live_camera: camera {options.camera!r} cannot be opened; it must be a camera's number, or a clip")
    async with Client(options.server) as client:
        first = [camera.read() for _ in range(REGISTRATION_FRAMES)]
        twin = await client.register([cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB) for success, bgr in first if success])
        camera.set(cv2.CAP_PROP_POS_FRAMES, 0)  # a clip starts over; a camera ignores this
        fps, start_s, length_s = camera.get(cv2.CAP_PROP_FPS) or 25, time.monotonic(), len(speech) / RATE_HZ
        stream = client.stream(
            live_frames(camera, is_clip, fps, start_s, length_s),
            microphone(speech, start_s),
            twin=twin,
            fps=fps,
            audio_rate_hz=RATE_HZ,
            in_flight=2
            + int(
                fps * options.deadline
            ),  # at least fps × deadline: the frames that a camera delivers within a deadline
            deadline_s=options.deadline,
            late="skip",
        )
        shown = 0
        async for synced in stream:
            await show(synced, options.out)
            shown += 1
    print(f"{shown} frames shown in {length_s:.1f} s; the camera has {fps:g} frames/s")  # noqa: T201


def main() -> None:
    """Parse the command line, and run; report an error in one line."""
    parser = argparse.ArgumentParser(description="Make a live camera speak.")
    parser.add_argument("speech", help="audio file that simulates a microphone")
    parser.add_argument("--camera", default="0", help="number of a camera, or a clip that simulates one (default: 0)")
    parser.add_argument("--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument(
        "--deadline",
        type=float,
        default=0.2,
        metavar="SECONDS",
        help="skip frames that are later than this (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write JPEGs to FOLDER instead of showing a window")
    options = parser.parse_args()
    try:
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
        else:
            cv2.namedWindow("InSync")
        asyncio.run(speak(options))
    except cv2.error:
        sys.exit("live_camera: this OpenCV cannot open windows (opencv-python can, on a desktop); use --out FOLDER")
    except (InsyncError, OSError, av.FFmpegError) as exc:
        sys.exit(f"live_camera: {exc}")


if __name__ == "__main__":
    main()
