"""Draw source and synced frames of one clip side by side: `python samples/side_by_side.py SOURCE SYNCED -o demo.png`.

`--animation demo.webp` shows both moving, too.

Frames are taken at even steps of time, none is picked by hand. The view is cropped to where the two clips differ:
the patch around the mouth, with some face around it. Below stands the waveform of the speech, marked at those times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

COLUMNS = 6
TILE = 300  # pixels, square
GAP = 6  # pixels between tiles
LABEL = 30  # pixels of height for a line of text
WAVE = 110  # pixels of height for the waveform
MARGIN = 2.5  # the view's side over the side of the region that differs
SHRUNK = 8  # differences are looked for on frames this many times smaller
ANIMATED_SIDE = 360  # pixels of each half of the animation, square
ANIMATED_STEP = 2  # of the clip's frames, one in this many
ANIMATED_S = 4.4  # of the clip, from its beginning
ANIMATED_QUALITY = 80  # WebP's
FOREGROUND, BACKGROUND, ACCENT = (40, 40, 40), (255, 255, 255), (200, 110, 30)  # BGR


def frames(path: Path) -> Iterator[Image]:
    """Decode the video of `path`, frame after frame, as BGR uint8 [H, W, 3]."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="bgr24")


def waveform(path: Path, rate_hz: int = 8000) -> NDArray[np.float32]:
    """Decode the first sound track of `path` as mono float32 in [-1, 1]; empty where there is none."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
        parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        parts += resampler.resample(None)
        return np.concatenate([part.to_ndarray()[0] for part in parts])


def compare(source: Path, synced: Path) -> tuple[int, NDArray[np.float32], tuple[int, int]]:
    """Return how many frames both clips have, where they differ on average [h, w], and the frames' (height, width).

    Raises:
        ValueError: the clips have different sizes, or one has no frame.
    """
    count, total, size = 0, None, (0, 0)
    for before, after in zip(frames(source), frames(synced), strict=False):
        if before.shape != after.shape:
            raise ValueError(f"the clips differ in size: {before.shape[1::-1]} and {after.shape[1::-1]}")
        size = before.shape[0], before.shape[1]
        small = (max(1, size[1] // SHRUNK), max(1, size[0] // SHRUNK))
        difference = cv2.resize(cv2.absdiff(before, after), small, interpolation=cv2.INTER_AREA).max(2)
        total = difference.astype(np.float32) if total is None else total + difference
        count += 1
    if total is None:
        raise ValueError("one of the clips has no frame")
    return count, total / np.float32(count), size


def view(difference: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the square (left, top, side) in pixels to show: around what differs, or the middle where nothing does."""
    height, width = size
    side = min(height, width)
    y, x = np.nonzero(difference > max(4.0, 0.35 * float(difference.max())))
    if not len(x):
        return (width - side) // 2, (height - side) // 2, side
    step_x, step_y = width / difference.shape[1], height / difference.shape[0]
    middle_x, middle_y = (x.min() + x.max() + 1) / 2 * step_x, (y.min() + y.max() + 1) / 2 * step_y
    extent = max((x.max() - x.min() + 1) * step_x, (y.max() - y.min() + 1) * step_y)
    side = int(min(side, max(64, MARGIN * extent)))
    left = int(np.clip(middle_x - side / 2, 0, width - side))
    top = int(np.clip(middle_y - side / 2, 0, height - side))
    return left, top, side


def _text(canvas: Image, text: str, x: int, y: int) -> None:
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, FOREGROUND, 1, cv2.LINE_AA)


def _draw_wave(canvas: Image, top: int, samples: NDArray[np.float32], duration_s: float, marks_s: list[float]) -> None:
    """Draw the waveform over the canvas' whole width, with a line where each frame is from."""
    width, middle = canvas.shape[1], top + WAVE // 2
    shown = samples[: max(1, round(duration_s * 8000))]
    for x, part in enumerate(np.array_split(shown, width)):
        reach = int(np.abs(part).max(initial=0.0) * (WAVE // 2 - 4))
        cv2.line(canvas, (x, middle - reach), (x, middle + reach), (185, 185, 185), 1)
    for mark_s in marks_s:
        x = int(mark_s / duration_s * (width - 1))
        cv2.line(canvas, (x, top), (x, top + WAVE - 1), ACCENT, 2)


def draw(source: Path, synced: Path) -> Image:
    """Return the picture as BGR uint8.

    Raises:
        ValueError: the clips cannot be compared.
    """
    count, difference, size = compare(source, synced)
    left, top, side = view(difference, size)
    with av.open(str(synced)) as container:
        rate = float(container.streams.video[0].average_rate or 25)
    chosen = [round((column + 0.5) * (count - 1) / COLUMNS) for column in range(COLUMNS)]
    width = COLUMNS * TILE + (COLUMNS + 1) * GAP
    wave_top = 3 * LABEL + 2 * (TILE + GAP)
    canvas: Image = np.full((wave_top + WAVE + GAP, width, 3), BACKGROUND, np.uint8)
    _text(canvas, "source", GAP, LABEL - 9)
    _text(canvas, "synced", GAP, 2 * LABEL + TILE + GAP - 9)
    wanted = dict(zip(chosen, range(COLUMNS), strict=True)) if len(set(chosen)) == COLUMNS else {0: 0}
    for row, path in enumerate((source, synced)):
        y = LABEL + row * (TILE + GAP + LABEL)
        for index, frame in enumerate(frames(path)):
            if index not in wanted:
                continue
            x = GAP + wanted[index] * (TILE + GAP)
            part = frame[top : top + side, left : left + side]
            shrinks = cv2.INTER_AREA if side > TILE else cv2.INTER_CUBIC
            canvas[y : y + TILE, x : x + TILE] = cv2.resize(part, (TILE, TILE), interpolation=shrinks)
            _text(canvas, f"{index / rate:.2f} s", x + TILE - 74, y - 9)
    _draw_wave(canvas, wave_top, waveform(synced), count / rate, [index / rate for index in wanted])
    return canvas


def animate(source: Path, synced: Path, out: Path) -> None:
    """Write a looping WebP of the source at the left and what was dubbed at the right, over the whole height.

    Raises:
        ValueError: the clips cannot be compared.
    """
    count, difference, (height, width) = compare(source, synced)
    left, _, side = view(difference, (height, width))
    shown = min(height, width)
    left = int(np.clip(left + side / 2 - shown / 2, 0, width - shown))
    with av.open(str(synced)) as container:
        rate = Fraction(container.streams.video[0].average_rate or 25)
    with av.open(str(out), "w", format="webp", options={"loop": "0"}) as container:
        stream = container.add_stream("libwebp_anim", rate=rate / ANIMATED_STEP)
        stream.width, stream.height, stream.pix_fmt = 2 * ANIMATED_SIDE + GAP, ANIMATED_SIDE + LABEL, "yuv420p"
        stream.options = {"quality": str(ANIMATED_QUALITY), "compression_level": "6"}
        for index, pair in enumerate(zip(frames(source), frames(synced), strict=False)):
            if index % ANIMATED_STEP or index >= min(count, ANIMATED_S * rate):
                continue
            canvas: Image = np.full((stream.height, stream.width, 3), BACKGROUND, np.uint8)
            for x, name, frame in zip((0, ANIMATED_SIDE + GAP), ("source", "dubbed"), pair, strict=True):
                part = frame[:shown, left : left + shown]
                size = (ANIMATED_SIDE, ANIMATED_SIDE)
                canvas[LABEL:, x : x + ANIMATED_SIDE] = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
                _text(canvas, name, x + GAP, LABEL - 9)
            picture = av.VideoFrame.from_ndarray(canvas, format="bgr24")
            picture.pts = index // ANIMATED_STEP
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def main() -> int:
    """Read two clips and write the pictures."""
    parser = argparse.ArgumentParser(description="Draw source and synced frames of one clip side by side.")
    parser.add_argument("source", type=Path)
    parser.add_argument("synced", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("demo.png"))
    parser.add_argument("--animation", type=Path, metavar="WEBP", help="write a looping animation of both, too")
    options = parser.parse_args()
    try:
        picture = draw(options.source, options.synced)
        if options.animation:
            animate(options.source, options.synced, options.animation)
    except (ValueError, OSError, av.error.FFmpegError) as error:
        print(f"side_by_side: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if not cv2.imwrite(str(options.out), picture):
        print(f"side_by_side: cannot write {options.out}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
