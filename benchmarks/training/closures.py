"""Lip closures at p, b and m, of dubs and of filmed people: `python -m benchmarks.training.closures CLIPS --grid FOLDER`.

Dubs: every clip of a folder is dubbed by the served graphs with sentences rich in p, b and m, which espeak-ng says in several languages, with a
woman's and a man's voice. It gives the times of the sounds (`pip install espeakng-loader`). Filmed: sentences of the GRID corpus (Cooke and
others, 2006; CC BY 4.0) as NAME.mpg, with the corpus's own word times beside them as NAME.align. Where GRID has p, b or m, it begins a
word, except in the letter m, which it ends. The same sentences are also dubbed with their own sound.
`insync.training.metrics.closures` explains when lips count as touching.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks import reports
from benchmarks.training.espeak import Espeak, Speech, at, lead
from insync.core.mouth import aperture
from insync.training.evaluation.evaluate import Evaluation, Footage, clips_of
from insync.training.metrics.closures import TOUCHING, Gaps, Sound, closures_of, gaps, share_touching

Floats = npt.NDArray[np.float32]

REPORT = "closures.md"
REPOSITORY = reports.SAMPLES.parent / "model_repository"
SENTENCES = {
    "en": "My mom may bake a big apple pie. Bob and Pam keep a map by the lamp. Please bring me a cup, but pay me back.",
    "de": "Papa und Mama haben am Abend lieber Pilze. Bitte bleib bei mir. Im Baum am Bach piepen bunte Amseln.",
    "fr": "Papa et maman boivent un bon potage. Ma belle amie porte un petit bouquet. Il pleut beaucoup, mais pas ici.",
    "es": "Mi papá compra un poco de pan. Mamá me prepara una sopa buena. Pepe también viene por el campo.",
    "cmn": "妈妈买面包。爸爸跑步，不怕冰冷。朋友陪我爬山，每天都忙。",
    "it": "Il bambino beve troppo, la mamma prepara la pappa. Il papà compra pane buono. Mi piace molto il mare.",
}
VARIANTS = ("f2", "m3")  # a woman's and a man's
VOICES = [f"{language}+{VARIANTS[(i + j) % 2]}" for j in range(2) for i, language in enumerate(SENTENCES)]
PER_CLIP = 3  # voices that a clip is dubbed with, so that all take few minutes; the next clip has the next voices
SECONDS = 8.0  # of a clip; it is dubbed after the first 40 %, which its twin is registered from
GRID_SENTENCES = 16
GRID_CLOSURES = 2  # that a sentence has at least
UNITS_PER_S = 25_000  # GRID's word times
STOP_S = 0.08  # of a word's start or end that is its p, b or m
TOLERANCES = (1, 2)  # frames


def grid_sounds(path: Path) -> list[Sound]:
    """Return what a file of GRID's word times says: its words, with the closures in them as sounds p, b and m."""
    sounds = []
    for line in path.read_text().splitlines():
        first, last, word = line.split()
        start_s, end_s = int(first) / UNITS_PER_S, int(last) / UNITS_PER_S
        if word in ("sil", "sp"):
            sounds.append(Sound("", start_s, end_s))
        elif word == "m":
            sounds += [
                Sound("ɛ", start_s, max(start_s, end_s - STOP_S)),
                Sound("m", max(start_s, end_s - STOP_S), end_s),
            ]
        elif word[0] in "pb":
            sounds += [Sound(word[0], start_s, start_s + STOP_S), Sound("…", start_s + STOP_S, end_s)]
        else:
            sounds.append(Sound("…", start_s, end_s))
    return sounds


def measured(apertures: Floats, resting: float, times_s: Floats, sounds: Sequence[Sound]) -> dict[int, Gaps]:
    """Measure the gaps with every tolerance."""
    return {tolerance: gaps(apertures, resting, times_s, sounds, tolerance) for tolerance in TOLERANCES}


def row(name: str, found: Sequence[dict[int, Gaps]]) -> tuple[str, ...]:
    """Return a row of the table from what was measured in several clips."""
    # Each kind of gap over all clips, for each tolerance.
    pooled = [
        Gaps(
            *(np.concatenate([np.zeros(0, np.float32), *(one[tolerance][kind] for one in found)]) for kind in range(3))
        )
        for tolerance in TOLERANCES
    ]
    shares = [[percent(share_touching(kind)) for kind in one] for one in pooled]
    first = pooled[0]
    typical = [
        f"{100 * float(np.nanmedian(kind)):.1f}" if np.isfinite(kind).any() else "–"
        for kind in (first.closures, first.elsewhere)
    ]
    return name, str(int(np.isfinite(first.closures).sum())), *shares[0], *typical, *shares[1]


def percent(share: float) -> str:
    """Return a share as a table's cell."""
    return f"{share:.0%}" if np.isfinite(share) else "–"


def dubs(
    evaluation: Evaluation, clips: Iterable[Path], speech: dict[str, Speech]
) -> tuple[dict[str, list[dict[int, Gaps]]], dict[str, list[dict[int, Gaps]]], list[str]]:
    """Dub clips with synthetic speech; return what was measured for each voice and each clip, and the clips that were refused."""
    by_voice: dict[str, list[dict[int, Gaps]]] = {voice: [] for voice in speech}
    by_clip: dict[str, list[dict[int, Gaps]]] = {}
    refused, voices = [], list(speech)
    for path in tqdm(list(clips), desc="dubs", unit="clip"):
        try:
            footage = evaluation.read(path, SECONDS)
        except (av.error.FFmpegError, ValueError) as error:
            refused.append(str(error))
            continue
        resting, times_s = aperture(evaluation.neutral(footage)), footage.times_s[footage.first :]
        for voice in (voices[(PER_CLIP * len(by_clip) + k) % len(voices)] for k in range(PER_CLIP)):
            audio, sounds = speech[voice]
            drawing = evaluation.draw(footage, lead(audio, float(times_s[0])))
            found = measured(evaluation.apertures(drawing.results), resting, times_s, at(sounds, float(times_s[0])))
            by_voice[voice].append(found)
            by_clip.setdefault(path.name, []).append(found)
    return by_voice, by_clip, refused


def filmed(evaluation: Evaluation, grid: Path) -> tuple[list[dict[int, Gaps]], list[dict[int, Gaps]]]:
    """Measure GRID's sentences as they were filmed, and dubbed with their own sound.

    Raises:
        ValueError: the folder has no sentence with a closure whose clip shows a face.
    """
    known = [path for path in sorted(grid.glob("*.mpg")) if path.with_suffix(".align").is_file()]
    # Every second one: `TOUCHING` was found with sentences among the others.
    rich = [path for path in known[1::2] if len(closures_of(grid_sounds(path.with_suffix(".align")))) >= GRID_CLOSURES]
    step = max(1, len(rich) // GRID_SENTENCES)
    real: list[dict[int, Gaps]] = []
    dubbed: list[dict[int, Gaps]] = []
    for path in tqdm(rich[::step][:GRID_SENTENCES], desc="GRID", unit="sentence"):
        try:
            footage: Footage = evaluation.read(path, SECONDS)
        except (av.error.FFmpegError, ValueError):
            continue
        sounds = grid_sounds(path.with_suffix(".align"))
        resting = aperture(evaluation.neutral(footage))
        real.append(measured(footage.apertures, resting, footage.times_s, sounds))
        # Dubbed from the start: the sentences are short. The twin still has only the frames of the first 40 %.
        drawing = evaluation.draw(replace(footage, first=0), footage.sound)
        dubbed.append(measured(evaluation.apertures(drawing.results), resting, footage.times_s, sounds))
    if not real:
        raise ValueError(f"no sentence of GRID in {grid.name}: it must hold files NAME.mpg and NAME.align")
    return real, dubbed


def report(rows: Sequence[Sequence[str]], clips: Sequence[Sequence[str]], refused: Sequence[str]) -> list[str]:
    """Return the report's paragraphs."""
    first, second = TOLERANCES
    header = (
        "", "closures", f"touching ±{first}", f"random ±{first}", f"elsewhere ±{first}", "gap at closures", "gap elsewhere",
        f"touching ±{second}", f"random ±{second}", f"elsewhere ±{second}",
    )  # fmt: skip
    return [
        f"*Touching*: share of the closures, the sounds p, b and m, at which the lips touch within ±{first} or ±{second} frames: the aperture comes down to "
        f"at most {100 * TOUCHING:g} % of the distance between the outer eye corners above the resting one. *Random*: the same share at random "
        "moments of the same speech without its pauses. *Elsewhere*: at those of them that share no frame with a closure. The more *touching* exceeds both, the better the lips close where they should. Sentences as rich in closures as those of the dubs have few moments *elsewhere*. "
        f"*Gap*: median of the smallest aperture within ±{first} frame above the resting one, in % of the distance between the eye corners.",
        reports.table(header, rows),
        f"*Filmed* and *dubbed with their own sound*: the same sentences of one man, GRID's s1, with the corpus's own word times; {STOP_S * 1000:.0f} ms at the start "
        "or end of a word are its closure. The speech part of the weights may have been trained on his voice. His lips are often nearly closed while he speaks, which makes his shares at "
        "random moments high. Other rows: synthetic speech by espeak-ng, which sounds less like a person than any "
        f"speech that a user would dub with. {PER_CLIP} voices for each clip, in turn.",
        reports.table(("clip", *header[1:]), clips),
        f"Not dubbed: {'; '.join(refused)}." if refused else "",
    ]


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of clips to dub, which nothing was trained on")
    parser.add_argument("--grid", type=Path, help="folder of GRID's sentences NAME.mpg and word times NAME.align")
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="model repository (default: the checkout's)"
    )
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / REPORT)
    options = parser.parse_args()
    try:
        espeak = Espeak()
        speech = {voice: espeak(SENTENCES[voice.partition("+")[0]], voice) for voice in VOICES}
        evaluation = Evaluation(options.repository, threads=1)
        rows = []
        if options.grid:
            real, dubbed = filmed(evaluation, options.grid)
            rows += [row("filmed", real), row("dubbed with their own sound", dubbed)]
        by_voice, by_clip, refused = dubs(evaluation, clips_of([options.clips]), speech)
    except (ImportError, OSError, ValueError) as error:
        print(f"closures: {error}", file=sys.stderr)  # noqa: T201
        return 1
    rows.append(row("**dubbed, all**", [one for found in by_voice.values() for one in found]))
    for part in (*SENTENCES, *VARIANTS):
        found = [one for voice, several in by_voice.items() if part in voice.split("+") for one in several]
        rows.append(row({"f2": "woman's voices", "m3": "man's voices"}.get(part, part), found))
    clips = [row(f"`{name}`", found) for name, found in by_clip.items()]
    command = "python -m benchmarks.training.closures CLIPS" + (" --grid FOLDER" if options.grid else "")
    reports.write(options.out, "Lips that touch at p, b and m", command, report(rows, clips, refused))
    return 0


if __name__ == "__main__":
    sys.exit(main())
