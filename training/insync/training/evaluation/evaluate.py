"""The evaluation of `insync evaluate`: it measures the quality of dubs of held-out footage, made with the ONNX graphs that are served.

Each clip is split: a twin is registered from its first part, and the rest is dubbed with its own audio (self-reenactment), with its own
audio shifted by half its length (shuffled), with silence (the mean mouth), and with other speech (cross) if some is given. The first is
compared with what was filmed. The others are baselines that lip sync must beat, as is the untouched source. Clips without audio, or
whose mouth stays still, can only be dubbed with other speech.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Protocol

import av
import cv2
import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity
from tqdm import tqdm

from insync.core.head import head_of
from insync.core.images import encode_jpeg
from insync.core.mouth import OUTER_LIPS, MouthBasis, aperture
from insync.core.spec import CROP_SIZE, MAX_REGISTRATION_FRAMES
from insync.ensemble.inference.pipeline import Chain, Twin
from insync.ensemble.models.face import FaceFinder, take_crop
from insync.ensemble.models.log_mel import LogMel
from insync.ensemble.models.registration import register
from insync.ensemble.models.twin_store import Record
from insync.network import mask
from insync.training.curation.pipeline import CLIP_ENDINGS
from insync.training.data.audio import read_speech, windows
from insync.training.evaluation.perturbations import ROBUSTNESS
from insync.training.evaluation.report import ClipPictures, markdown, page
from insync.training.metrics import published
from insync.training.metrics.frechet import MISSING, FeatureNetwork, Networks, distances
from insync.training.metrics.identity import Likeness
from insync.training.metrics.speech_judge import SpeechJudge
from insync.training.metrics.summary import COMPARED, HEARD_LAG, Metrics, best_lag, correlation, lagged, means, table
from insync.training.metrics.sync import SyncJudge

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

FOOTAGE_SHARE = 0.4  # share of a clip that its twin is registered from
MIN_FRAMES = 20
MOVING = 0.01  # standard deviation of an aperture, in distances of the outer eye corners, that counts as speaking
MARGIN = 64  # pixels
FACE_IN_CROP = np.array([30, 10, 226, 250], np.float32)  # approximate box of an aligned face
EYES = (33, 263)  # outer corners
NOTHING = float("nan")


@dataclass(frozen=True)
class Footage:
    """The frames of a clip, with detected and aligned faces.

    Attributes:
        crops: uint8 [N, 256, 256, 3] RGB.
        heads: float32 [N, 75, 2], see `insync.core.head`.
        landmarks: float32 [N, 468, 2], in pixels of the crops.
        apertures: float32 [N], mouth apertures; NaN, as are the landmarks, if no face was found.
        times_s: float32 [N].
        sound: float32 [samples] at 16 kHz; empty without audio track.
        frames: encoded frames that the twin is registered from.
        first: index of the first frame after those.
    """

    crops: Picture
    heads: Floats
    landmarks: Floats
    apertures: Floats
    times_s: Floats
    sound: Floats
    frames: list[bytes]
    first: int

    @property
    def speaks(self) -> bool:
        """Whether there is audio, and the mouth moves."""
        return bool(self.sound.size) and bool(np.nanstd(self.apertures) >= MOVING)


class Drawing(NamedTuple):
    """The dub of one clip in one condition.

    Attributes:
        results: uint8 [N, 256, 256, 3], dubbed crops.
        sources: uint8 [N, 256, 256, 3], the crops that were dubbed.
        alphas: uint8 [N, 256, 256], alpha of the patches.
        predicted: float32 [N], apertures that the network predicted; NaN if it was not run.
    """

    results: Picture
    sources: Picture
    alphas: Picture
    predicted: Floats

    @classmethod
    def untouched(cls, real: Picture) -> Drawing:
        """Return the filmed crops as if they were a result."""
        return cls(real, real, np.zeros(real.shape[:3], np.uint8), np.full(len(real), NOTHING, np.float32))


class Graphs(Protocol):
    """The interface of the graphs that dub; `Chain` implements it."""

    def reference(self, record: Record) -> Twin:
        """Compute a twin's features."""
        ...

    def patch(self, crop: Floats, mel: Floats, head: Floats, twin: Twin) -> tuple[Picture, Floats]:
        """Render one frame's patch uint8 [256, 256, 4] and return it with the mouth code float32 [12]; see `Chain.patch`."""
        ...


class Evaluation:
    """An evaluator, which dubs clips with the served graphs and measures the result.

    Args:
        repository: the model repository.
        threads: number of CPU threads.
        graphs: the graphs that dub; by default those of the repository.
    """

    def __init__(self, repository: Path, threads: int = 2, graphs: Graphs | None = None) -> None:
        self._chain = graphs or Chain(repository, threads)
        self._finder = FaceFinder(repository / "lipsync_face" / "1", threads)
        self._basis = MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")
        self._mel, self._sync, self._likeness = LogMel(), SyncJudge(), Likeness()

    @cached_property
    def _judge(self) -> SpeechJudge:
        """The speech judge: loading its teacher takes seconds, which what only draws need not wait for."""
        return SpeechJudge(self._basis.aperture_row)

    def read(self, path: Path, seconds: float, share: float = FOOTAGE_SHARE) -> Footage:
        """Read the first `seconds` of a clip. The twin is registered from the first `share` of them.

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
            raise ValueError(f"{path.name}: {len(crops)} frames with a face; must be at least {MIN_FRAMES}")
        first = max(1, round(share * len(crops)))
        step = -(-first // MAX_REGISTRATION_FRAMES)
        jpegs = [encode_jpeg(image, 95) for image in encoded[:first:step]]
        sound = read_speech(path)
        # Detected in the crops, as those of the results are, so that the detection error is the same on both sides.
        landmarks, apertures = self._landmarks(np.stack(crops))
        return Footage(
            np.stack(crops), np.stack(heads), landmarks, apertures, np.array(times, np.float32),
            np.zeros(0, np.float32) if sound is None else sound, jpegs, first,
        )  # fmt: skip

    def draw(self, footage: Footage, sound: Floats, change: Callable[[Picture, int], Picture] | None = None) -> Drawing:
        """Dub the frames after those that the twin is registered from.

        Args:
            footage: the clip.
            sound: float32 [samples] at 16 kHz.
            change: perturbs each crop before it is dubbed; called with the crop and its number.
        """
        record = register(footage.frames, self._finder, self._basis)
        twin = self._chain.reference(record)
        times, heads = footage.times_s[footage.first :], footage.heads[footage.first :]
        mels = self._mel(windows(sound, times))
        results, sources, alphas, predicted = [], [], [], []
        for number, (crop, mel, head) in enumerate(zip(footage.crops[footage.first :], mels, heads, strict=True)):
            source = crop if change is None else change(crop, number)
            planes = np.ascontiguousarray(source.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
            patch, code = self._chain.patch(planes, mel[None], head[None], twin)
            alpha = patch[..., 3:].astype(np.float32) / 255
            blended = alpha * patch[..., :3] + (1 - alpha) * source
            results.append(np.round(blended).astype(np.uint8))
            sources.append(source)
            alphas.append(patch[..., 3])
            predicted.append(float(code @ self._basis.aperture_row))
        return Drawing(np.stack(results), np.stack(sources), np.stack(alphas), np.array(predicted, np.float32))

    def measure(
        self,
        clip: str,
        condition: str,
        footage: Footage,
        drawing: Drawing,
        lag: int = 0,
        sound: Floats | None = None,
        filmed: bool = True,
    ) -> Metrics:
        """Measure a dub.

        Args:
            clip: name of the clip.
            condition: name of the condition.
            footage: the clip.
            drawing: its dub.
            lag: frames by which the clip's audio trails its picture.
            sound: audio that the mouth should match, float32 [samples]; for None or silence, sync is not measured.
            filmed: whether the filmed mouth speaks the same audio; if not, the metrics in `COMPARED` are NaN.
        """
        results, real = drawing.results, drawing.sources
        truth = footage.landmarks[footage.first :]
        landmarks, apertures = self._landmarks(results)
        ring = (mask.feather()[0, 0].numpy() > 0.02) & (mask.feather()[0, 0].numpy() < 0.6)
        compared = (
            self._against(footage, drawing, landmarks, apertures, lag) if filmed else dict.fromkeys(COMPARED, NOTHING)
        )
        lse_c, lse_d, offset = self._in_sync(footage, results, sound)
        heard_corr, heard_offset = self.heard(footage, apertures, sound)
        return Metrics(
            clip=clip,
            condition=condition,
            frames=len(results),
            lag=lag,
            predicted_aperture_corr=correlation(apertures, drawing.predicted),
            source_bleed=_source_bleed(drawing.alphas, truth),
            identity=self._likeness.alike(results, real),
            seam=_edges(results, ring) / max(_edges(real, ring), 1e-6),
            lse_c=lse_c,
            lse_d=lse_d,
            offset=offset,
            heard_corr=heard_corr,
            heard_offset=heard_offset,
            **compared,
        )

    def _against(
        self, footage: Footage, drawing: Drawing, landmarks: Floats, apertures: Floats, lag: int
    ) -> dict[str, float]:
        """Compute the metrics that compare a dub with what was filmed."""
        results, real = drawing.results, drawing.sources
        filmed, real_apertures = footage.landmarks[footage.first :], footage.apertures[footage.first :]
        lips = list(OUTER_LIPS)
        eyes = np.linalg.norm(filmed[:, EYES[0]] - filmed[:, EYES[1]], axis=1)
        distance = np.linalg.norm(landmarks[:, lips] - filmed[:, lips], axis=2).mean(1) / eyes
        rows, columns = slice(*mask.MOUTH_ROWS), slice(*mask.MOUTH_COLUMNS)
        mouths, truths = results[:, rows, columns], real[:, rows, columns]
        whole, similar = (
            [structural_similarity(a, b, channel_axis=2) for a, b in zip(drawn, filmed_too, strict=True)]
            for drawn, filmed_too in ((results, real), (mouths, truths))
        )
        error = ((mouths.astype(np.float32) - truths) ** 2).mean((1, 2, 3))
        jitter = [_known(np.mean, np.abs(np.diff(points[:, lips], n=2, axis=0))) for points in (landmarks, filmed)]
        return {
            "ssim_crop": fmean(whole),
            "ssim": fmean(similar),
            "psnr_db": float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-2)))),
            "lmd": 100 * _known(np.mean, distance),
            "aperture_corr": lagged(apertures, real_apertures, lag),
            "aperture_std_ratio": _known(np.std, apertures) / max(_known(np.std, real_apertures), 1e-6),
            "jitter": jitter[0] / max(jitter[1], 1e-6),
        }

    def _in_sync(self, footage: Footage, results: Picture, sound: Floats | None) -> tuple[float, float, float]:
        """Return LSE-C, LSE-D and offset; NaN if they cannot be measured."""
        known = None
        if sound is not None and sound.any():
            known = self._sync.metrics(results, footage.times_s[footage.first :], sound)
        return (NOTHING,) * 3 if known is None else (known.lse_c, known.lse_d, float(known.offset))

    def heard(self, footage: Footage, apertures: Floats, sound: Floats | None) -> tuple[float, float]:
        """Return the correlation of apertures [N] with what the speech judge hears, and its offset in frames; NaN without sound."""
        if sound is None or not sound.any():
            return NOTHING, NOTHING
        expected = self._judge.apertures(sound, footage.times_s[footage.first :])
        lag = best_lag(apertures, expected, HEARD_LAG)
        # The judge hears a mouth earlier or later than it is filmed: a positive lag is a mouth behind its sound.
        return lagged(apertures, expected, lag), -float(lag)

    def neutral(self, footage: Footage) -> Floats:
        """Return the resting mouth shape of a clip's twin, float32 [44, 2]."""
        return register(footage.frames, self._finder, self._basis).neutral

    def apertures(self, results: Picture) -> Floats:
        """Measure the mouth aperture in every crop: float32 [N], NaN if no face is found."""
        return self._landmarks(results)[1]

    def _landmarks(self, crops: Picture) -> tuple[Floats, Floats]:
        """Detect the landmarks float32 [N, 468, 2] of crops, and their mouth apertures float32 [N]."""
        landmarks, apertures = [], []
        for crop in crops:
            # The detector needs a margin around the face. Crops are independent, so that equal crops give equal landmarks.
            framed = cv2.copyMakeBorder(crop, MARGIN, MARGIN, MARGIN, MARGIN, cv2.BORDER_REPLICATE)
            face = self._finder.find(framed, FACE_IN_CROP + MARGIN)
            landmarks.append(np.full((468, 2), np.nan) if face is None else face.landmarks[:468, :2] - MARGIN)
            apertures.append(np.nan if face is None else aperture(self._basis.shape(face.landmarks)))
        return np.array(landmarks, np.float32), np.array(apertures, np.float32)


def _known(statistic: Callable[[Floats], Any], values: Floats) -> float:
    """Return a statistic of the finite values; NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(statistic(known)) if known.size else float("nan")


def _edges(crops: Picture, ring: npt.NDArray[np.bool_]) -> float:
    """Return the mean absolute Laplacian of crops inside a mask."""
    return fmean(
        float(np.abs(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_32F))[ring].mean()) for crop in crops
    )


def _source_bleed(alphas: Picture, landmarks: Floats) -> float:
    """Return the share of the filmed lips that remains visible, from alphas uint8 [N, 256, 256] and landmarks float32 [N, 468, 2]."""
    shares = []
    for alpha, points in zip(alphas, landmarks, strict=True):
        if np.isfinite(points).all():
            lips = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
            cv2.fillConvexPoly(lips, cv2.convexHull(points[list(OUTER_LIPS)].round().astype(np.int32)), 1)
            shares.append(1 - float(alpha[lips > 0].mean()) / 255)
    return fmean(shares) if shares else NOTHING


def conditions(
    evaluation: Evaluation, clip: str, footage: Footage, speech: Floats | None
) -> Iterator[tuple[Metrics, Picture]]:
    """Dub a clip in every condition; yield the metrics and results of each.

    Args:
        evaluation: the evaluator.
        clip: name of the clip.
        footage: the clip.
        speech: other speech, float32 [samples] at 16 kHz, or None.

    Raises:
        ValueError: the clip has no speech of its own, and no other speech is given.
    """
    own = footage.speaks
    if not own and speech is None:
        reason = "its mouth stays still" if footage.sound.size else "it has no audio"
        raise ValueError(f"{clip}: {reason}: give speech to dub it with (--speech FILE)")
    main = footage.sound if own or speech is None else speech
    first = evaluation.draw(footage, main)
    lag = best_lag(evaluation.apertures(first.results), footage.apertures[footage.first :]) if own else 0
    yield evaluation.measure(clip, "self" if own else "cross", footage, first, lag, main, own), first.results
    if own:
        shuffled = np.roll(main, len(main) // 2)
        drawing = evaluation.draw(footage, shuffled)
        yield evaluation.measure(clip, "shuffled", footage, drawing, lag, shuffled), drawing.results
    drawing = evaluation.draw(footage, np.zeros_like(main))
    # The sync of a resting mouth is measured with the clip's own audio, as a baseline.
    yield evaluation.measure(clip, "silence", footage, drawing, lag, main, own), drawing.results
    if own and speech is not None:
        drawing = evaluation.draw(footage, speech)
        yield evaluation.measure(clip, "cross", footage, drawing, 0, speech, False), drawing.results
    untouched = Drawing.untouched(footage.crops[footage.first :])
    yield evaluation.measure(clip, "untouched", footage, untouched, 0, main, own), untouched.results
    for condition, change in ROBUSTNESS.items():
        drawing = evaluation.draw(footage, main, change)
        yield evaluation.measure(clip, condition, footage, drawing, lag, main, own), drawing.results


def evaluate(
    clips: list[Path],
    out: Path,
    repository: Path,
    seconds: float = 12.0,
    threads: int = 2,
    networks: Networks | None = None,
    speech: Path | None = None,
) -> list[Metrics]:
    """Evaluate clips, and write `evaluation.json`, `evaluation.md` and `evaluation.html` into a folder.

    Args:
        clips: videos that show one face each; those that cannot be evaluated are skipped and listed with the reason.
        out: output folder.
        repository: the model repository whose graphs are evaluated.
        seconds: duration to use of each clip.
        threads: number of CPU threads.
        networks: networks for FID and FVD; without them these are not measured, which the page reports.
        speech: a file whose audio every clip is also dubbed with; clips without speech are dubbed with it only.

    Raises:
        ValueError: no clip could be evaluated, or the speech file has no audio.
        FileNotFoundError: the file of a feature network does not exist.
    """
    feature_networks = (networks or Networks()).load()
    other = None if speech is None else read_speech(speech)
    if speech is not None and other is None:
        raise ValueError(f"{speech.name} has no audio; must be a file with an audio track")
    evaluation = Evaluation(repository, threads)
    metrics: list[Metrics] = []
    pictures: list[ClipPictures] = []
    skipped: dict[str, str] = {}
    for path in tqdm(clips, desc="evaluate", unit="clip"):
        try:
            footage = evaluation.read(path, seconds)
            found = list(conditions(evaluation, path.name, footage, other))
        except (av.error.FFmpegError, ValueError) as error:
            skipped[path.name] = str(error)
            continue
        metrics += [one for one, _ in found]
        rows = {one.condition: results for one, results in found if one.condition != "untouched"}
        pictures.append(ClipPictures(path.name, {"filmed": footage.crops[footage.first :], **rows}))
    if not metrics:
        raise ValueError("no clip could be evaluated: " + "; ".join(skipped.values()))
    _write(out, metrics, pictures, skipped, feature_networks)
    return metrics


def _write(
    out: Path,
    metrics: list[Metrics],
    pictures: list[ClipPictures],
    skipped: dict[str, str],
    networks: dict[str, FeatureNetwork],
) -> None:
    """Write the results as JSON, Markdown and HTML."""
    frechet = {name: _frechet(pictures, network) for name, network in networks.items()}
    notes = [
        f"{name.upper()}: " + ", ".join(f"{w} {v:.1f}" for w, v in of.items()) + "." for name, of in frechet.items()
    ]
    notes += [] if frechet else [MISSING]
    own = {one.condition: one for one in means(metrics)}
    best = own.get("cross", own.get("self", metrics[0]))
    fid = frechet.get("fid", {}).get(best.condition)
    comparison = published.table(published.Published(f"InSync, {best.condition}", fid, best.identity, best.lse_c))
    sources = [published.SOURCE, published.OURS]
    out.mkdir(parents=True, exist_ok=True)
    document = {"figures": [asdict(one) for one in metrics], "refused": skipped, "frechet": frechet}
    (out / "evaluation.json").write_text(json.dumps(document, indent=1, allow_nan=True))
    paragraphs = [markdown(table(metrics)), *notes, "## Published results", markdown(comparison), *sources]
    (out / "evaluation.md").write_text("\n\n".join(paragraphs) + "\n")
    (out / "evaluation.html").write_text(page(table(metrics), notes, comparison, sources, skipped, pictures))


def _frechet(pictures: list[ClipPictures], network: FeatureNetwork) -> dict[str, float]:
    """Compute FID or FVD of every condition, over all clips that are dubbed in it."""
    names = dict.fromkeys(
        condition for one in pictures for condition in one.rows if condition not in ("filmed", *ROBUSTNESS)
    )
    return {
        condition: distances(
            {condition: [one.rows[condition] for one in pictures if condition in one.rows]},
            [one.rows["filmed"] for one in pictures if condition in one.rows],
            network,
        )[condition]
        for condition in names
    }


def clips_of(paths: list[Path]) -> list[Path]:
    """Replace every folder by the clips in it; keep files.

    Raises:
        FileNotFoundError: a path does not exist, or a folder has no clip in it.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in CLIP_ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise FileNotFoundError(f"no clip in {path}; file names must end in {', '.join(CLIP_ENDINGS)}")
        found += inside
    return found
