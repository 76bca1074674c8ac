"""Crops on disk: JPEGs, one file for each clip, a ninth of what the pixels take.

Quality 95 without chroma subsampling: what it costs in likeness is below what the footage's own codec has cost already
(`docs/curation.md` has the measurement). They are decoded once, when the data set is read, so that training never waits for them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from insync.core.spec import CROP_SIZE
from insync.training.data.segments import part_path

if TYPE_CHECKING:
    from insync.training.data.segments import Segment

Picture = npt.NDArray[np.uint8]

QUALITY = 95
RAW = "crops.u8"  # what earlier data sets hold instead
THREADS = 4


def encode(crop: Picture, quality: int = QUALITY) -> bytes:
    """A crop uint8 [H, W, 3] RGB as JPEG."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), flags)[1].tobytes())


def decode(data: bytes | memoryview) -> Picture:
    """The crop uint8 [H, W, 3] RGB of a JPEG.

    Raises:
        ValueError: it is damaged.
    """
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("a stored crop is damaged: delete that clip's part and curate again")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def read_crops(folder: Path, segments: list[Segment], columns: dict[str, npt.NDArray[Any]]) -> Picture:
    """The crops of a data set's segments: uint8 [N, 256, 256, 3].

    Args:
        folder: the data set.
        segments: their clips, and which rows are theirs.
        columns: `jpeg_start` and `jpeg_size`, int64 [N]: bytes in the clip's file; without them the pixels lie in `crops.u8`.
    """
    count = len(columns["time_s"])
    if "jpeg_start" not in columns:
        return np.fromfile(folder / RAW, np.uint8).reshape(count, CROP_SIZE, CROP_SIZE, 3)
    crops = np.empty((count, CROP_SIZE, CROP_SIZE, 3), np.uint8)

    def fill(segment: Segment) -> None:
        data = part_path(folder, segment.clip, ".jpgs").read_bytes()
        for row in range(segment.start, segment.start + segment.frames):
            start = int(columns["jpeg_start"][row])
            crops[row] = decode(data[start : start + int(columns["jpeg_size"][row])])

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, segments):
            pass
    return crops
