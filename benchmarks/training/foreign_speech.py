"""How mouths follow speech that was never filmed: `python -m benchmarks.training.foreign_speech CLIPS SPEECH`.

Every clip is dubbed by the served graphs with every file of a folder of speech. The speech judge then says how far the dubbed mouth's aperture
follows what it hears. Files are named LANGUAGE_ANYTHING, as `de_44k.mp3`. A clip is shorter than most speech, so its frames are repeated forwards and
backwards. The strips show consecutive frames, with the words that a speech recognizer hears under them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import av
import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks import reports
from benchmarks.training.drawing import SHOWN_COLUMNS, SHOWN_ROWS
from insync.core.mouth import MouthBasis
from insync.core.spec import SAMPLE_RATE_HZ
from insync.training.data.sequences import read_recordings
from insync.training.data.teacher import model_folder
from insync.training.evaluation.evaluate import Evaluation, Footage, clips_of
from insync.training.metrics.speech_judge import SpeechJudge
from insync.training.metrics.summary import HEARD_LAG, best_lag, lagged

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

REPORT = "foreign_speech"
REPOSITORY = reports.SAMPLES.parent / "model_repository"
SECONDS = 8.0  # of a clip; its twin is registered from the first 40 %
SPOKEN_S = 10.0  # of a file
SHOWN = 20  # consecutive frames in a strip
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "zh": "Chinese", "es": "Spanish", "it": "Italian"}


@dataclass(frozen=True)
class Follows:
    """How well a mouth follows what the judge hears, as correlations of apertures.

    Attributes:
        speech: name of the speech, or of the clip itself.
        clip: name of the clip.
        predicted: of the apertures that the speech part of the network predicts; NaN for filmed mouths.
        dubbed: of the apertures of the dubbed, or filmed, mouth.
        chance: of the same mouth with other speech: that from half its length on.
        lag: frames by which the mouth is behind.
    """

    speech: str
    clip: str
    predicted: float
    dubbed: float
    chance: float
    lag: int


def best(apertures: Floats, expected: Floats) -> tuple[float, int]:
    """Return the best correlation within ±`HEARD_LAG` frames, and the frames by which the mouth is behind; NaN and 0 if one is constant."""
    lag = best_lag(apertures, expected, HEARD_LAG)
    return lagged(apertures, expected, lag), lag


def follows(speech: str, clip: str, apertures: Floats, expected: Floats, predicted: Floats | None = None) -> Follows:
    """Measure a mouth's apertures [N] against those that the judge expects [N]."""
    score, lag = best(apertures, expected)
    before = float("nan") if predicted is None else best(predicted, expected)[0]
    return Follows(speech, clip, before, score, best(apertures, np.roll(expected, len(expected) // 2))[0], lag)


def repeated(footage: Footage, seconds: float) -> Footage:
    """Repeat the frames after the twin's, forwards and backwards, until they last `seconds`; their time begins at 0."""
    last = len(footage.crops) - 1
    step_s = float(np.median(np.diff(footage.times_s)))
    count = max(1, int(seconds / step_s))
    there = np.arange(footage.first, last + 1)
    rows = np.resize(np.concatenate([there, there[-2:0:-1]]), count)
    return replace(
        footage, crops=footage.crops[rows], heads=footage.heads[rows], landmarks=footage.landmarks[rows],
        apertures=footage.apertures[rows], times_s=(np.arange(count) * step_s).astype(np.float32), first=0,
    )  # fmt: skip


class Words:
    """A speech recognizer (Whisper base), for the words under the strips."""

    def __init__(self) -> None:
        from faster_whisper import WhisperModel

        with model_folder("base") as folder:
            self._model = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=2)

    def __call__(self, audio: Floats, language: str) -> list[tuple[str, float, float]]:
        """Return words with their first and last second."""
        known = language if language in LANGUAGES else None
        segments, _ = self._model.transcribe(audio, language=known, word_timestamps=True, beam_size=2)
        return [(word.word.strip(), word.start, word.end) for one in segments for word in one.words or ()]


def _font() -> str:
    """Return the file of a font, with Chinese characters if the system has one."""
    from matplotlib import font_manager

    for name in ("Noto Sans CJK SC", "WenQuanYi Zen Hei"):
        try:
            return str(font_manager.findfont(name, fallback_to_default=False))
        except ValueError:
            continue
    return str(font_manager.findfont("DejaVu Sans"))  # comes with matplotlib


def strip(results: Picture, times_s: Floats, words: Sequence[tuple[str, float, float]]) -> Picture:
    """Return a picture of consecutive frames in two rows, with their words in RGB."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(_font(), 15)
    # The busiest stretch of speech: most words begin in it.
    starts = [start for _, start, _ in words]
    windows = [sum(times_s[i] <= s < times_s[i + SHOWN - 1] for s in starts) for i in range(len(results) - SHOWN)]
    first = int(np.argmax(windows)) if windows else 0
    tiles = []
    for number in range(first, min(first + SHOWN, len(results))):
        crop = results[number][SHOWN_ROWS, SHOWN_COLUMNS]
        said = next((word for word, start, end in words if start <= times_s[number] < end), "")
        tile = Image.new("RGB", (crop.shape[1], crop.shape[0] + 22), "white")
        tile.paste(Image.fromarray(crop), (0, 0))
        ImageDraw.Draw(tile).text((4, crop.shape[0] + 2), said[:16], fill="black", font=font)
        tiles.append(np.asarray(tile))
    while len(tiles) < SHOWN:
        tiles.append(np.full_like(tiles[0], 255))
    half = SHOWN // 2
    return np.vstack([np.hstack(tiles[:half]), np.hstack(tiles[half:])])


def measure(
    evaluation: Evaluation,
    judge: SpeechJudge,
    clips: Sequence[Path],
    speech: dict[str, Floats],
    words: Words,
    strips: Path | None,
) -> tuple[list[Follows], list[Follows], list[str]]:
    """Dub every clip with all speech, and write a strip for each pair in turn; return what was measured of dubs and of filmed mouths, and refusals."""
    dubs, filmed, refused = [], [], []
    heard = {name: words(audio, name.partition("_")[0]) for name, audio in tqdm(speech.items(), desc="words")}
    for number, path in enumerate(tqdm(clips, desc="foreign speech", unit="clip")):
        try:
            footage = evaluation.read(path, SECONDS)
        except (av.error.FFmpegError, ValueError) as error:
            refused.append(str(error))
            continue
        if footage.speaks:
            expected = judge.apertures(footage.sound, footage.times_s)
            filmed.append(follows(path.name, path.name, footage.apertures, expected))
        for turn, (name, audio) in enumerate(speech.items()):
            long = repeated(footage, len(audio) / SAMPLE_RATE_HZ)
            drawing = evaluation.draw(long, audio)
            expected = judge.apertures(audio, long.times_s)
            apertures = evaluation.apertures(drawing.results)
            dubs.append(follows(name, path.name, apertures, expected, drawing.predicted))
            if strips is not None and turn == number % len(speech):  # each clip with another speech
                picture = strip(drawing.results, long.times_s, heard[name])
                target = strips / f"{REPORT}_{name.partition('_')[0]}_{path.stem}.jpg"
                cv2.imwrite(str(target), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    return dubs, filmed, refused


def row(name: str, found: Sequence[Follows]) -> tuple[str, ...]:
    """Return a row of the table: means over several dubs."""
    figures = [[getattr(one, key) for one in found] for key in ("predicted", "dubbed", "chance")]
    means = [fmean(known) if (known := [v for v in values if np.isfinite(v)]) else None for values in figures]
    within = sum(abs(one.lag) <= 1 for one in found)
    return name, str(len(found)), *("–" if mean is None else f"{mean:.2f}" for mean in means), f"{within}/{len(found)}"


def report(dubs: Sequence[Follows], filmed: Sequence[Follows], refused: Sequence[str]) -> list[str]:
    """Return the report's paragraphs."""
    header = ("", "dubs", "predicted", "mouth", "chance", "within ±1 frame")
    rows = [row("filmed people, own speech", filmed), row("**dubs, all**", dubs)]
    languages = dict.fromkeys(one.speech.partition("_")[0] for one in dubs)
    for language in languages:
        rows.append(
            row(LANGUAGES.get(language, language), [one for one in dubs if one.speech.partition("_")[0] == language])
        )
    clips = [
        row(f"`{clip}`", [one for one in dubs if one.clip == clip]) for clip in dict.fromkeys(d.clip for d in dubs)
    ]
    return [
        f"*Mouth*: correlation of the mouth's aperture with what the speech judge hears, at the best of {2 * HEARD_LAG + 1} offsets, over the first {SPOKEN_S:g} s of the speech. "
        "*Predicted*: the same of the aperture that the speech part of the network asks for, before anything is drawn. *Chance*: of the same mouth, judged with "
        f"the speech from half its length on. *Within ±1 frame*: dubs whose best offset is at most one frame. Frames are repeated forwards and backwards. "
        "A judge that has learned from filmed people cannot tell one way to say something from another: not even filmed people reach 1.",
        reports.table(header, rows),
        reports.table(("clip", *header[1:]), clips),
        f"Not dubbed: {'; '.join(refused)}." if refused else "",
    ]


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of clips to dub, which nothing was trained on")
    parser.add_argument("speech", type=Path, help="folder of speech files LANGUAGE_ANYTHING")
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="model repository (default: the checkout's)"
    )
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER, help="folder of the report")
    parser.add_argument("--strips", type=Path, help="folder for strips of consecutive frames (default: none)")
    options = parser.parse_args()
    if options.strips:
        options.strips.mkdir(parents=True, exist_ok=True)
    try:
        samples = int(SPOKEN_S * SAMPLE_RATE_HZ)
        speech = {Path(name).stem: audio[:samples] for name, audio in read_recordings(options.speech).items()}
        evaluation = Evaluation(options.repository)
        basis = MouthBasis.load(options.repository / "lipsync_twin" / "1" / "mouth_basis.npz")
        judge = SpeechJudge(basis.aperture_row)
        dubs, filmed, refused = measure(evaluation, judge, clips_of([options.clips]), speech, Words(), options.strips)
    except (ImportError, OSError, ValueError) as error:
        print(f"{REPORT}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    command = "python -m benchmarks.training.foreign_speech CLIPS SPEECH"
    parts = report(dubs, filmed, refused)
    reports.write(options.out / f"{REPORT}.md", "Speech in six languages, heard by the speech judge", command, parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
