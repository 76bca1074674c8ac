"""The base install against a real server: it registers and streams without OpenCV, PyAV, tritonclient and the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from insync.client.media.reader import VideoFile
from insync.ensemble.server.embedded import EmbeddedServer

ABSENT = ("cv2", "av", "tqdm", "c2pa", "cryptography", "tritonclient", "onnxruntime", "numba", "nvidia", "psutil")
PROGRAM = """
import asyncio, sys
blocked, server, source, out = sys.argv[1].split(","), *sys.argv[2:]
for name in blocked:
    sys.modules[name] = None  # importing it fails
import numpy as np
from insync.client import Client

async def main():
    frames = np.load(source)
    t = np.arange(int(len(frames) / 25 * 44_100)) / 44_100
    audio = (0.4 * np.sin(2 * np.pi * 180 * t) * (np.sin(2 * np.pi * 3 * t) > 0)).astype(np.float32)
    async with Client(server) as client:
        twin = await client.register(frames)
        stream = client.stream(list(frames), audio, twin=twin, fps=25, audio_rate_hz=44_100, in_flight=1)
        np.save(out, np.stack([synced.image async for synced in stream]))

asyncio.run(main())
print(",".join(sorted(name for name in blocked if sys.modules.get(name) is not None)))
"""


@pytest.fixture(scope="module")
def frames(sample_clip: Path) -> NDArray[np.uint8]:
    video = VideoFile(sample_clip)
    pictures = (video.picture(decoded.frame).rgb() for decoded in video.frames())
    return np.stack([picture for _, picture in zip(range(12), pictures, strict=False)])


def run(blocked: tuple[str, ...], server: str, frames: NDArray[np.uint8], folder: Path) -> NDArray[np.uint8]:
    np.save(folder / "frames.npy", frames)
    out = folder / f"out{len(blocked)}.npy"
    line = [sys.executable, "-c", PROGRAM, ",".join(blocked) or "none", server, str(folder / "frames.npy"), str(out)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    received: NDArray[np.uint8] = np.load(out)
    return received


def test_it_registers_and_streams(server: EmbeddedServer, frames: NDArray[np.uint8], tmp_path: Path) -> None:
    thin = run(ABSENT, server.grpc_url, frames, tmp_path)
    whole = run((), server.grpc_url, frames, tmp_path)
    assert thin.shape == whole.shape == frames.shape
    changed = (thin != frames).any(axis=(0, 3))
    assert 0.005 < changed.mean() < 0.2  # the mouth, and nothing else
    # JPEGs by Pillow and by OpenCV, and blends by NumPy and by OpenCV: rounding apart, the same pictures.
    difference = np.abs(thin.astype(int) - whole)
    assert difference.mean() < 0.1
    assert np.percentile(difference[:, changed], 99) <= 8
