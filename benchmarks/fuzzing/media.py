"""Damaged media files: `python -m benchmarks.fuzzing.media`.

Small videos and sounds in many containers are damaged at random: bits flipped, cut short, parts zeroed, doubled or swapped, another file's head. Each is dubbed through
the embedded server, as video or as audio. A job may succeed, or be refused with one of InSync's errors. Anything else counts: another exception, a minute without
an end, a partial file, more than 2 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from benchmarks import reports
from insync.ensemble.server.embedded import EmbeddedServer

REPORT = "damaged_media.md"
FRAMES = 10
LONGEST_S = 60.0
MOST_BYTES = 2 * 2**30
VIDEOS = {
    "mp4": ("libx264", "aac"), "mov": ("libx264", "pcm_s16le"), "mkv": ("libx264", "aac"), "webm": ("libvpx-vp9", "libopus"),
    "ts": ("libx264", "aac"), "avi": ("mpeg4", "libmp3lame"), "flv": ("flv1", "libmp3lame"), "gif": ("gif", ""),
}  # fmt: skip
SOUNDS = {"wav": "pcm_s16le", "mp3": "libmp3lame", "flac": "flac", "ogg": "libopus", "m4a": "aac"}
PHOTOS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF"}


def originals(folder: Path) -> list[tuple[Path, str]]:
    """Write undamaged files; return each with its role: "video" or "audio"."""
    with av.open(str(reports.SAMPLES / "sample.mp4")) as container:
        images = [f.to_ndarray(format="rgb24") for _, f in zip(range(FRAMES), container.decode(video=0), strict=False)]
    t = np.arange(6_400) / 16_000
    sound = (0.3 * np.sin(2 * np.pi * 300 * t) * (np.sin(2 * np.pi * 4 * t) > 0)).astype(np.float32)
    made = []
    for ending, (video_codec, audio_codec) in VIDEOS.items():
        path = folder / f"video.{ending}"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(video_codec, rate=25)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "rgb8" if ending == "gif" else "yuv420p"
            audio = (
                container.add_stream(audio_codec, rate=44_100 if audio_codec == "libmp3lame" else 48_000, layout="mono")
                if audio_codec
                else None
            )
            for number, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            if audio is not None:
                _write_sound(container, audio, sound)
            container.mux(stream.encode(None))
        made.append((path, "video"))
    for ending, codec in SOUNDS.items():
        path = folder / f"sound.{ending}"
        with av.open(str(path), "w") as container:
            _write_sound(container, container.add_stream(codec, rate=48_000, layout="mono"), sound)
        made.append((path, "audio"))
    for ending, kind in PHOTOS.items():
        path = folder / f"photo.{ending}"
        Image.fromarray(images[0]).save(path, kind)
        made.append((path, "video"))
    return made


def _write_sound(container: Any, stream: Any, sound: np.ndarray[Any, Any]) -> None:
    resampler = av.AudioResampler(format="flt", layout="mono", rate=stream.rate)
    frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
    frame.sample_rate = 16_000
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))


def damaged(data: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return a kind of damage, and the damaged bytes."""
    kind = rng.choice(("bits", "head bits", "cut", "head cut", "zeros", "doubled", "swapped", "other head"))
    result = bytearray(data)
    if kind in ("bits", "head bits"):
        reach = len(result) if kind == "bits" else min(len(result), 512)
        for _ in range(rng.randint(1, 60)):
            result[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del result[rng.randrange(1, len(result)) :]
    elif kind == "head cut":
        del result[: rng.randrange(1, max(2, len(result) // 2))]
    elif kind == "other head":
        count = rng.randrange(8, 512)
        result[:count] = other[:count]
    else:
        first, size = rng.randrange(len(result)), rng.randrange(1, max(2, len(result) // 4))
        part = result[first : first + size]
        if kind == "zeros":
            result[first : first + size] = bytes(len(part))
        elif kind == "doubled":
            result[first:first] = part
        else:
            at = rng.randrange(len(result))
            del result[first : first + size]
            result[at:at] = part
    return kind, bytes(result)


def work(server: str, folder: Path) -> None:
    """Dub the jobs that come in on stdin, a line of JSON each, and answer each with a line on stdout."""
    from insync.client.dub import DubOptions, dub
    from insync.core.errors import InsyncError

    for line in sys.stdin:
        job = json.loads(line)
        out = folder / "out.mp4"
        out.unlink(missing_ok=True)
        options = DubOptions(quality="low", progress=False, trim=True, twin=job["twin"])
        answer = {"outcome": "dubbed", "why": ""}
        try:
            dub(job["video"], job["audio"], out, server=server, options=options)
        except InsyncError as error:
            answer = {"outcome": "refused", "why": f"{type(error).__name__}: {error}"}
            if out.exists() or "\n" in str(error):
                answer["outcome"] = "partial file, or several lines"
        except Exception as error:  # noqa: BLE001  what is looked for
            answer = {"outcome": "traceback", "why": f"{type(error).__name__}: {error}"}
        if list(folder.glob(".*.part")):
            answer["outcome"] = "partial file, or several lines"
        print(json.dumps(answer), flush=True)  # noqa: T201


class Worker:
    """A process that dubs; it is killed and started again when it takes too long or too much."""

    def __init__(self, server: str, folder: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.fuzzing.media", "--work", server, str(folder)]
        self._process: Any = None
        self.peak_bytes = 0

    def __call__(self, job: dict[str, Any]) -> dict[str, str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        over = ""

        def watch() -> None:
            nonlocal over
            until = time.monotonic() + LONGEST_S
            while not done.wait(0.05):
                try:
                    used = psutil.Process(self._process.pid).memory_info().rss
                except psutil.Error:
                    return
                self.peak_bytes = max(self.peak_bytes, used)
                over = "too much memory" if used > MOST_BYTES else "no end" if time.monotonic() > until else ""
                if over:
                    self._process.kill()
                    return

        done = threading.Event()
        watcher = threading.Thread(target=watch)
        watcher.start()
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        done.set()
        watcher.join()
        if not line:
            self._process.wait()
            return {"outcome": over or "crash", "why": f"exit code {self._process.returncode}"}
        answer: dict[str, str] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="number of damaged files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files with an outcome that must not be")
    parser.add_argument("--work", nargs=2, metavar=("SERVER", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / REPORT)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], Path(options.work[1]))
        return 0
    rng = random.Random(options.seed)
    counts: dict[str, Counter[str]] = {}
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as name, EmbeddedServer() as server:
        folder = Path(name)
        files = originals(folder)
        contents = {path: path.read_bytes() for path, _ in files}
        good_video, good_audio = folder / "video.mp4", folder / "sound.wav"
        results = folder / "results"
        results.mkdir()
        worker = Worker(server.grpc_url, results)
        try:
            for number in tqdm(range(options.files), desc="damaged files", unit="file"):
                path, role = files[number % len(files)]
                kind, data = damaged(contents[path], contents[rng.choice(files)[0]], rng)
                broken = folder / f"broken{path.suffix}"
                broken.write_bytes(data)
                job: dict[str, Any] = {"video": str(good_video), "audio": str(good_audio), "twin": None}
                job[role] = str(broken)
                answer = worker(job)
                counts.setdefault(path.suffix[1:], Counter())[answer["outcome"]] += 1
                if answer["outcome"] not in ("dubbed", "refused"):
                    bad.append(f"`{path.suffix[1:]}`, {kind}, number {number}: {answer['outcome']}: {answer['why']}")
                    if options.keep:
                        options.keep.mkdir(parents=True, exist_ok=True)
                        (options.keep / f"{number}{path.suffix}").write_bytes(data)
        finally:
            worker.close()
    outcomes = ["dubbed", "refused", *sorted({o for c in counts.values() for o in c} - {"dubbed", "refused"})]
    rows = [(ending, *(str(count[outcome]) for outcome in outcomes)) for ending, count in counts.items()]
    total = Counter[str]()
    for count in counts.values():
        total += count
    rows.append(("**all**", *(str(total[outcome]) for outcome in outcomes)))
    parts = [
        f"{options.files} files, seed {options.seed}. The worker's memory was at most {worker.peak_bytes / 2**20:.0f} MiB.",
        reports.table(("container", *outcomes), rows),
        "\n".join(f"- {line}" for line in bad),
    ]
    command = f"python -m benchmarks.fuzzing.media --files {options.files} --seed {options.seed}"
    reports.write(options.out, "Damaged media files", command, parts)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
