"""Register a person once, then make them speak many sentences: `python examples/register_once.py CLIP SENTENCE.wav… --out FOLDER`.

The twin's id is stored in a text file, so that the next run needs no registration. All sentences are streamed concurrently
over one connection; each becomes FOLDER/SENTENCE.mp4.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from insync.client import Client, InsyncError, NotFound

RATE_HZ = 16_000
# Marks the file as synthetic; `insync verify` reads it.
COMMENT = "Digital source type: http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def load_speech(path: Path) -> Any:
    """Decode a sound file as int16 [N] at RATE_HZ, mono."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    with av.open(str(path)) as file:
        if not file.streams.audio:
            sys.exit(f"register_once: {path} has no sound; it must be a file with an audio track")
        decoded = [*file.decode(audio=0), None]  # None flushes the resampler
        return np.concatenate([part.to_ndarray()[0] for frame in decoded for part in resampler.resample(frame)])


def footage(clip: Path, count: int | None = None) -> Iterator[Any]:
    """Yield RGB frames of the clip: each once, or `count` of them, in a loop if the clip is shorter."""
    yielded = 0
    while yielded != count:
        with av.open(str(clip)) as file:
            for frame in file.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
                yielded += 1
                if yielded == count:
                    return
        count = count or yielded


async def load_or_register(client: Client, clip: Path, stored: Path) -> str:
    """Return the stored id if the server still has this twin; else register the person in the clip, and store the new id."""
    if stored.exists():
        twin = stored.read_text().strip()
        try:  # sync one silent frame to find out
            async for _ in client.stream(footage(clip, 1), np.zeros(1), twin=twin):
                print(f"twin {twin}, from {stored}")  # noqa: T201
            return twin
        except NotFound:
            print(f"the server has no twin {twin} any more")  # noqa: T201
    twin = await client.register(footage(clip))
    stored.write_text(f"{twin}\n")
    print(f"twin {twin}, registered and stored in {stored}")  # noqa: T201
    return twin


async def speak(client: Client, twin: str, clip: Path, speech: Any, out: Path) -> None:
    """Stream one sentence into a file, which is renamed to `out` when it is complete."""
    with av.open(str(clip)) as file:
        fps = file.streams.video[0].average_rate
    frames = footage(clip, max(1, round(len(speech) / RATE_HZ * fps)))
    unfinished = out.with_suffix(".part.mp4")
    with av.open(str(unfinished), "w") as file:
        file.metadata["comment"] = COMMENT
        video = file.add_stream("libx264", rate=fps, pix_fmt="yuv420p", options={"preset": "veryfast", "crf": "20"})
        audio = file.add_stream("aac", rate=RATE_HZ, layout="mono")
        async for synced in client.stream(frames, speech, twin=twin, fps=fps, audio_rate_hz=RATE_HZ, in_flight=4):
            if synced.index == 0:
                video.height, video.width = synced.image.shape[:2]
                sound = av.AudioFrame.from_ndarray(speech[None], format="s16", layout="mono")
                sound.sample_rate = RATE_HZ
                file.mux([*audio.encode(sound), *audio.encode(None)])
            file.mux(await asyncio.to_thread(video.encode, av.VideoFrame.from_ndarray(synced.image)))
        file.mux(video.encode(None))
    unfinished.replace(out)
    print(out)  # noqa: T201


async def run(options: argparse.Namespace) -> None:
    """Make one twin speak all sentences concurrently."""
    speeches = {options.out / f"{path.stem}.mp4": load_speech(path) for path in options.sentences}
    async with Client(options.server) as client:
        twin = await load_or_register(client, options.clip, options.twin_file)
        await asyncio.gather(*(speak(client, twin, options.clip, speech, out) for out, speech in speeches.items()))


def main() -> None:
    """Parse the command line, and run; report an error in one line."""
    parser = argparse.ArgumentParser(description="Register a person once, then make them speak many sentences.")
    parser.add_argument("clip", type=Path, help="video of the person")
    parser.add_argument("sentences", type=Path, nargs="+", metavar="sentence", help="audio file of a sentence")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="write an .mp4 of each sentence to FOLDER"
    )
    parser.add_argument(
        "--twin-file",
        type=Path,
        default=Path("twin.txt"),
        metavar="FILE",
        help="stores the twin's id (default: %(default)s)",
    )
    parser.add_argument("--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="default: %(default)s")
    options = parser.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        asyncio.run(run(options))
    except (InsyncError, OSError, av.FFmpegError) as exc:
        sys.exit(f"register_once: {exc}")


if __name__ == "__main__":
    main()
