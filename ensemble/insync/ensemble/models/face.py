"""Face detection: a face in a frame, its 468 landmarks, and the similarity transform from the frame to the face-aligned crop.

Calls are stateless: the face's last position, which tracking needs, comes in as a hint, so any replica serves any frame.
Detector: BlazeFace (Bazarevsky et al., 2019); landmarks: FaceMesh (Kartynnik et al., 2019), both as published by MediaPipe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from insync.core.errors import BadInput
from insync.core.spec import CROP_SIZE, MAX_SIDE

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

LANDMARKS = 468
MESH_SIZE = 192  # pixels, input of the landmark network
ROI_SCALE = 1.5  # side of the landmark network's region / longer side of the face box
MAX_RUNS = 6  # runs of the landmark network per face
# The landmark network runs again if the face differs from its region by more than this:
OFF_CENTRE = 0.035  # distance of the centres, as a share of the side
TURNED_RAD = math.radians(12)
RESIZED = 0.07  # logarithm of the ratio of the sides
MIN_PRESENCE = 0.5  # below this, a hinted region is dropped and the whole frame is searched
MIN_SCORE = 0.5  # of a detection
MIN_FACE_PIXELS = 24

# Landmarks that speech does not move: eye corners, bridge and base of the nose. The base of the nose has the largest weight,
# since the patch is anchored to it: so the mouth stays at the same place of the crop while the head turns.
STABLE = (33, 133, 362, 263, 168, 6, 197, 195, 5, 98, 327, 2)
_STABLE_WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4], np.float32)
# Their positions in the crop, in pixels: the mean over the training clips' faces, Procrustes-aligned and made symmetric.
# fmt: off
TEMPLATE = np.array([(63.5, 60.0), (102.5, 61.7), (152.5, 61.7), (191.5, 60.0), (127.5, 52.0), (127.5, 62.8), (127.5, 72.3), (127.5, 81.0), (127.5, 90.4), (104.1, 119.5), (150.9, 119.5), (127.5, 121.5)], np.float32)
# fmt: on


@dataclass(frozen=True)
class Face:
    """One face in one frame.

    Attributes:
        landmarks: float32 [468, 3], x and y in pixels of the frame, z in the same scale (smaller is nearer).
        box: float32 [4], x0, y0, x1, y1 in pixels: the landmarks' bounding box, and the hint for the next frame.
        confidence: that this is a face, in [0, 1].
        transform: float32 [2, 3], similarity from frame to crop pixels, pixel centres at integers.
    """

    landmarks: Floats
    box: Floats
    confidence: float
    transform: Floats


@dataclass(frozen=True)
class _Region:
    """A square region of a frame, possibly rotated: centre and side in pixels, angle in radians."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def resembles(self, other: _Region) -> bool:
        """Return whether the landmark network would see nearly the same in the other region."""
        return (
            math.hypot(self.x - other.x, self.y - other.y) <= OFF_CENTRE * other.side
            and abs(_wrap(self.angle - other.angle)) <= TURNED_RAD
            and abs(math.log(self.side / other.side)) <= RESIZED
        )

    def matrix(self, size: int) -> Floats:
        """Return the transform from the frame to a size × size picture of this region, float32 [2, 3]."""
        scale = size / self.side
        cos, sin = scale * math.cos(self.angle), scale * math.sin(self.angle)
        half = (size - 1) / 2
        return np.array(
            [[cos, sin, half - cos * self.x - sin * self.y], [-sin, cos, half + sin * self.x - cos * self.y]],
            np.float32,
        )


def similarity(source: Floats, target: Floats, weights: Floats) -> Floats:
    """Return the least-squares similarity from source to target points (Umeyama, 1991), without reflection.

    Args:
        source: float [N, 2].
        target: float [N, 2].
        weights: float [N], at least 0.

    Returns:
        float32 [2, 3].
    """
    share = (weights / weights.sum()).astype(np.float64)
    source_mean, target_mean = share @ source, share @ target
    a, b = source - source_mean, target - target_mean
    # With 2-D points as complex numbers, the best rotation and scale are one complex ratio.
    z, w = a[:, 0] + 1j * a[:, 1], b[:, 0] + 1j * b[:, 1]
    spread = float((share * np.abs(z) ** 2).sum())
    ratio = (share * w * np.conj(z)).sum() / max(spread, 1e-12)
    linear = np.array([[ratio.real, -ratio.imag], [ratio.imag, ratio.real]])
    return np.hstack([linear, (target_mean - linear @ source_mean)[:, None]]).astype(np.float32)


def invert(transform: Floats) -> Floats:
    """Invert an affine transform, float32 [2, 3] → float32 [2, 3]."""
    return np.asarray(cv2.invertAffineTransform(np.asarray(transform, np.float64)), np.float32)


def face_transform(landmarks: Floats) -> Floats:
    """Return the similarity from frame to crop, float32 [2, 3], for landmarks float32 [468, ≥ 2] in pixels."""
    return similarity(landmarks[list(STABLE), :2], TEMPLATE, _STABLE_WEIGHTS)


def centred_transform(width: int, height: int) -> Floats:
    """Return the similarity that fits the whole frame into the crop, for frames without a face: float32 [2, 3].

    Raises:
        BadInput: the frame has no pixels, or a side that is too long.
    """
    if min(width, height) < 1:
        raise BadInput(f"IMAGE is {width}×{height}: it has no pixels")
    if max(width, height) > MAX_SIDE:
        raise BadInput(f"IMAGE is {width}×{height}: its sides must be at most {MAX_SIDE:,} pixels")
    return _Region((width - 1) / 2, (height - 1) / 2, max(width, height)).matrix(CROP_SIZE)


def take_crop(image: Image, transform: Floats) -> Image:
    """Return the face-aligned crop, uint8 [256, 256, 3], of an image uint8 [H, W, 3]; edge pixels repeat outside it."""
    size = (CROP_SIZE, CROP_SIZE)
    crop = cv2.warpAffine(image, transform, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


def is_hint(box: Floats | None) -> bool:
    """Return whether a box can be used as a hint: finite and with an area (zeros mean "no face", as in FACE)."""
    if box is None or not np.isfinite(box).all():
        return False
    return bool(box[2] - box[0] >= MIN_FACE_PIXELS / 2 and box[3] - box[1] >= MIN_FACE_PIXELS / 2)


class _Network:
    """A LiteRT network with one image input."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if not path.is_file():
            raise FileNotFoundError(
                f"{path.name} is missing from {path.parent.name}: the model repository is incomplete"
            )
        self._interpreter: Any = Interpreter(str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [detail["index"] for detail in self._interpreter.get_output_details()]
        self.size = int(self._interpreter.get_input_details()[0]["shape"][1])

    def __call__(self, picture: Floats) -> list[Floats]:
        self._interpreter.set_tensor(self._input, picture[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


class _Detector:
    """A single-shot face detector over fixed anchors."""

    def __init__(self, path: Path, threads: int, grids: tuple[tuple[int, int], ...]) -> None:
        self._network = _Network(path, threads)
        anchors = []
        for cells, repeat in grids:  # cells per side, anchors per cell
            centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells
            y, x = np.meshgrid(centres, centres, indexing="ij")
            anchors.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), repeat, axis=0))
        self._anchors = np.concatenate(anchors)

    def __call__(self, image: Image, where: _Region) -> list[tuple[float, _Region]]:
        """Return (score, region for the landmark network) of each face in one square of the image, best first."""
        size = self._network.size
        matrix = where.matrix(size)
        picture = cv2.warpAffine(image, matrix, (size, size), flags=_flags(where.side / size))
        boxes, logits = self._network(picture.astype(np.float32) / 127.5 - 1)
        scores = 1 / (1 + np.exp(-np.clip(logits[0, :, 0], -60, 60)))
        back = invert(matrix)
        found: list[tuple[float, _Region]] = []
        for index in np.argsort(-scores):
            if scores[index] < MIN_SCORE or len(found) == 8:
                break
            points = boxes[0, index].reshape(-1, 2) / size
            centre, extent, eyes = points[0] + self._anchors[index], points[1], points[2:4] + self._anchors[index]
            centre, eyes = [(p * size - 0.5) @ back[:, :2].T + back[:, 2] for p in (centre, eyes)]
            angle = math.atan2(eyes[1, 1] - eyes[0, 1], eyes[1, 0] - eyes[0, 0])
            side = float(extent.max()) * where.side
            if all(math.hypot(centre[0] - r.x, centre[1] - r.y) > 0.3 * r.side / ROI_SCALE for _, r in found):
                found.append(
                    (float(scores[index]), _Region(float(centre[0]), float(centre[1]), side * ROI_SCALE, angle))
                )
        return [(score, region) for score, region in found if region.side >= MIN_FACE_PIXELS]


def _flags(shrink: float) -> int:
    # Bilinear sampling aliases when it shrinks a lot; a warp has no area averaging, and a box blur would cost more.
    return int(cv2.INTER_AREA if shrink > 1 else cv2.INTER_LINEAR)


class FaceFinder:
    """Finds and tracks a face. Not thread-safe; use one per process or thread.

    Args:
        folder: folder of `face_landmark.tflite`, `face_detection_short_range.tflite` and
            `face_detection_full_range_sparse.tflite`.
        threads: CPU threads of each network.

    Raises:
        FileNotFoundError: a network is missing.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._mesh = _Network(folder / "face_landmark.tflite", threads)
        self._near = _Detector(folder / "face_detection_short_range.tflite", threads, ((16, 2), (8, 6)))
        self._far = _Detector(folder / "face_detection_full_range_sparse.tflite", threads, ((48, 1),))

    def find(self, image: Image, hint: Floats | None = None) -> Face | None:
        """Find one face.

        Args:
            image: uint8 [H, W, 3], RGB.
            hint: float32 [4], box x0, y0, x1, y1 in pixels of the face's last position, to track that face. With None,
                zeros or not-a-number, the whole frame is searched for the largest face.

        Returns:
            The face, or None if there is none.
        """
        if is_hint(hint):
            assert hint is not None
            x0, y0, x1, y1 = (float(v) for v in hint)
            region = _Region((x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0) * ROI_SCALE)
            face = self._look(image, region)
            if face is not None:
                return face
        for _, region in self._detect(image, hint):
            face = self._look(image, region)
            if face is not None:
                return face
        return None

    def _detect(self, image: Image, hint: Floats | None) -> list[tuple[float, _Region]]:
        height, width = image.shape[:2]
        whole = _Region((width - 1) / 2, (height - 1) / 2, max(width, height))
        found = self._near(image, whole) or self._far(image, whole)
        if is_hint(hint):
            assert hint is not None
            x, y = float(hint[0] + hint[2]) / 2, float(hint[1] + hint[3]) / 2
            return sorted(found, key=lambda item: math.hypot(item[1].x - x, item[1].y - y))
        return sorted(found, key=lambda item: -item[0] * item[1].side)

    def _look(self, image: Image, region: _Region) -> Face | None:
        """Run the landmark network on a region, then on the region of the found landmarks, until it stops changing.

        In an off-centre region (a hint from some frames ago, a coarse detection) landmarks are biased towards its centre.
        """
        for _ in range(MAX_RUNS):
            landmarks, presence = self._landmarks(image, region)
            if presence < MIN_PRESENCE:
                return None
            better = _region_of(landmarks)
            if region.resembles(better):
                break
            region = better
        box = np.concatenate([landmarks[:, :2].min(0), landmarks[:, :2].max(0)])
        height, width = image.shape[:2]
        inside = box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0
        if not inside or float((box[2:] - box[:2]).max()) < MIN_FACE_PIXELS:
            return None
        return Face(landmarks, box, presence, face_transform(landmarks))

    def _landmarks(self, image: Image, region: _Region) -> tuple[Floats, float]:
        matrix = region.matrix(MESH_SIZE)
        picture = cv2.warpAffine(image, matrix, (MESH_SIZE, MESH_SIZE), flags=cv2.INTER_LINEAR)
        outputs = self._mesh(picture.astype(np.float32) / 255)
        points = max(outputs, key=lambda output: output.size).reshape(LANDMARKS, 3)
        logit = float(min(outputs, key=lambda output: output.size).reshape(()))
        landmarks = np.empty((LANDMARKS, 3), np.float32)
        back = invert(matrix)
        landmarks[:, :2] = (points[:, :2] - 0.5) @ back[:, :2].T + back[:, 2]
        landmarks[:, 2] = points[:, 2] * (region.side / MESH_SIZE)
        return landmarks, 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))


def _region_of(landmarks: Floats) -> _Region:
    right, left = landmarks[33, :2], landmarks[263, :2]  # outer eye corners
    angle = math.atan2(left[1] - right[1], left[0] - right[0])
    # The box is measured in the face's own orientation, so that its size does not depend on the angle.
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], np.float32)
    turned = landmarks[:, :2] @ turn.T
    low, high = turned.min(0), turned.max(0)
    centre = ((low + high) / 2) @ turn
    return _Region(float(centre[0]), float(centre[1]), float((high - low).max()) * ROI_SCALE, angle)


def _wrap(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi
