"""Registration of a person: finds the face in every frame and selects reference crops that cover its mouth shapes and poses.

The *selective frame sampler* is farthest-point sampling (Gonzalez, 1985) over mouth shape and head pose, in which blur
reduces a frame's distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from insync.core.errors import BadInput
from insync.core.head import places_of
from insync.core.images import decode as decode_picture
from insync.core.mouth import MouthBasis, aperture
from insync.core.spec import CROP_SIZE, REFERENCES, WINDOW_COLUMNS, WINDOW_ROWS
from insync.ensemble.models.face import FaceFinder, take_crop
from insync.ensemble.models.guard import check_registration
from insync.ensemble.models.twin_store import Record, Twin

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Lip movement (root mean square, in eye distances) and head rotation that count as the same distance. Rotation counts for
# little: the decoder copies by mouth shape, and from a rotated head it would copy background too.
MOUTH_UNIT = 0.03
POSE_UNIT_RAD = math.radians(35)
ASIDE_RAD = math.radians(15)  # frames turned further than this from the median yaw are used only if there are no others
SHARP_SHARE = 0.3  # of the median sharpness: blurrier frames are used only if there are no others
SMALL_FACE_PIXELS = 100  # a narrower face gives a blurry result
SAME = 0.15  # frames closer to each other than this, in the units above, count as the same reference
CLOSED = 0.06  # mouth aperture, in eye distances, below which a mouth counts as closed
_MOUTH = (slice(CROP_SIZE // 2, CROP_SIZE), slice(CROP_SIZE // 5, CROP_SIZE - CROP_SIZE // 5))  # region of the crop


@dataclass(frozen=True)
class _Seen:
    """One frame in which a face was found."""

    frame: int
    crop: Image
    shape: Floats
    places: Floats
    pose: Floats  # yaw, pitch, roll in radians
    sharpness: float
    width: float  # of the face, in pixels of the frame


def register(frames: Sequence[bytes], finder: FaceFinder, basis: MouthBasis) -> Record:
    """Build the record of a twin.

    Args:
        frames: 1 to 300 encoded pictures of one person, in temporal order; the largest face is found and tracked.
        finder: finds the face.
        basis: computes mouth shapes and codes from landmarks.

    Returns:
        The record to store; its report lists what was received, found and selected, and what should be improved.

    Raises:
        BadInput: no frames, too many or too large ones, one that is not a picture, or no face in any of them.
    """
    check_registration(frames)
    seen = _look(frames, finder, basis)
    if not seen:
        raise BadInput(
            f"FRAMES has no face in any of its {len(frames)} frames: send frames that show one face "
            "from the front, at least 100 pixels wide"
        )
    neutral = basis.neutral(np.stack([one.shape for one in seen]))
    chosen, distinct = _choose(seen, neutral)
    codes = np.stack([basis.code(one.shape, neutral) for one in chosen])
    crops, places = (np.stack([getattr(one, part) for one in chosen]) for part in ("crop", "places"))
    return Record(crops, codes, places, neutral, _report(len(frames), seen, chosen, distinct))


def pixels_of(crops: Image) -> Image:
    """Return PIXELS, uint8 [15, 144, 160], of reference crops uint8 [5, 256, 256, 3]: each one's patch window, planar."""
    window = crops[:, slice(*WINDOW_ROWS), slice(*WINDOW_COLUMNS)].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(window).reshape(-1, *window.shape[2:])


def contact_sheet(twin: Twin) -> Image:
    """Draw a twin's reference crops side by side with their values in the report: uint8 [H, W, 3] RGB."""
    label = 40
    crops = twin.record.crops
    sheet = np.full((CROP_SIZE + label, CROP_SIZE * len(crops), 3), 24, np.uint8)
    for k, (crop, note) in enumerate(zip(crops, twin.record.report["references"], strict=True)):
        x = CROP_SIZE * k
        sheet[:CROP_SIZE, x : x + CROP_SIZE] = crop
        yaw, pitch, _ = note["pose_deg"]
        lines = (
            f"frame {note['frame']}  aperture {note['opening']:.2f}",
            f"yaw {yaw:+.0f}  pitch {pitch:+.0f}  sharp {note['sharpness']:.0f}",
        )
        for row, line in enumerate(lines):
            at = (x + 6, CROP_SIZE + 15 + 17 * row)
            cv2.putText(sheet, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (230, 230, 230), 1, cv2.LINE_AA)
    return sheet


def head_pose(landmarks: Floats) -> Floats:
    """Return yaw, pitch and roll in radians, float32 [3], of landmarks float32 [468, 3] (pixels, z in the same scale).

    Positive yaw turns the face to the picture's right, positive pitch lowers the chin, positive roll leans clockwise.
    """
    across = landmarks[263] - landmarks[33]  # outer corners of the eyes
    down = landmarks[152] - landmarks[10]  # forehead to chin
    return np.array(
        [
            math.atan2(float(across[2]), math.hypot(float(across[0]), float(across[1]))),
            math.atan2(float(down[2]), math.hypot(float(down[0]), float(down[1]))),
            math.atan2(float(across[1]), float(across[0])),
        ],
        np.float32,
    )


def _look(frames: Sequence[bytes], finder: FaceFinder, basis: MouthBasis) -> list[_Seen]:
    seen = []
    box = None
    for k, image in enumerate(_decoded(frames)):
        face = finder.find(image, box)
        if face is None:
            continue  # keep the last box: the same person may reappear
        box = face.box
        crop = take_crop(image, face.transform)
        places = places_of(face.landmarks, face.transform)
        pose, width = head_pose(face.landmarks), float(face.box[2] - face.box[0])
        seen.append(_Seen(k, crop, basis.shape(face.landmarks), places, pose, _sharpness(crop), width))
    return seen


def _decoded(frames: Sequence[bytes]) -> Iterator[Image]:
    """Yield the decoded frames, RGB. Only the next frame is decoded ahead: frames may be large."""

    def decode(k: int) -> Image:
        image = decode_picture(frames[k])
        if image is None:
            raise BadInput(f"FRAMES[{k}] cannot be decoded: its {len(frames[k]):,} bytes are a damaged picture")
        return image

    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(decode, 0)
        for k in range(1, len(frames) + 1):
            image = upcoming.result()
            if k < len(frames):
                upcoming = pool.submit(decode, k)
            yield image


def _sharpness(crop: Image) -> float:
    """Return the variance of the Laplacian around the mouth (Pech-Pacheco et al., 2000)."""
    grey = cv2.cvtColor(np.ascontiguousarray(crop[_MOUTH]), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _choose(seen: list[_Seen], neutral: Floats) -> tuple[list[_Seen], int]:
    """Select REFERENCES frames (the selective frame sampler); also return how many of them are distinct."""
    typical = float(np.median([one.sharpness for one in seen]))
    sharp = [one for one in seen if one.sharpness >= SHARP_SHARE * typical] or seen
    usual = float(np.median([one.pose[0] for one in sharp]))
    facing = [one for one in sharp if abs(float(one.pose[0]) - usual) <= ASIDE_RAD]
    sharp = facing if len(facing) >= REFERENCES else sharp
    shapes = np.stack([one.shape.reshape(-1) for one in sharp]) / (MOUTH_UNIT * math.sqrt(neutral.shape[0]))
    places = np.hstack([shapes, np.stack([one.pose for one in sharp]) / POSE_UNIT_RAD])
    quality = np.clip([one.sharpness / max(typical, 1e-6) for one in sharp], 0.0, 1.0)
    # The first reference is at rest and faces forward: the others add what differs from it.
    rest = np.concatenate([neutral.reshape(-1) / (MOUTH_UNIT * math.sqrt(neutral.shape[0])), np.zeros(3)])
    first = int(np.argmin(np.linalg.norm(places - rest, axis=1) + (1 - quality)))
    chosen = [first]
    distance = np.linalg.norm(places - places[first], axis=1)
    while len(chosen) < min(REFERENCES, len(sharp)):
        farthest = int(np.argmax(distance * quality))
        if distance[farthest] * quality[farthest] < SAME:
            break
        chosen.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(places - places[farthest], axis=1))
    return [sharp[chosen[k % len(chosen)]] for k in range(REFERENCES)], len(chosen)


def _report(received: int, seen: list[_Seen], chosen: list[_Seen], distinct: int) -> dict[str, Any]:
    warnings = []
    if len(seen) < received:
        warnings.append(f"no face in {received - len(seen)} of {received} frames")
    if distinct < REFERENCES:
        warnings.append(
            f"only {distinct} different views of the face: {REFERENCES} give a better mouth, send more footage"
        )
    if max(aperture(one.shape) for one in seen) < CLOSED:
        warnings.append("the mouth is closed in all frames: teeth will be made up, send frames of speech")
    width = float(np.median([one.width for one in seen]))
    if width < SMALL_FACE_PIXELS:
        warnings.append(f"the face is {width:.0f} pixels wide: below {SMALL_FACE_PIXELS} the result is blurry")
    return {
        "frames": received,
        "faces": len(seen),
        "references": [
            {
                "frame": one.frame,
                "opening": round(aperture(one.shape), 4),
                "sharpness": round(one.sharpness, 1),
                "pose_deg": [round(math.degrees(angle), 1) for angle in one.pose],
            }
            for one in chosen
        ],
        "warnings": warnings,
    }
