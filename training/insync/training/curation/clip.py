"""The processing of one clip for a data set: decode it, detect scenes, track one face, measure every frame, store crops and audio as a part.

A part is written completely or not at all, so that a killed curation resumes with the clip that it was processing. A clip that cannot
be read gets a part with the reason.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from insync.client.media.scenes import Scenes
from insync.core.mouth import OUTER_LIPS, RIGID, skull_fixed
from insync.core.spec import MEL_BANDS, MEL_FRAMES, SAMPLE_RATE_HZ
from insync.ensemble.models.face import Face, FaceFinder, take_crop
from insync.network import mask
from insync.training.data.audio import read_sound
from insync.training.data.crops import encode
from insync.training.data.segments import part_path

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

VERSION = 4  # of the parts; parts of another version are recomputed
MAX_UPSCALE = 2.1  # crop pixels per pixel of the footage
YAW_RANGE = (0.24, 0.76)  # position of the nose between the cheeks, as a share of the face's width
MAX_PITCH = 30.0  # degrees
FACE_CUT = 28.0  # mean absolute difference of consecutive upper-face crops, of 255
JUMP = 0.5  # of the face's size: a larger move between two frames means another face
EVERY_VISIBLE = 5  # frames; the occlusion head is run on every fifth
VIEW_HEIGHT = 112  # pixels
MAX_LATE_S = 10.0  # maximum start of a track after the start of the file
EYES = (33, 263)  # outer corners

GOOD, ABSENT, FAR, TURNED = "", "no face", "face too small", "face turned away"


@dataclass(frozen=True)
class Run:
    """Consecutive frames of one scene and face with the same verdict.

    Attributes:
        verdict: empty if the frames are usable, else the reason why not.
        first: row of its first stored crop in the part.
        stored: number of its frames that have a crop.
        start_s: time of its first frame.
        end_s: time of its last frame.
        frames: number of frames.
        scene: number of the scene and face.
        view: thumbnail of its first frame, as base64 of a JPEG; for the report.
    """

    verdict: str
    first: int
    stored: int
    start_s: float
    end_s: float
    frames: int
    scene: int
    view: str = ""


@dataclass(frozen=True)
class Part:
    """A processed clip.

    Attributes:
        clip: file name.
        fps: frames per second.
        size: width and height in pixels.
        error: why it could not be read; empty if it could.
        runs: its runs in temporal order.
        columns: one row for each stored frame; see `frames.npz` in `insync.training.curation.pipeline`.
        audio: float32 [samples] at 16 kHz; None without audio track.
    """

    clip: str
    fps: float
    size: tuple[int, int]
    error: str
    runs: tuple[Run, ...]
    columns: dict[str, npt.NDArray[Any]]
    audio: Floats | None


class Visibility:
    """An estimator of the visible share of the lips, which uses the occlusion head of the served encoder.

    Args:
        repository: the model repository.
    """

    def __init__(self, repository: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        path = repository / "lipsync_encoder" / "1" / "model.onnx"
        self._graph = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._mel = np.zeros((1, MEL_BANDS, MEL_FRAMES), np.float32)

    def __call__(self, crop: Picture, landmarks: Floats) -> float:
        """Return the visible share of the lips, 0 to 1, in a crop uint8 [256, 256, 3] with landmarks float32 [468, 2] in its pixels."""
        planes = np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
        (source,) = self._graph.run(["SOURCE"], {"CROP": planes, "MEL": self._mel})
        bare = 1 / (1 + np.exp(-np.clip(source[0, -1], -30, 30)))
        shape = np.zeros(crop.shape[:2], np.float32)
        cv2.fillConvexPoly(shape, cv2.convexHull(landmarks[list(OUTER_LIPS)].round().astype(np.int32)), 1.0)
        shape = shape[mask.ROWS[0] : mask.ROWS[1], mask.COLUMNS[0] : mask.COLUMNS[1]]
        weights = cv2.resize(shape, bare.shape[::-1], interpolation=cv2.INTER_AREA)
        return float((bare * weights).sum() / max(float(weights.sum()), 1e-6))


def pose_degrees(landmarks: Floats, rigid: Floats) -> tuple[float, float]:
    """Return yaw (positive: to the picture's right) and pitch (positive: down) of landmarks float32 [468, 3] relative to rigid [R, 3]."""
    a = landmarks[list(RIGID)].astype(np.float64)
    b = rigid.astype(np.float64)
    u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
    turn = u @ np.diag([1.0, 1.0, float(np.sign(np.linalg.det(u @ vt)))]) @ vt
    ahead = turn @ np.array([0.0, 0.0, -1.0])  # viewing direction; smaller z is nearer
    yaw = np.degrees(np.arctan2(ahead[0], -ahead[2]))
    pitch = np.degrees(np.arctan2(ahead[1], np.hypot(ahead[0], ahead[2])))
    return float(yaw), float(pitch)


def _verdict(face: Face, pitch: float) -> str:
    """Return why a face is not usable; empty if it is."""
    left, right, nose = (face.landmarks[i, 0] for i in (234, 454, 4))
    turned = (nose - left) / max(right - left, 1e-6)
    if float(np.hypot(*face.transform[:, 0])) > MAX_UPSCALE:
        return FAR
    if not YAW_RANGE[0] < turned < YAW_RANGE[1] or abs(pitch) > MAX_PITCH:
        return TURNED
    return GOOD


class _Builder:
    """A collector of the frames, runs and crops of one clip."""

    def __init__(self, rigid: Floats, visibility: Visibility, sink: Any) -> None:
        self._rigid, self._visibility, self._sink = rigid, visibility, sink
        self.rows: dict[str, list[Any]] = {
            name: []
            for name in ("time_s", "landmarks", "skull", "jpeg_start", "jpeg_size", "sharpness", "eyes_px", "yaw", "pitch", "visible")
        }  # fmt: skip
        self.runs: list[Run] = []
        self._upper: Floats | None = None
        self._box: Floats | None = None
        self._bytes = self._count = self._scene = 0

    def add(self, image: Picture, time_s: float, face: Face | None, cut: bool) -> None:
        """Add a frame uint8 [H, W, 3] with its face; `cut` tells whether a scene starts with it."""
        stored = len(self.rows["time_s"])
        verdict = ABSENT
        if face is None:
            self._upper = self._box = None
        else:
            cut |= self._add_face(image, time_s, face)
            verdict = _verdict(face, self.rows["pitch"][-1])
        self._scene += cut
        last = None if cut or not self.runs else self.runs[-1]
        if last is not None and last.verdict == verdict:
            frames, crops = last.frames + 1, last.stored + (face is not None)
            self.runs[-1] = replace(last, stored=crops, end_s=time_s, frames=frames)
        else:
            self.runs.append(Run(verdict, stored, int(face is not None), time_s, time_s, 1, self._scene, _view(image)))

    def _add_face(self, image: Picture, time_s: float, face: Face) -> bool:
        """Store a face; return whether it is another face, or the same after a cut."""
        crop = take_crop(image, face.transform)
        upper = crop[:120:4, ::4].astype(np.float32)
        other = self._upper is not None and float(np.abs(upper - self._upper).mean()) > FACE_CUT
        if self._box is not None:
            size = float((self._box[2:] - self._box[:2]).max())
            other |= float(np.abs(face.box - self._box).max()) > JUMP * size
        self._upper, self._box = upper, face.box
        landmarks = np.c_[face.landmarks[:, :2], np.ones(len(face.landmarks))] @ face.transform.T
        mouth = cv2.cvtColor(crop[slice(*mask.MOUTH_ROWS), slice(*mask.MOUTH_COLUMNS)], cv2.COLOR_RGB2GRAY)
        yaw, pitch = pose_degrees(face.landmarks, self._rigid)
        data = encode(crop)
        self._sink.write(data)
        look = self._count % EVERY_VISIBLE == 0
        values = {
            "time_s": time_s,
            "landmarks": landmarks,
            "skull": skull_fixed(face.landmarks, self._rigid)[:, :2],
            "jpeg_start": self._bytes,
            "jpeg_size": len(data),
            "sharpness": float(cv2.Laplacian(mouth, cv2.CV_32F).var()),
            "eyes_px": float(np.linalg.norm(face.landmarks[EYES[0], :2] - face.landmarks[EYES[1], :2])),
            "yaw": yaw,
            "pitch": pitch,
            "visible": self._visibility(crop, landmarks) if look else np.nan,
        }
        for name, value in values.items():
            self.rows[name].append(value)
        self._bytes += len(data)
        self._count += 1
        return other

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return the measurements as arrays."""
        integers = ("jpeg_start", "jpeg_size")
        shapes = {"landmarks": (-1, 468, 2), "skull": (-1, 468, 2)}
        return {
            name: np.array(values, np.int64 if name in integers else np.float32).reshape(shapes.get(name, (-1,)))
            for name, values in self.rows.items()
        }


def _view(image: Picture) -> str:
    """Return a thumbnail of a frame as base64 of a JPEG."""
    width = max(1, round(image.shape[1] * VIEW_HEIGHT / image.shape[0]))
    return base64.b64encode(encode(cv2.resize(image, (width, VIEW_HEIGHT), interpolation=cv2.INTER_AREA), 80)).decode()


def signature(path: Path) -> str:
    """Return a string that changes when the clip does."""
    state = path.stat()
    return f"{VERSION} {state.st_size} {state.st_mtime_ns}"


def is_done(path: Path, out: Path) -> bool:
    """Return whether a data set has an up-to-date part of this clip."""
    part = part_path(out, path.name, ".json")
    try:
        return bool(json.loads(part.read_text())["signature"] == signature(path))
    except (OSError, ValueError, KeyError):
        return False


def make_part(path: Path, out: Path, finder: FaceFinder, visibility: Visibility, rigid: Floats) -> None:
    """Process a clip and write its part. If the clip cannot be read, the part contains the reason.

    Args:
        path: the clip.
        out: the data set's folder.
        finder: face detector.
        visibility: estimator of the visible share of the lips.
        rigid: float32 [R, 3], see `MouthBasis`.
    """
    names = {ending: part_path(out, path.name, ending) for ending in (".jpgs", ".npz", ".json")}
    names[".json"].unlink(missing_ok=True)
    error, fps, size, audio = "", 0.0, (0, 0), None
    with open(names[".jpgs"], "wb") as sink:
        builder = _Builder(rigid, visibility, sink)
        try:
            audio, begins_s = read_sound(path)
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise ValueError("no video track")
                # The timestamps of a container may start anywhere; those of the part start at 0, for both tracks.
                zero_s = float(container.start_time or 0) / av.time_base
                audio = None if audio is None else _on_clock(audio, begins_s - zero_s)
                fps = float(container.streams.video[0].average_rate or 25)
                scenes, hint, last_s = Scenes(), None, -1.0
                for frame in container.decode(video=0):
                    image = frame.to_ndarray(format="rgb24")
                    time_s = float(frame.time) - zero_s if frame.time is not None else last_s + 1 / fps
                    if time_s <= last_s:  # timestamps must increase
                        continue
                    size, cut = (image.shape[1], image.shape[0]), scenes.cut(image)
                    face = finder.find(image, None if cut else hint)
                    hint = None if face is None else face.box
                    builder.add(image, time_s, face, cut or time_s - last_s > 2.5 / fps)
                    last_s = time_s
        except (av.FFmpegError, ValueError, OSError) as problem:
            # The frames before the damage are still usable.
            error = f"cannot be read: {getattr(problem, 'strerror', None) or problem}"
            log.warning("%s: %s", path.name, error)
    sound = np.zeros(0, np.int16) if audio is None else (np.clip(audio, -1, 1) * 32767).astype(np.int16)
    with open(names[".npz"], "wb") as sink:
        np.savez(sink, audio=sound, has_sound=np.array(audio is not None), **builder.columns())
    document = {
        "signature": signature(path),
        "clip": path.name,
        "fps": fps,
        "size": size,
        "error": error,
        "runs": [asdict(run) for run in builder.runs],
    }
    part = names[".json"].with_suffix(".part")  # written last: it marks the part as complete
    part.write_text(json.dumps(document))
    os.replace(part, names[".json"])


def _on_clock(audio: Floats, begins_s: float) -> Floats:
    """Pad or cut audio float32 [samples] that starts at `begins_s`, so that it starts at 0."""
    samples = round(float(np.clip(begins_s, -MAX_LATE_S, MAX_LATE_S)) * SAMPLE_RATE_HZ)
    return np.pad(audio, (samples, 0)) if samples > 0 else audio[-samples:]


def read_part(out: Path, clip: str) -> Part:
    """Read a clip's part of a data set."""
    document = json.loads(part_path(out, clip, ".json").read_text())
    with np.load(part_path(out, clip, ".npz")) as data:
        columns = {name: data[name] for name in data.files}
    audio = columns.pop("audio").astype(np.float32) / 32767
    has_sound = bool(columns.pop("has_sound"))
    runs = tuple(Run(**run) for run in document["runs"])
    width, height = document["size"]
    return Part(
        clip,
        float(document["fps"]),
        (width, height),
        str(document["error"]),
        runs,
        columns,
        audio if has_sound else None,
    )
