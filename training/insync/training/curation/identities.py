"""Clustering of segments by person, and detection of duplicates, from appearance alone, so that people can be split into train and held out.

A person is a cluster of segments of similar appearance: proportions of the face in a skull-fixed frame, and the colours and shading of
the upper half of the crop. This is not face recognition. Its limits: one person in other light, make-up or hair becomes two people, which
only matters if one of them is held out; two people who look alike on small footage become one, which does no harm.
Segments of one clip count as closer, but not as one person, since a clip may be edited from takes of several people.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

UPPER = slice(24, 120)  # rows of the crop above the mouth region
SIDES = slice(32, 224)
GRID = (12, 6)  # cells of the upper half that are compared, wide and high
LOOKS_SCALE = 14.0  # of 255: typical difference of a cell between two takes of one person
SHAPE_SCALE = 0.028  # of the distance of the outer eye corners: typical difference of a landmark between these
# Of the combined distance. In footage of known people, two takes of one person have 0.2 to 1.0, those of two people mostly above 1.
SAME_PERSON = 0.95
SAME_CLIP = 0.6  # factor for two takes of one clip: these mostly show one person in different poses
# Landmarks that neither speech nor eyebrows move much: eyes, nose, sides of the face.
STEADY = (
    33,
    133,
    362,
    263,
    168,
    6,
    197,
    195,
    5,
    4,
    98,
    327,
    2,
    10,
    151,
    127,
    356,
    234,
    454,
    93,
    323,
    132,
    361,
    145,
    374,
    159,
    386,
)
HASH = 16  # cells per side of a frame's perceptual hash
HASH_EVERY = 1  # frames
SAME_HASH = 0.06  # maximum share of bits that differ between two encodings of one frame
SAME_MOUTH = 0.9  # minimum correlation of the apertures of two copies of one take, if the mouth moves
MOVING = 0.01  # standard deviation of an aperture, in distances of the outer eye corners, that counts as moving
MIN_OVERLAP = 20  # frames


@dataclass(frozen=True)
class Looks:
    """The appearance of a segment.

    Attributes:
        name: name of the segment.
        shape: float32 [P, 2], median of the steady landmarks in the skull-fixed frame.
        colours: float32 [6, 12, 3], mean of the upper half of the crop.
        hashes: bool [N, 256], perceptual hashes of its frames.
        apertures: float32 [N], mouth apertures of its frames.
    """

    name: str
    shape: Floats
    colours: Floats
    hashes: npt.NDArray[np.bool_]
    apertures: Floats

    @property
    def clip(self) -> str:
        """File name of the segment's clip."""
        return self.name.rpartition("@")[0] or self.name


def looks(name: str, crops: Picture, skulls: Floats, apertures: Floats) -> Looks:
    """Compute a segment's looks from crops uint8 [N, 256, 256, 3], skull-fixed landmarks float32 [N, 468, 2] and apertures float32 [N]."""
    step = max(1, len(crops) // 12)
    upper = np.mean([crop[UPPER, SIDES] for crop in crops[::step]], axis=0).astype(np.float32)
    colours = cv2.resize(upper, GRID, interpolation=cv2.INTER_AREA)
    hashes = np.stack([perceptual_hash(crop) for crop in crops])
    return Looks(name, np.median(skulls[:, list(STEADY)], axis=0).astype(np.float32), colours, hashes, apertures)


def perceptual_hash(crop: Picture) -> npt.NDArray[np.bool_]:
    """Return whether each cell of a crop is brighter than its left neighbour (dHash; Krawetz, 2013): bool [256]."""
    small = cv2.resize(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), (HASH + 1, HASH), interpolation=cv2.INTER_AREA)
    return np.asarray(small[:, 1:].astype(np.int16) > small[:, :-1], bool).reshape(-1)


def looks_distance(a: Looks, b: Looks) -> float:
    """Return how much the looks of two segments differ; below about 1 for two takes of one person."""
    # The light may differ: a common factor per channel is removed from the colours.
    gain = np.clip((a.colours * b.colours).sum((0, 1)) / np.maximum((b.colours**2).sum((0, 1)), 1e-6), 0.7, 1.4)
    colour = float(np.abs(a.colours - gain * b.colours).mean()) / LOOKS_SCALE
    shape = float(np.linalg.norm(a.shape - b.shape, axis=1).mean()) / SHAPE_SCALE
    return float(np.hypot(colour, shape)) / 2**0.5


def cluster_people(segments: Sequence[Looks]) -> list[str]:
    """Return a person's name for each segment: p001, p002, … in order of first appearance."""
    if len(segments) < 2:
        return ["p001"] * len(segments)
    pairs = [
        looks_distance(a, b) * (SAME_CLIP if a.clip == b.clip else 1)
        for i, a in enumerate(segments)
        for b in segments[i + 1 :]
    ]
    labels = fcluster(linkage(np.array(pairs), "average"), SAME_PERSON, "distance")
    order: dict[int, str] = {}
    return [order.setdefault(int(label), f"p{len(order) + 1:03d}") for label in labels]


def split_of(first_clip: str, share: float) -> str:
    """Return the split, train or held_out, of the person that first appears in this clip. It stays the same when footage is added."""
    return "held_out" if zlib.crc32(first_clip.encode()) % 1000 < 1000 * share else "train"


def copies(segments: Sequence[Looks]) -> dict[int, int]:
    """Find segments that show the same footage as a longer segment, or as an earlier one of equal length: index → index of that one."""
    order = sorted(range(len(segments)), key=lambda i: (-len(segments[i].hashes), i))
    kept: list[int] = []
    found: dict[int, int] = {}
    for i in order:
        twin = next((k for k in kept if _same(segments[k], segments[i])), None)
        if twin is None:
            kept.append(i)
        else:
            found[i] = twin
    return found


def _same(long: Looks, short: Looks) -> bool:
    """Return whether a segment shows the same footage as a longer one."""
    if looks_distance(long, short) > SAME_PERSON:
        return False
    a, b = (np.where(one.hashes, 1, -1).astype(np.float32) for one in (long, short))
    differing = (1 - a @ b.T / a.shape[1]) / 2  # [long, short]: share of bits
    needed = max(MIN_OVERLAP, round(0.6 * len(b)))
    lags = range(needed - len(b), len(a) - needed + 1)
    means = {lag: float(np.diagonal(differing, -lag).mean()) for lag in lags}
    if not means:
        return False
    lag = min(means, key=lambda key: means[key])
    if means[lag] > SAME_HASH:
        return False
    x = long.apertures[max(0, lag) : lag + len(b)]
    y = short.apertures[max(0, -lag) :][: len(x)]
    if min(float(x.std()), float(y.std())) < MOVING:
        return means[lag] < SAME_HASH / 3  # frames of a still face always look alike: only equal ones count
    return float(np.corrcoef(x, y)[0, 1]) >= SAME_MOUTH
