"""`insync evaluate`: how good is a dub? Measured on held-out footage, through the same ONNX graphs that are served.

Each clip is split: a twin is registered from its first part, and the rest is drawn anew, with its own sound (self-reenactment), with its
own sound shifted by half (shuffled), and with silence (the mean mouth). The first is held against what was filmed; the others are the
baselines that a lip-sync must beat, beside the source itself, untouched.
"""

from __future__ import annotations

import base64
import html
import io
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity
from tqdm import tqdm

from insync.ensemble.chain import Chain
from insync.ensemble.face import FaceFinder, take_crop
from insync.ensemble.head import head_of
from insync.ensemble.mel import LogMel
from insync.ensemble.mouth import OUTER_LIPS, MouthBasis, opening
from insync.ensemble.spec import CROP_SIZE, MAX_REGISTRATION_FRAMES, SAMPLE_RATE_HZ
from insync.ensemble.twin import register
from insync.network import mask
from insync.training.curate import CLIP_ENDINGS, read_speech, windows
from insync.training.frechet import MISSING, FeatureNetwork, Networks, distances
from insync.training.sync import SyncJudge

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

FOOTAGE_SHARE = 0.4  # of a clip registers its twin
MAX_LAG = 5  # frames by which a clip's sound may lead or trail its picture
MIN_FRAMES = 20
STILLS = 8
ROOM = 64  # pixels
FACE_IN_CROP = np.array([30, 10, 226, 250], np.float32)  # about where alignment puts faces
EYES = (33, 263)  # outer corners


@dataclass(frozen=True)
class Figures:
    """What was measured of one way to dub one clip; NaN where a figure has no meaning.

    Attributes:
        clip: its name.
        way: self, shuffled, silence, untouched, or self with a robustness change.
        frames: drawn.
        ssim_crop: structural similarity of the whole crop with the filmed one (Wang et al., 2004), 1 is equal.
        ssim: the same of the mouth region alone, where everything is drawn.
        psnr_db: peak signal-to-noise ratio of the mouth region.
        lmd: mean distance of the lips' landmarks from the filmed ones, in percent of the distance of the outer eye corners.
        follows: correlation of the mouth's opening with the filmed one, at the clip's lag.
        lag: frames by which the clip's sound trails its picture, where `follows` is best.
        obeys: correlation of the mouth's opening with the opening that the network predicted.
        liveliness: standard deviation of the opening over that of the filmed mouth.
        jitter: mean second difference of the lips' landmarks over that of the filmed ones.
        seam: gradients in the ring where alpha fades, over those of the source in the same ring; 1 is invisible.
        lse_c: confidence of our SyncNet that the mouth speaks the sound that drove it, or, where that was silence, the clip's own
            (`insync.training.sync`); larger is better. Compares with figures of this SyncNet only.
        lse_d: its smallest distance; smaller is better.
        offset: frames of 40 ms by which it finds that sound trailing.
    """

    clip: str
    way: str
    frames: int
    ssim_crop: float
    ssim: float
    psnr_db: float
    lmd: float
    follows: float
    lag: int
    obeys: float
    liveliness: float
    jitter: float
    seam: float
    lse_c: float
    lse_d: float
    offset: float


@dataclass(frozen=True)
class Footage:
    """A clip's frames, found and aligned.

    Attributes:
        crops: uint8 [N, 256, 256, 3] RGB.
        heads: float32 [N, 75, 2], see `insync.ensemble.head`.
        landmarks: float32 [N, 468, 2], in pixels of the crops.
        openings: float32 [N], NaN as the landmarks where no face was found.
        times_s: float32 [N].
        sound: float32 [samples] at 16 kHz; empty without sound.
        frames: the encoded frames that register the twin.
        first: the first frame that the twin has not seen.
    """

    crops: Picture
    heads: Floats
    landmarks: Floats
    openings: Floats
    times_s: Floats
    sound: Floats
    frames: list[bytes]
    first: int


class Evaluation:
    """Draws clips anew with the served graphs and measures the result.

    Args:
        repository: the model repository.
        threads: CPU threads.
    """

    def __init__(self, repository: Path, threads: int = 2) -> None:
        self._chain = Chain(repository, threads)
        self._finder = FaceFinder(repository / "lipsync_face" / "1", threads)
        self._basis = MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")
        self._mel, self._sync = LogMel(), SyncJudge()

    def read(self, path: Path, seconds: float) -> Footage:
        """Reads the first `seconds` of a clip.

        Raises:
            ValueError: too few frames show a face.
        """
        crops, heads, times, encoded, box = [], [], [], [], None
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                time_s = float(frame.time or 0.0)
                if time_s > seconds:
                    break
                image = frame.to_ndarray(format="rgb24")
                face = self._finder.find(image, box)
                box = None if face is None else face.box
                if face is None:
                    continue
                crops.append(take_crop(image, face.transform))
                heads.append(head_of(face.landmarks, face.transform, self._basis.rigid))
                times.append(time_s)
                encoded.append(image)
        if len(crops) < MIN_FRAMES:
            raise ValueError(f"{path.name}: a face in {len(crops)} frames, at least {MIN_FRAMES} are needed")
        first = max(1, round(FOOTAGE_SHARE * len(crops)))
        step = -(-first // MAX_REGISTRATION_FRAMES)
        jpegs = [
            cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            for image in encoded[:first:step]
        ]
        sound = read_speech(path)
        # Read off the crops, as the results' are: the landmarks' own error is the same on both sides.
        landmarks, openings = self._landmarks(np.stack(crops))
        return Footage(
            np.stack(crops), np.stack(heads), landmarks, openings, np.array(times, np.float32),
            np.zeros(0, np.float32) if sound is None else sound, jpegs, first,
        )  # fmt: skip

    def draw(
        self, footage: Footage, sound: Floats, change: Callable[[Picture, int], Picture] | None = None
    ) -> tuple[Picture, Picture, Floats]:
        """Draws the frames that the twin has not seen with a sound.

        Args:
            footage: the clip.
            sound: float32 [samples] at 16 kHz.
            change: makes of each crop, and its number, what is dubbed in its place.

        Returns:
            The results and the crops that they were made of, uint8 [N, 256, 256, 3] each; the predicted openings float32 [N].
        """
        record = register(footage.frames, self._finder, self._basis)
        twin = self._chain.reference(record)
        times, heads = footage.times_s[footage.first :], footage.heads[footage.first :]
        mels = self._mel(windows(sound, times))
        results, sources, predicted = [], [], []
        for number, (crop, mel, head) in enumerate(zip(footage.crops[footage.first :], mels, heads, strict=True)):
            source = crop if change is None else change(crop, number)
            planes = np.ascontiguousarray(source.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
            patch, code = self._chain.patch(planes, mel[None], head[None], twin)
            alpha = patch[..., 3:].astype(np.float32) / 255
            blended = alpha * patch[..., :3] + (1 - alpha) * source
            results.append(np.round(blended).astype(np.uint8))
            sources.append(source)
            predicted.append(float(code @ self._basis.opening_row))
        return np.stack(results), np.stack(sources), np.array(predicted, np.float32)

    def measure(
        self,
        clip: str,
        way: str,
        footage: Footage,
        results: Picture,
        real: Picture,
        predicted: Floats | None,
        lag: int,
        sound: Floats | None = None,
    ) -> Figures:
        """Measures results uint8 [N, 256, 256, 3] against the filmed frames real, of the same shape, and the sound that should be seen."""
        filmed = footage.landmarks[footage.first :]
        landmarks, openings = self._landmarks(results)
        lips = list(OUTER_LIPS)
        eyes = np.linalg.norm(filmed[:, EYES[0]] - filmed[:, EYES[1]], axis=1)
        away = np.linalg.norm(landmarks[:, lips] - filmed[:, lips], axis=2).mean(1) / eyes
        rows, columns = slice(*mask.MOUTH_ROWS), slice(*mask.MOUTH_COLUMNS)
        mouths, truths = results[:, rows, columns], real[:, rows, columns]
        whole, similar = (
            [structural_similarity(a, b, channel_axis=2) for a, b in zip(drawn, filmed_too, strict=True)]
            for drawn, filmed_too in ((results, real), (mouths, truths))
        )
        error = ((mouths.astype(np.float32) - truths) ** 2).mean((1, 2, 3))
        real_openings = footage.openings[footage.first :]
        follows = lagged(openings, real_openings, lag)
        ring = (mask.feather()[0, 0].numpy() > 0.02) & (mask.feather()[0, 0].numpy() < 0.6)
        trembling = [_known(np.mean, np.abs(np.diff(points[:, lips], n=2, axis=0))) for points in (landmarks, filmed)]
        return Figures(
            clip, way, len(results), fmean(whole), fmean(similar), float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-2)))),
            100 * _known(np.mean, away), follows, lag,
            float("nan") if predicted is None else correlation(openings, predicted),
            _known(np.std, openings) / max(_known(np.std, real_openings), 1e-6),
            trembling[0] / max(trembling[1], 1e-6), _edges(results, ring) / max(_edges(real, ring), 1e-6),
            *self._in_sync(footage, results, sound),
        )  # fmt: skip

    def _in_sync(self, footage: Footage, results: Picture, sound: Floats | None) -> tuple[float, float, float]:
        known = None
        if sound is not None and sound.any():
            known = self._sync.figures(results, footage.times_s[footage.first :], sound)
        return (float("nan"),) * 3 if known is None else (known.lse_c, known.lse_d, float(known.offset))

    def openings(self, results: Picture) -> Floats:
        """Opening of the mouth in every crop, NaN where no face is found: float32 [N]."""
        return self._landmarks(results)[1]

    def _landmarks(self, crops: Picture) -> tuple[Floats, Floats]:
        landmarks, openings = [], []
        for crop in crops:
            # Some room around the face, which the finder wants; every crop is read alone, so that equal crops read equally.
            framed = cv2.copyMakeBorder(crop, ROOM, ROOM, ROOM, ROOM, cv2.BORDER_REPLICATE)
            face = self._finder.find(framed, FACE_IN_CROP + ROOM)
            landmarks.append(np.full((468, 2), np.nan) if face is None else face.landmarks[:468, :2] - ROOM)
            openings.append(np.nan if face is None else opening(self._basis.shape(face.landmarks)))
        return np.array(landmarks, np.float32), np.array(openings, np.float32)


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's, over the frames where both are known; NaN where one is constant."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 10 or a[known].std() < 1e-6 or b[known].std() < 1e-6:
        return float("nan")
    return float(np.corrcoef(a[known], b[known])[0, 1])


def lagged(a: Floats, b: Floats, lag: int) -> float:
    """Correlation of a, read `lag` frames later, with b."""
    return correlation(a[max(0, lag) : len(a) + min(0, lag)], b[max(0, -lag) : len(b) - max(0, lag)])


def best_lag(a: Floats, b: Floats) -> int:
    """The lag of at most ±5 frames at which a follows b best; 0 where nothing is known."""
    scores = {lag: lagged(a, b, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
    known = {lag: score for lag, score in scores.items() if np.isfinite(score)}
    return max(known, key=lambda lag: known[lag]) if known else 0


def _known(figure: Callable[[Floats], Any], values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(figure(known)) if known.size else float("nan")


def _edges(crops: Picture, ring: npt.NDArray[np.bool_]) -> float:
    return fmean(
        float(np.abs(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_32F))[ring].mean()) for crop in crops
    )


def darkened(crop: Picture, _number: int) -> Picture:
    """The crop in poor, warm light."""
    return np.asarray(np.round(crop * np.array([0.45, 0.38, 0.3])), np.uint8)


def covered(crop: Picture, number: int) -> Picture:
    """The crop with a bar before the mouth that moves from side to side."""
    x = CROP_SIZE // 2 + int(40 * np.sin(number / 8))
    return np.asarray(
        cv2.line(crop.copy(), (x, 150), (x + 40, CROP_SIZE + 20), (40, 70, 150), 18, cv2.LINE_AA), np.uint8
    )


def moving(crop: Picture, number: int) -> Picture:
    """The crop as it looks while the head shakes: blurred along one direction."""
    length = 7
    kernel = np.zeros((length, length), np.float32)
    angle = number / 6
    ends = [tuple(round(length / 2 - 0.5 + sign * 3 * f) for f in (np.cos(angle), np.sin(angle))) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return np.asarray(cv2.filter2D(crop, -1, kernel / kernel.sum()), np.uint8)


ROBUSTNESS: dict[str, Callable[[Picture, int], Picture]] = {
    "darkened": darkened,
    "covered": covered,
    "moving": moving,
}


@dataclass(frozen=True)
class Shown:
    """What the page shows of one clip: rows of stills and one clip side by side."""

    clip: str
    rows: dict[str, Picture]


def evaluate(
    clips: list[Path],
    out: Path,
    repository: Path,
    seconds: float = 12.0,
    threads: int = 2,
    networks: Networks | None = None,
) -> list[Figures]:
    """Evaluates clips; writes `evaluation.json`, `evaluation.md` and `evaluation.html` into out.

    Args:
        clips: videos that show one face each; those that cannot be judged are reported and passed over.
        out: folder.
        repository: the model repository whose graphs are judged.
        seconds: of each clip.
        threads: CPU threads.
        networks: for FID and FVD; without them these are not measured, and the page says so.

    Raises:
        ValueError: no clip could be judged.
        FileNotFoundError: a feature network is not there.
    """
    judges = (networks or Networks()).load()
    evaluation, figures, shown, refused = Evaluation(repository, threads), [], [], {}
    for path in tqdm(clips, desc="evaluate", unit="clip"):
        try:
            footage = evaluation.read(path, seconds)
        except (av.error.FFmpegError, ValueError) as error:
            refused[path.name] = str(error)
            continue
        real = footage.crops[footage.first :]
        rows: dict[str, Picture] = {"filmed": real}
        sound = footage.sound if footage.sound.size else np.zeros(SAMPLE_RATE_HZ, np.float32)
        results, _, predicted = evaluation.draw(footage, sound)
        lag = best_lag(evaluation.openings(results), footage.openings[footage.first :]) if footage.sound.size else 0
        rows["self"] = results
        figures.append(evaluation.measure(path.name, "self", footage, results, real, predicted, lag, sound))
        for way, other in {"shuffled": np.roll(sound, len(sound) // 2), "silence": np.zeros_like(sound)}.items():
            results, _, predicted = evaluation.draw(footage, other)
            heard = other if other.any() else sound  # how far a resting mouth seems to speak
            figures.append(evaluation.measure(path.name, way, footage, results, real, predicted, lag, heard))
            rows[way] = results
        figures.append(evaluation.measure(path.name, "untouched", footage, real, real, None, 0, sound))
        for way, change in ROBUSTNESS.items():
            results, sources, predicted = evaluation.draw(footage, sound, change)
            figures.append(evaluation.measure(path.name, way, footage, results, sources, predicted, lag, sound))
            rows[way] = results
        shown.append(Shown(path.name, rows))
    if not figures:
        raise ValueError("no clip could be judged: " + "; ".join(refused.values()))
    out.mkdir(parents=True, exist_ok=True)
    frechet = _frechet(shown, judges)
    document = {"figures": [asdict(one) for one in figures], "refused": refused, "frechet": frechet}
    (out / "evaluation.json").write_text(json.dumps(document, indent=1, allow_nan=True))
    table = _table(figures)
    notes = [
        f"{name.upper()}: " + ", ".join(f"{w} {v:.1f}" for w, v in of.items()) + "." for name, of in frechet.items()
    ]
    notes += [] if frechet else [MISSING]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    (out / "evaluation.md").write_text("\n".join(lines) + "\n\n" + "\n".join(notes) + "\n")
    (out / "evaluation.html").write_text(_page(table, shown, refused, notes))
    return figures


def means(figures: list[Figures]) -> list[Figures]:
    """The mean over clips of every way, over the clips where a figure has a meaning."""
    result = []
    for way in dict.fromkeys(one.way for one in figures):
        ones = [one for one in figures if one.way == way]
        values: dict[str, Any] = {"clip": "mean", "way": way, "frames": sum(one.frames for one in ones), "lag": 0}
        for field in fields(Figures):
            if field.name not in values:
                known = [v for v in (getattr(one, field.name) for one in ones) if np.isfinite(v)]
                values[field.name] = fmean(known) if known else float("nan")
        result.append(Figures(**values))
    return result


def _table(figures: list[Figures]) -> list[list[str]]:
    names = [field.name for field in fields(Figures)]
    rows = [names, ["---"] * 2 + ["---:"] * (len(names) - 2)]
    for one in [*figures, *means(figures)]:
        cells = []
        for name in names:
            value = getattr(one, name)
            cells.append(
                value if isinstance(value, str)
                else f"{value:+d}" if name == "lag"
                else str(value) if isinstance(value, int)
                else f"{value:.2f}" if np.isfinite(value)
                else "–"
            )  # fmt: skip
        rows.append(cells)
    return rows


def _frechet(shown: list[Shown], judges: dict[str, FeatureNetwork]) -> dict[str, dict[str, float]]:
    """FID and FVD of every way, over all clips together."""
    ways = {way: [one.rows[way] for one in shown] for way in shown[0].rows if way not in ("filmed", *ROBUSTNESS)}
    real = [one.rows["filmed"] for one in shown]
    return {name: distances(ways, real, judge) for name, judge in judges.items()}


def _page(table: list[list[str]], shown: list[Shown], refused: dict[str, str], notes: list[str]) -> str:
    head, _, *body = table
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    parts = [
        "<!doctype html><meta charset=utf-8><title>InSync: evaluation</title>",
        "<style>body{font:14px sans-serif;margin:2em;max-width:1500px}table{border-collapse:collapse}td,th{padding:2px 8px;text-align:right}"
        "tr:nth-child(even){background:#f2f2f2}td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}img,video{max-width:100%}</style>",
        "<h1>Evaluation</h1><p>Twins are registered from the first two fifths of each clip; figures are of the rest. "
        "Columns are explained in <code>insync.training.evaluate.Figures</code>.</p>",
        f"<table>{''.join(lines)}</table>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    for name, reason in refused.items():
        parts.append(f"<p>Not judged: {html.escape(name)}: {html.escape(reason)}</p>")
    for one in shown:
        parts.append(f"<h2>{html.escape(one.clip)}</h2><p>Top to bottom: {', '.join(one.rows)}.</p>")
        parts.append(f"<img src='data:image/jpeg;base64,{_still(one)}'>")
        parts.append(
            f"<p>{' | '.join(list(one.rows)[:4])}</p><video controls loop src='data:video/mp4;base64,{_film(one)}'></video>"
        )
    return "\n".join(parts)


def _still(one: Shown) -> str:
    lines = []
    for crops in one.rows.values():
        index = np.linspace(0, len(crops) - 1, STILLS).astype(int)
        lines.append(np.hstack(list(crops[index])))
    sheet = cv2.cvtColor(np.vstack(lines), cv2.COLOR_RGB2BGR)
    return base64.b64encode(cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()).decode()


def _film(one: Shown) -> str:
    sink = io.BytesIO()
    ways = list(one.rows.values())[:4]
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = CROP_SIZE * len(ways), CROP_SIZE, "yuv420p"
        for pictures in zip(*ways, strict=True):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.hstack(pictures), format="rgb24")))
        container.mux(stream.encode(None))
    return base64.b64encode(sink.getvalue()).decode()


def clips_of(paths: list[Path]) -> list[Path]:
    """Files as they are, folders as the clips in them.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no clip.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in CLIP_ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise FileNotFoundError(f"{path} holds no clip; known endings: {', '.join(CLIP_ENDINGS)}")
        found += inside
    return found
