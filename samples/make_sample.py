"""Make the sample that InSync ships: a clip of a face, and speech for it to say.

The picture is the portrait of Commodore Grace M. Hopper by James S. Davis, United States Navy, in the public domain, which
comes inside matplotlib's wheel: a face from the front with its mouth at rest. The print's strong colours are toned down to a camera's; a slow hand-held camera movement and
a gentle change of light make a clip of it. espeak-ng speaks a sentence of our own. Run it as

    pip install --no-deps matplotlib    # only its data folder is read; nothing of it is imported
    python samples/make_sample.py

with the espeak-ng program installed. Nothing is random: the same versions of the tools write the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

SENTENCE = "I never said these words. In sync makes a filmed person speak any audio, frame by frame."
VOICE = "en-us+f2"
WORDS_PER_MINUTE = 165

WIDTH, HEIGHT = 1280, 720  # pixels
RATE = 25  # frames per second
DURATION_S = 6.12  # the sentence takes 6.10 s
QUALITY = 21  # x264's constant rate factor

CENTRE = (262.0, 214.0)  # the point of the photograph that the camera looks at, in its pixels
SATURATION = 0.62  # of the photograph's
BLACK, CONTRAST = 20.0, 0.88  # what black becomes, and what a step of brightness becomes
ZOOM = 2.62  # pixels of the clip for one of the photograph: the face is then about 490 pixels wide


def portrait(photo: Path | None = None) -> NDArray[np.uint8]:
    """Return the photograph as BGR uint8 [600, 512, 3], from `photo` or else from the installed matplotlib.

    Raises:
        FileNotFoundError: neither is there.
    """
    if photo is None:
        package = importlib.util.find_spec("matplotlib")
        if package is None or package.origin is None:
            raise FileNotFoundError("matplotlib is not installed: pip install --no-deps matplotlib")
        photo = Path(package.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    image = cv2.imread(str(photo), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f"{photo} is not a readable image")
    return np.asarray(image, dtype=np.uint8)


def toned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the photograph, BGR uint8 [H, W, 3], with the colours and contrast of a camera instead of a print's."""
    picture = image.astype(np.float32)
    grey = picture.mean(axis=2, keepdims=True)
    return np.asarray(np.clip(BLACK + CONTRAST * (grey + SATURATION * (picture - grey)), 0, 255), dtype=np.uint8)


def _sway(time_s: float, *waves: tuple[float, float, float]) -> float:
    """Sum of sine waves, each (amplitude, frequency in Hz, phase in turns): what a hand holding a camera does."""
    return float(sum(a * np.sin(2 * np.pi * (f * time_s + phase)) for a, f, phase in waves))


def camera(time_s: float) -> NDArray[np.float64]:
    """Return the 2×3 similarity from photograph to clip at `time_s`: a slow push in, a pan, a breath of roll."""
    zoom = ZOOM * (1 + 0.045 * (0.5 - 0.5 * np.cos(np.pi * time_s / DURATION_S)) + _sway(time_s, (0.004, 0.31, 0.1)))
    roll = np.deg2rad(_sway(time_s, (0.9, 0.17, 0.0), (0.25, 0.53, 0.4)))
    x = CENTRE[0] + _sway(time_s, (5.0, 0.13, 0.75), (1.2, 0.47, 0.2), (0.3, 1.3, 0.0))
    y = CENTRE[1] + _sway(time_s, (2.5, 0.19, 0.1), (0.8, 0.61, 0.6), (0.25, 1.7, 0.3))
    linear = zoom * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    shift = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2]) - linear @ np.array([x, y])
    return np.hstack([linear, shift[:, None]])


def render(image: NDArray[np.uint8], time_s: float) -> NDArray[np.uint8]:
    """Return the clip's frame at `time_s` as BGR uint8 [HEIGHT, WIDTH, 3]."""
    frame = cv2.warpAffine(
        image, camera(time_s), (WIDTH, HEIGHT), flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101
    ).astype(np.float32)
    # An enlarged photograph is soft: a light unsharp mask brings the eyes and lips back to a camera's crispness.
    frame += 0.35 * (frame - cv2.GaussianBlur(frame, (0, 0), 2.2))
    gain = 1 + _sway(time_s, (0.025, 0.11, 0.9), (0.008, 0.37, 0.2))
    warmth = _sway(time_s, (0.01, 0.09, 0.3))
    frame *= np.array([gain * (1 - warmth), gain, gain * (1 + warmth)], dtype=np.float32)
    return np.asarray(np.clip(np.rint(frame), 0, 255), dtype=np.uint8)


def write_clip(image: NDArray[np.uint8], path: Path) -> None:
    """Write the clip as H.264 in MP4, without sound: what is heard is for InSync to say."""
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        stream.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT: no version of the encoder in the file
        # One thread: with more, x264's output depends on how many cores there are.
        stream.options = {"crf": str(QUALITY), "preset": "slow", "threads": "1"}
        for index in range(round(DURATION_S * RATE)):
            frame = av.VideoFrame.from_ndarray(render(image, index / RATE), format="bgr24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_speech(path: Path) -> None:
    """Let espeak-ng speak the sentence into a mono 16-bit WAV at 22,050 Hz.

    Raises:
        FileNotFoundError: the espeak-ng program is not installed.
    """
    subprocess.run(["espeak-ng", "-v", VOICE, "-s", str(WORDS_PER_MINUTE), "-w", str(path), SENTENCE], check=True)


def main() -> int:
    """Write `sample.mp4` and `speech.wav`."""
    parser = argparse.ArgumentParser(description="Make the sample clip and speech that InSync ships.")
    parser.add_argument("--photo", type=Path, help="grace_hopper.jpg, where matplotlib is not installed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: here)")
    options = parser.parse_args()
    try:
        write_clip(toned(portrait(options.photo)), options.out / "sample.mp4")
        write_speech(options.out / "speech.wav")
    except FileNotFoundError as error:
        print(f"make_sample: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
