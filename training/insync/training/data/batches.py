"""Training batches for the renderer: target frames with their mouth codes, and reference crops of the same person."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from insync.core.head import PLACED, in_window
from insync.core.mouth import FACE_OVAL, OUTER_LIPS, MouthBasis
from insync.core.spec import CROP_SIZE, REFERENCES
from insync.network import mask
from insync.network.syncnet import FRAME_S, MOUTH_FRAMES
from insync.training.data.dataset import Dataset

Floats = npt.NDArray[np.float32]
Rng = np.random.Generator

CANDIDATES = 24  # frames from which the references are selected, as registration does for a twin
APART_S = 0.4  # minimum distance of references from every target, so that no reference is the target itself
COVERED_SHARE = 0.6  # share of frames with an occluder in the occlusion stage
# Of the same stage: standard deviation of each colour's gain, so that unusually red lips and yellow teeth occur too.
COVERED_CAST = 0.12
SMALL_SHARE = 0.3  # share of frames of the same stage that are downscaled and enlarged again, as if the face were …
SMALL = (0.25, 0.7)  # … this many times as large
NEUTRAL_PHOTO_SHARE = 0.6  # share of photos that show the mouth at rest
CHIN_REACH = 14  # pixels of the crop by which a chin moves down
CHIN_WIDTH = 0.7  # of the face's width
# Pixels below the chin that are hidden from the encoder, drawn for each frame, so that the edge does not reveal the mouth's aperture.
HIDDEN_REACH = (6, 32)
UNSTEADY = 0.004  # of half the window: standard deviation of detected landmarks
HIDDEN_MARGIN = (2, 9)  # pixels around the face that are also hidden


@dataclass(frozen=True)
class Batch:
    """The inputs and targets of one step: B targets of G people, B a multiple of G.

    Attributes:
        crops: [B, 3, 256, 256] in [0, 1], input of the encoder, with occluders.
        real: [B, 3, 256, 256], the same without occluders.
        face: [B, 1, 144, 160], 0 where speech moves nothing in the window: background, and hair beside the face.
        lips: [B, 1, 144, 160], 1 around the lips.
        hidden: [B, 1, 256, 256], 1 where the crop is hidden from the encoder.
        codes: [B, 12], mouth codes.
        mel: [B, 80, 40], log-mel of each frame's audio.
        references: [G, 5, 3, 256, 256], reference crops.
        reference_codes: [G, 5, 12], their mouth codes.
        points: [B, 468, 2], all landmarks, x and y, with the window's outer edges at ±1.
        reference_points: [G, 5, 468, 2], the same of the references.
        places: [B, 73, 2], the landmarks that are input of the network, with the noise of detection; see `insync.core.head`.
        reference_places: [G, 5, 73, 2], the same of the references.
    """

    crops: Tensor
    real: Tensor
    face: Tensor
    lips: Tensor
    hidden: Tensor
    codes: Tensor
    mel: Tensor
    references: Tensor
    reference_codes: Tensor
    points: Tensor
    reference_points: Tensor
    places: Tensor
    reference_places: Tensor


def farthest_points(points: Floats, count: int, first: int) -> list[int]:
    """Select `count` of the points float32 [N, D], each the farthest from the previous ones (Gonzalez, 1985); return indices, repeated if N is too small."""
    chosen = [first]
    distance = np.linalg.norm(points - points[first], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def to_tensor(crops: npt.NDArray[np.uint8]) -> Tensor:
    """Convert crops uint8 [..., 256, 256, 3] to float32 [..., 3, 256, 256] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(crops)).movedim(-1, -3).float() / 255


class Batches:
    """An endless source of random batches from a data set.

    Args:
        dataset: the footage.
        basis: its mouth basis.
        people: number of people in a batch, G.
        targets: frames of each person.
        seed: random seed.
        selective: whether references are selected for different mouth shapes, as registration does for a twin, or at random.
        photos: share of people whose references are a single photo.
        occluded: share of frames with an occluder in front of the mouth.
    """

    def __init__(
        self,
        dataset: Dataset,
        basis: MouthBasis,
        people: int,
        targets: int,
        seed: int,
        selective: bool = True,
        photos: float = 0.5,
        occluded: float = 0.3,
    ) -> None:
        self._data, self._people, self._targets, self._selective = dataset, people, targets, selective
        self._photos, self._occluded = photos, occluded
        self._codes = dataset.codes(basis)
        self._weights = basis.deviation / basis.deviation[0]
        sizes = np.sqrt([segment.frames for segment in dataset.segments])
        self._chance = sizes / sizes.sum()
        speaking = sizes * [
            speaks and segment.frames >= MOUTH_FRAMES
            for speaks, segment in zip(dataset.speaks, dataset.segments, strict=True)
        ]
        self._spoken = speaking / max(speaking.sum(), 1e-9)
        self._rng = np.random.default_rng(seed)

    def draw(self, augmented: bool = True, answer_leak_prob: float = 0.0, spoken: bool = False) -> Batch:
        """Draw a batch of random people and frames.

        Args:
            augmented: whether to change the light, mirror pictures and add occluders.
            answer_leak_prob: probability that a person's references include the targets themselves, so that copying is learned first.
            spoken: whether to draw people who speak, each in five consecutive frames 40 ms apart, for the SyncNet loss.

        Raises:
            ValueError: `spoken` is set, and no segment of the data set has usable speech.
        """
        rng = self._rng
        chance = self._spoken if spoken else self._chance
        if not chance.any():
            raise ValueError("no segment of this data set has usable speech for the SyncNet loss: set `sync` to 0")
        people = min(self._people, np.count_nonzero(chance))
        parts = [
            self._person(
                int(segment), self._targets_of(int(segment), spoken), augmented, bool(augmented and rng.random() < 0.5),
                bool(rng.random() < answer_leak_prob),
            )
            for segment in rng.choice(len(chance), people, replace=False, p=chance)
        ]  # fmt: skip
        columns = [list(column) for column in zip(*parts, strict=True)]
        crops, real, face, lips, hidden, codes, mel, points = (torch.cat(column) for column in columns[:8])
        references, reference_codes, reference_points = (torch.stack(column) for column in columns[8:])
        placed, reference_placed = points[:, PLACED], reference_points[:, :, PLACED]
        if augmented:
            noise = UNSTEADY * rng.standard_normal(placed.shape).astype(np.float32)
            placed = placed + torch.from_numpy(noise)
        return Batch(
            crops, real, face, lips, hidden, codes, mel, references, reference_codes, points, reference_points, placed, reference_placed,
        )  # fmt: skip

    def draw_covered(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw frames of random people for the occlusion stage, open mouths as often as closed ones, some with an occluder.

        Returns:
            Crops [count, 3, 256, 256] in [0, 1]; [count, 1, 144, 160], 1 where the window shows the uncovered face; the same, 1 around the lips.
        """
        rng, crops, bare, lips = self._rng, [], [], []
        for segment in rng.choice(len(self._chance), count, p=self._chance):
            rows = self._data.rows(int(segment))
            chance = _by_aperture(self._data.apertures[rows])
            row = rows.start + int(rng.choice(len(chance), p=chance))
            picture = Light(rng, cast=COVERED_CAST)(to_tensor(self._data.crops[row])[None])
            if rng.random() < SMALL_SHARE:
                picture = _as_if_small(picture, float(rng.uniform(*SMALL)))
            landmarks = self._data.landmarks[row]
            parts = [picture[0], *(torch.from_numpy(area(landmarks))[None] for area in (_speaking_area, _lips))]
            if rng.random() < 0.5:
                parts = [part.flip(-1) for part in parts]
            covered, free = self._occlude(parts[0], COVERED_SHARE)
            crops.append(covered)
            bare.append(mask.window(free * parts[1]))
            lips.append(mask.window(parts[2]))
        return torch.stack(crops), torch.stack(bare), torch.stack(lips)

    def references(
        self, segment: int, away_from: Floats, mirrored: bool = False
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """Select a segment's references, none near the times `away_from`; return rows [5] and codes float32 [5, 12]."""
        rows = self._data.rows(segment)
        index = np.arange(rows.start, rows.stop)
        gap = np.abs(self._data.time_s[index][:, None] - away_from[None]).min(1)
        far = index[gap > APART_S]
        pool = far if len(far) >= REFERENCES else index[np.argsort(-gap)[: 2 * REFERENCES]]
        pool = self._rng.choice(pool, min(CANDIDATES, len(pool)), replace=False)
        codes = self._codes[1 if mirrored else 0]
        if self._selective:
            shapes = codes[pool] * self._weights
            chosen = farthest_points(shapes, REFERENCES, int(np.abs(shapes).sum(1).argmin()))
        else:
            chosen = [k % len(pool) for k in range(REFERENCES)]
        return pool[chosen], codes[pool[chosen]]

    def _targets_of(self, segment: int, spoken: bool) -> npt.NDArray[np.int64]:
        """Draw the rows of a segment's targets."""
        rows = self._data.rows(segment)
        chance = _by_aperture(self._data.apertures[rows])
        drawn = self._rng.choice(len(chance), 1 if spoken else self._targets, p=chance)
        if spoken:
            times, reach = self._data.time_s[rows], MOUTH_FRAMES // 2
            middle = times[np.clip(drawn[0], reach, len(times) - reach - 1)]
            wanted = middle + FRAME_S * np.arange(-reach, reach + 1)
            drawn = np.abs(times[None] - wanted[:, None]).argmin(1)
        return np.asarray(rows.start + drawn, np.int64)

    def _person(
        self, segment: int, index: npt.NDArray[np.int64], augmented: bool, mirrored: bool, answer_leak_prob: bool
    ) -> tuple[Tensor, ...]:
        """Return one person's part of a batch."""
        rng, data = self._rng, self._data
        chosen, reference_codes = self.references(segment, data.time_s[index], mirrored)
        if answer_leak_prob:
            count = min(len(index), REFERENCES)
            chosen[:count] = index[:count]
            order = rng.permutation(REFERENCES)
            chosen = chosen[order]
            reference_codes = self._codes[1 if mirrored else 0][chosen]
        elif augmented and rng.random() < self._photos:
            one = 0 if rng.random() < NEUTRAL_PHOTO_SHARE else int(rng.integers(REFERENCES))
            chosen, reference_codes = chosen[[one] * REFERENCES], reference_codes[[one] * REFERENCES]
        real, references = to_tensor(data.crops[index]), to_tensor(data.crops[chosen])
        lips = torch.from_numpy(np.stack([_lips(data.landmarks[i]) for i in index]))[:, None]
        face = torch.from_numpy(np.stack([_speaking_area(data.landmarks[i]) for i in index]))[:, None]
        hidden = torch.from_numpy(np.stack([self._hidden(data.landmarks[i]) for i in index]))[:, None]
        if mirrored:
            real, references, lips, face, hidden = (p.flip(-1) for p in (real, references, lips, face, hidden))
        if augmented:
            real, references = Light(rng)(real), Light(rng, strength=0.4)(references)
        crops = real
        if augmented:
            covered, free = zip(*(self._occlude(picture, self._occluded) for picture in real), strict=True)
            crops, hidden = torch.stack(covered), hidden * torch.stack(free)
        codes = self._codes[1 if mirrored else 0][index]
        windows = (mask.window(picture) for picture in (face, lips))
        points = (torch.from_numpy(_in_window(data.landmarks[rows], mirrored)) for rows in (index, chosen))
        own_points, reference_points = points
        return (
            crops, real, *windows, hidden, torch.from_numpy(codes), torch.from_numpy(data.mel[index].astype(np.float32)), own_points,
            references, torch.from_numpy(reference_codes), reference_points,
        )  # fmt: skip

    def _hidden(self, landmarks: Floats) -> Floats:
        """Return a mask of what is hidden from the encoder: the face, with random margins."""
        picture = _outline(landmarks, self._rng.uniform(*HIDDEN_REACH))
        size = 2 * int(self._rng.integers(*HIDDEN_MARGIN)) + 1
        return np.asarray(cv2.dilate(picture, np.ones((size, size), np.uint8)), np.float32)

    def _occlude(self, picture: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Cover part of the mouth with a shape like that of a hand or an object, textured from another picture or in one colour."""
        rng = self._rng
        if rng.random() > share:
            return picture, torch.ones(1, CROP_SIZE, CROP_SIZE)
        shape = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
        x, y = rng.uniform(70, 186), rng.uniform(130, 256)
        kind = rng.integers(4)
        if kind == 0:
            axes = (int(rng.uniform(12, 60)), int(rng.uniform(12, 60)))
            cv2.ellipse(shape, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        elif kind == 1:  # fingers, microphones, bars
            angle = rng.uniform(0, np.pi)
            reach = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(60, 200)
            ends = [tuple(int(v) for v in np.array([x, y]) + sign * reach) for sign in (rng.choice([0, -1]), 1)]
            cv2.line(shape, ends[0], ends[1], 1.0, int(rng.uniform(8, 40)))
        elif kind == 2:
            corners = np.array([x, y]) + rng.normal(0, 35, (int(rng.integers(3, 8)), 2))
            cv2.fillPoly(shape, [cv2.convexHull(corners.astype(np.int32))], 1.0)
        else:  # a hand from below: fingers side by side
            width = rng.uniform(10, 20)
            for finger in range(int(rng.integers(2, 5))):
                tip = (int(x + finger * width * 1.3), int(y + rng.uniform(-25, 25)))
                cv2.line(shape, tip, (int(tip[0] + rng.uniform(-30, 30)), CROP_SIZE + 40), 1.0, int(width))
        soft = torch.from_numpy(cv2.GaussianBlur(shape, (0, 0), float(rng.uniform(0.6, 2.0))))[None]
        if rng.random() < 0.6:
            other = to_tensor(self._data.crops[int(rng.integers(len(self._data.crops)))])
            other = torch.roll(other, (int(rng.integers(256)), int(rng.integers(256))), (1, 2))
            texture = Light(rng)(other[None])[0]
        else:
            texture = torch.from_numpy(rng.random((3, 1, 1)).astype(np.float32)) + 0.03 * torch.randn(
                3, CROP_SIZE, CROP_SIZE
            )
        return (picture * (1 - soft) + texture.clamp(0, 1) * soft), 1 - soft


def _by_aperture(apertures: Floats) -> npt.NDArray[np.float64]:
    """Return the probabilities of drawing frames with these apertures float32 [N]. Open mouths are rare, so half of the weight is proportional to the aperture."""
    wide = np.maximum(apertures + 0.02, 0.005).astype(np.float64)
    chance = 0.5 / len(wide) + 0.5 * wide / wide.sum()
    return np.asarray(chance / chance.sum())


def _as_if_small(pictures: Tensor, share: float) -> Tensor:
    """Downscale pictures [B, 3, H, W] by a factor and enlarge them again, as if the face were that small."""
    size = (round(pictures.shape[-2] * share), round(pictures.shape[-1] * share))
    small = F.interpolate(pictures, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=pictures.shape[-2:], mode="bilinear")


def _in_window(landmarks: Floats, mirrored: bool) -> Floats:
    """Convert landmarks float32 [..., 468, 2] from pixels of the crop to coordinates with the window's outer edges at ±1."""
    if mirrored:
        landmarks = np.stack([CROP_SIZE - 1 - landmarks[..., 0], landmarks[..., 1]], axis=-1)
    return in_window(landmarks)


def _speaking_area(landmarks: Floats) -> Floats:
    """Return a mask of the face and of where its chin moves when the mouth opens; the rest of the crop stays as filmed."""
    picture = _outline(landmarks, CHIN_REACH)
    return np.asarray(cv2.GaussianBlur(cv2.dilate(picture, np.ones((5, 5), np.uint8)), (0, 0), 2.5), np.float32)


def _outline(landmarks: Floats, reach: float) -> Floats:
    """Return a mask of the face, extended by `reach` pixels below the chin."""
    picture = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    oval = landmarks[list(FACE_OVAL), :2]
    centre = oval.mean(0)
    lower = centre + (oval - centre) * (CHIN_WIDTH, 1.0) + (0.0, reach)
    for outline in (oval, lower):
        cv2.fillPoly(picture, [outline.round().astype(np.int32)], 1.0)
    return picture


def _lips(landmarks: Floats) -> Floats:
    """Return a mask of the lips with soft edges."""
    picture = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    hull = cv2.convexHull(landmarks[list(OUTER_LIPS)].round().astype(np.int32))
    cv2.fillConvexPoly(picture, hull, 1.0)
    return np.asarray(cv2.GaussianBlur(cv2.dilate(picture, np.ones((9, 9), np.uint8)), (0, 0), 3), np.float32)


class Light:
    """A random change of exposure, contrast, saturation and white balance, the same for all pictures that it is applied to.

    Args:
        rng: random generator.
        strength: strength of the change; 0 changes nothing.
        cast: standard deviation of each colour's gain.
    """

    def __init__(self, rng: Rng, strength: float = 1.0, cast: float = 0.04) -> None:
        gain = rng.uniform(1 - 0.6 * strength, 1 + 0.2 * strength) * (1 + strength * rng.normal(0, cast, (3, 1, 1)))
        self._gain = torch.from_numpy(gain.astype(np.float32))
        self._bend = float(np.clip(rng.normal(0, 0.2 * strength), -0.5, 0.5))
        self._saturation = float(rng.uniform(1 - 0.4 * strength, 1 + 0.4 * strength))

    def __call__(self, pictures: Tensor) -> Tensor:
        """Apply the change to pictures [B, 3, H, W] in [0, 1]."""
        grey = pictures.mean(1, keepdim=True)
        toned = torch.lerp(grey.expand_as(pictures), pictures, self._saturation)
        # A parabola through 0 and 1 has the effect of a gamma curve at a tenth of the cost.
        return (toned * (1 + self._bend - self._bend * toned)).mul_(self._gain).clamp_(0, 1)
