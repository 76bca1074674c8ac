"""What difficult sound does to the mouth: `python -m benchmarks.training.difficult_sound SPEECH MUSIC`.

Speech that is quiet, clipped, whispered or has music under it must move the mouth like the clean speech does; music and noise alone must leave it
nearly at rest. Measured on the mouth that the served network asks for, before anything is drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from benchmarks import reports
from insync.core.mouth import MouthBasis
from insync.core.spec import SAMPLE_RATE_HZ
from insync.ensemble.models.log_mel import LogMel
from insync.network.served import read_weights
from insync.training.data.sequences import NOTHING, UNHEARD, Spoken, read_recordings
from insync.training.metrics.speech_judge import SpeechJudge
from insync.training.metrics.summary import correlation
from insync.training.trainers.speech import SpeechToMouth, predict

Floats = npt.NDArray[np.float32]

REPORT = "difficult_sound.md"
REPOSITORY = reports.SAMPLES.parent / "model_repository"
STEP_S = 0.02
WHISPER_HOP = 128  # samples


def decibels(value: float) -> float:
    """Return the factor of an amplitude."""
    return float(10 ** (value / 20))


def whispered(audio: Floats) -> Floats:
    """Return speech without its voice: noise with the speech's smoothed spectrum, louder above 1 kHz, as whispering is."""
    size = 4 * WHISPER_HOP
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    starts = range(0, max(1, len(audio) - size), WHISPER_HOP)
    noise = np.random.default_rng(0).standard_normal(len(audio) + size).astype(np.float32)
    result = np.zeros(len(audio) + size, np.float32)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    tilt = np.clip(hertz / 1000, 0.1, 1) ** 0.5
    smooth = np.hanning(13) / np.hanning(13).sum()  # wider than the distance of a voice's harmonics
    for start in starts:
        spectrum = np.abs(np.fft.rfft(audio[start : start + size] * window))
        envelope = np.convolve(spectrum, smooth, "same") * tilt
        drawn = np.fft.rfft(noise[start : start + size] * window)
        part = np.fft.irfft(envelope * drawn / (np.abs(drawn).mean() + 1e-9), size)
        result[start : start + size] += (part * window).astype(np.float32)
    return np.asarray(0.3 * result[: len(audio)] / max(np.abs(result).max(), 1e-6), np.float32)


def telephone(audio: Floats) -> Floats:
    """Return the band from 300 to 3,400 Hz."""
    spectrum, hertz = np.fft.rfft(audio), np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(spectrum * ((hertz > 300) & (hertz < 3400)), len(audio)).astype(np.float32)


def echoing(audio: Floats) -> Floats:
    """Return speech in a large room: 0.5 s of reverberation, at half the level of the direct sound."""
    rng = np.random.default_rng(0)
    length = SAMPLE_RATE_HZ // 2
    room = rng.standard_normal(length) * decibels(-60) ** (np.arange(length) / length)
    room[:80] = 0
    size = 2 ** int(np.ceil(np.log2(len(audio) + length)))
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(room, size), size)[: len(audio)]
    return np.asarray(audio + 0.5 * wet * audio.std() / max(wet.std(), 1e-9), np.float32)


def mixed(audio: Floats, other: Floats, below_db: float) -> Floats:
    """Return speech with other sound, so many dB below it."""
    other = np.resize(other, len(audio))
    return np.asarray(audio + other * decibels(-below_db) * audio.std() / max(float(other.std()), 1e-9), np.float32)


def report(
    apertures: Callable[[Floats], Floats], judge: SpeechJudge, speech: Sequence[Floats], music: Sequence[Floats]
) -> list[str]:
    """Measure everything; return the report's paragraphs."""
    noise = np.random.default_rng(1).standard_normal(SAMPLE_RATE_HZ * 10).astype(np.float32)
    changes: dict[str, Callable[[Floats, int], Floats]] = {
        "clean": lambda audio, _: audio,
        "30 dB quieter": lambda audio, _: audio * decibels(-30),
        "clipped, 20 dB too loud": lambda audio, _: np.clip(audio * decibels(20), -1, 1).astype(np.float32),
        "whispered": lambda audio, _: whispered(audio),
        "telephone": lambda audio, _: telephone(audio),
        "in a large room": lambda audio, _: echoing(audio),
        "music 10 dB below": lambda audio, i: mixed(audio, music[i % len(music)], 10),
        "music as loud": lambda audio, i: mixed(audio, music[i % len(music)], 0),
        "white noise 10 dB below": lambda audio, _: mixed(audio, noise, 10),
    }
    clean = [apertures(audio) for audio in speech]
    expected = [
        judge.apertures(audio, (np.arange(len(one)) * STEP_S).astype(np.float32))
        for audio, one in zip(speech, clean, strict=True)
    ]
    rows = []
    for name, change in changes.items():
        heard = [apertures(change(audio, number)) for number, audio in enumerate(speech)]
        like = [correlation(a, b) for a, b in zip(heard, clean, strict=True)]
        judged = [correlation(a, b) for a, b in zip(heard, expected, strict=True)]
        moved = [float(a.std() / b.std()) for a, b in zip(heard, clean, strict=True)]
        rows.append((name, *(f"{fmean(values):.2f}" for values in (like, moved, judged))))
    usual, rest = fmean(float(one.std()) for one in clean), float(apertures(np.zeros(32_000, np.float32)).mean())
    alone = [(name, sound) for name, sound in (("music alone", music), ("white noise alone", [0.1 * noise]))]
    for name, sounds in alone:
        heard = [apertures(np.asarray(sound[: 20 * SAMPLE_RATE_HZ])) for sound in sounds]
        opened = fmean(float(one.mean()) - rest for one in heard) / usual
        rows.append((name, "–", f"{fmean(float(one.std()) for one in heard) / usual:.2f}", f"opens by {opened:+.2f}"))
    return [
        "*Like clean*: correlation of the predicted aperture with that of the clean speech. *Moves*: its standard deviation, as a share of that of the clean speech. "
        "*Judged*: its correlation with what the speech judge hears in the clean speech, at no offset. *Opens by*: how much wider than in silence the mouth "
        f"is on average, in the same unit. Means over {len(speech)} files of speech and {len(music)} of music; the speech network has learned with other parts of such music.",
        reports.table(("sound", "like clean", "moves", "judged"), rows),
    ]


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder of speech")
    parser.add_argument("music", type=Path, help="folder of music without a voice")
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="model repository (default: the checkout's)"
    )
    parser.add_argument("-o", "--out", type=Path, default=reports.FOLDER / REPORT)
    options = parser.parse_args()
    try:
        speech = list(read_recordings(options.speech).values())
        music = [one for one in read_recordings(options.music).values() if len(one) > 2 * SAMPLE_RATE_HZ]
        basis = MouthBasis.load(options.repository / "lipsync_twin" / "1" / "mouth_basis.npz")
        network, judge = read_weights(options.repository), SpeechJudge(basis.aperture_row)
    except (OSError, ValueError) as error:
        print(f"difficult_sound: {error}", file=sys.stderr)  # noqa: T201
        return 1
    model = SpeechToMouth()
    model.projection, model.mapping = network.projection, network.mapping

    def apertures(audio: Floats) -> Floats:
        (mel,) = LogMel.of_recordings([audio])
        steps = np.zeros((mel.shape[1] // 2 - 4, len(basis.deviation)), np.float32)
        codes = predict(model, Spoken("", mel.astype(np.float16), 0, steps, NOTHING, UNHEARD, False))
        return codes @ basis.aperture_row

    command = "python -m benchmarks.training.difficult_sound SPEECH MUSIC"
    reports.write(options.out, "Difficult sound", command, report(apertures, judge, speech, music))
    return 0


if __name__ == "__main__":
    sys.exit(main())
