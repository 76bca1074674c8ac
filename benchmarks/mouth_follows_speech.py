"""Does the dubbed mouth follow the speech? `python -m benchmarks.mouth_follows_speech CLIPS SPEECH`.

Every clip is dubbed with its own sound, with another's speech and with silence, by `insync dub` on an embedded server. The openings of the
mouths are then read off the results' landmarks (FaceMesh), and compared with the openings that the served network predicts
for the same sound, and with the clip's own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tqdm import tqdm

from benchmarks import machine
from insync.client import InsyncError
from insync.client.dub import dub
from insync.ensemble.face import FaceFinder
from insync.ensemble.mel import LogMel
from insync.ensemble.mouth import MouthBasis, opening
from insync.ensemble.server import EmbeddedServer, default_repository
from insync.ensemble.spec import MODELS, SAMPLE_RATE_HZ
from insync.training.curate import read_speech, windows

Floats = npt.NDArray[np.float32]
REPORT = "mouth_follows_speech.md"
LAGS = 5  # frames, either way


class Judge:
    """Reads openings off pictures, and predicts them from sound as the server does."""

    def __init__(self, repository: Path) -> None:
        self._finder = FaceFinder(repository / "lipsync_face" / "1", threads=2)
        self._basis = MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")
        self._encoder, self._mixer = (
            ort.InferenceSession(str(repository / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
            for name in ("lipsync_encoder", "lipsync_mixer")
        )
        self._mel = LogMel()

    def seen(self, path: Path) -> tuple[Floats, Floats]:
        """Opening of the mouth in every frame, NaN where there is no face, and the frames' times in seconds: float32 [N] twice."""
        openings, times, box = [], [], None
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                face = self._finder.find(frame.to_ndarray(format="rgb24"), box)
                box = None if face is None else face.box
                openings.append(np.nan if face is None else opening(self._basis.shape(face.landmarks)))
                times.append(float(frame.time or 0))
        return np.array(openings, np.float32), np.array(times, np.float32)

    def predicted(self, sound: Floats, times_s: Floats) -> Floats:
        """Opening that the network predicts at each time, float32 [N]."""
        mels = self._mel(windows(sound, times_s))
        crop = np.zeros((1, *MODELS["lipsync_encoder"].inputs[0].shape), np.float32)
        codes = []
        for mel in mels:
            speech = self._encoder.run(["SPEECH"], {"CROP": crop, "MEL": mel[None]})[0]
            zeros = {t.name: np.zeros((1, *t.shape), np.float32) for t in MODELS["lipsync_mixer"].inputs}
            codes.append(self._mixer.run(["MOUTH"], {**zeros, "SPEECH": speech})[0][0])
        return np.asarray(np.stack(codes) @ self._basis.opening_row, np.float32)


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's, over the frames where both are known; NaN where one is constant."""
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 10 or a[known].std() < 1e-6 or b[known].std() < 1e-6:
        return float("nan")
    return float(np.corrcoef(a[known], b[known])[0, 1])


def best_lag(a: Floats, b: Floats) -> tuple[float, int]:
    """The best correlation when a is read up to 5 frames later (positive) or earlier than b, and that lag."""
    scores = {lag: correlation(a[max(0, lag) :], b[max(0, -lag) :]) for lag in range(-LAGS, LAGS + 1)}
    known = {lag: score for lag, score in scores.items() if np.isfinite(score)}
    if not known:
        return float("nan"), 0
    lag = max(known, key=lambda key: known[key])
    return known[lag], lag


@dataclass(frozen=True)
class Row:
    """Figures of one clip."""

    clip: str
    frames: int
    own: float  # result against the prediction, own sound
    real: float  # result against the clip's own mouth, at the lag of the clip's sound
    lag: int
    other: float  # result against the prediction, another's speech
    shuffled: float  # result with another's speech against the prediction for the clip's own sound, or for a third one
    amplitude: float  # standard deviation of the opening, result over prediction, another's speech
    rest: float  # standard deviation of the opening in silence over that in speech
    rest_opening: float


def measure(clip: Path, speech: Path, third: Path, judge: Judge, server: str, scratch: Path) -> Row:
    """Dubs one clip three times and compares."""
    own_sound = read_speech(clip)
    silence = scratch / "silence.wav"
    if not silence.exists():
        with wave.open(str(silence), "wb") as sink:
            sink.setnchannels(1)
            sink.setsampwidth(2)
            sink.setframerate(SAMPLE_RATE_HZ)
            sink.writeframes(bytes(2 * SAMPLE_RATE_HZ * 6))
    out = scratch / "out.mkv"

    def dubbed(audio: Path) -> tuple[Floats, Floats]:
        dub(clip, audio, out, server=server, quality="high", extend="none", trim=True, progress=False)
        return judge.seen(out)

    real, times = judge.seen(clip)
    own = own_real = float("nan")
    lag = 0
    if own_sound is not None:
        result, seen_at = dubbed(clip)
        own = correlation(result, judge.predicted(own_sound, seen_at))
        own_real, lag = best_lag(result, real)
    sound = read_speech(speech)
    against = own_sound if own_sound is not None else read_speech(third)
    assert sound is not None, "speech files have sound"
    assert against is not None, "speech files have sound"
    result, seen_at = dubbed(speech)
    predicted = judge.predicted(sound, seen_at)
    resting, _ = dubbed(silence)
    spread = float(np.nanstd(result))
    return Row(
        clip.name, len(times), own, own_real, lag, correlation(result, predicted),
        correlation(result, judge.predicted(against, seen_at)), spread / max(float(predicted.std()), 1e-6),
        float(np.nanstd(resting)) / max(spread, 1e-6), float(np.nanmedian(resting)),
    )  # fmt: skip


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mouth_follows_speech", description=__doc__)
    parser.add_argument("clips", type=Path, help="folder of clips")
    parser.add_argument("speech", type=Path, help="folder of speech files; clips take them in turn")
    parser.add_argument("--out", type=Path, default=machine.FOLDER / REPORT)
    options = parser.parse_args()
    speeches = sorted(path for path in options.speech.iterdir() if path.suffix in (".wav", ".flac", ".mp3"))
    clips = sorted(path for path in options.clips.iterdir() if path.suffix in (".mp4", ".mpg", ".mov", ".mkv"))
    judge, rows = Judge(default_repository()), []
    with tempfile.TemporaryDirectory() as scratch, EmbeddedServer(twin_store=Path(scratch) / "twins") as server:
        for number, clip in enumerate(tqdm(clips, unit="clip")):
            first, second = speeches[number % len(speeches)], speeches[(number + 1) % len(speeches)]
            try:
                rows.append(measure(clip, first, second, judge, server.grpc_url, Path(scratch)))
            except InsyncError as error:
                print(f"{clip.name}: {error}", file=sys.stderr)  # noqa: T201
    names = ("own", "real", "other", "shuffled", "amplitude", "rest", "rest_opening")
    means = ["**mean**", "", *(_mean(rows, name) for name in names)]
    command = "python -m benchmarks.mouth_follows_speech CLIPS SPEECH"
    table = machine.table(HEADER, [*(_cells(row) for row in rows), means])
    machine.write(options.out, "Does the dubbed mouth follow the speech?", command, [METHOD, table])
    print(options.out.read_text())  # noqa: T201
    return 0


METHOD = (
    "Correlations are of mouth openings, frame by frame, the result's read off its landmarks. *Own sound*: the clip dubbed with its own sound, "
    "against what the network predicts for it, and against the clip's real mouth (at the best lag of ±5 frames, given: the sound of some clips "
    "leads or trails). *Other speech*: against its prediction, and against the prediction for a sound that was not spoken. *Amplitude*: "
    "standard deviation of the opening, result over prediction. *Silence*: standard deviation of the opening over that in speech, and the "
    "median opening in distances of the outer eye corners."
)
HEADER = (
    "clip", "frames", "own sound: prediction", "own sound: real mouth (lag)", "other speech: prediction",
    "other speech: wrong sound", "amplitude", "silence: spread", "silence: opening",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    return [
        f"`{row.clip}`", str(row.frames), _cell(row.own), f"{_cell(row.real)} ({row.lag:+d})", _cell(row.other), _cell(row.shuffled),
        _cell(row.amplitude), _cell(row.rest), f"{row.rest_opening:.3f}",
    ]  # fmt: skip


def _mean(rows: list[Row], name: str) -> str:
    values = [value for value in (getattr(row, name) for row in rows) if np.isfinite(value)]
    return _cell(float(np.mean(values))) if values else "–"


def _cell(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"


if __name__ == "__main__":
    sys.exit(main())
