"""Storage of crops: one file of JPEGs for each clip, a ninth of the size of raw pixels.

Quality 95 without chroma subsampling loses less than the footage's own codec has already lost (`docs/curation.md` has the
measurement). Crops are decoded once, when the data set is read, so that training never waits for them.
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
RAW = "crops.u8"  # raw pixels, in earlier data sets
THREADS = 4


def encode(crop: Picture, quality: int = QUALITY) -> bytes:
    """Encode a crop uint8 [H, W, 3] RGB as JPEG."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), flags)[1].tobytes())


def decode(data: bytes | memoryview) -> Picture:
    """Decode a JPEG to a crop uint8 [H, W, 3] RGB.

    Raises:
        ValueError: the JPEG is damaged.
    """
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("a stored crop is damaged: delete that clip's part and run `insync curate` again")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def read_crops(folder: Path, segments: list[Segment], columns: dict[str, npt.NDArray[Any]]) -> Picture:
    """Read the crops of a data set's segments: uint8 [N, 256, 256, 3].

    Args:
        folder: the data set.
        segments: the segments, with their clips and rows.
        columns: `jpeg_start` and `jpeg_size`, int64 [N]: bytes in the clip's file; without them, raw pixels are read from `crops.u8`.
    """
    count = len(columns["time_s"])
    if "jpeg_start" not in columns:
        return np.fromfile(folder / RAW, np.uint8).reshape(count, CROP_SIZE, CROP_SIZE, 3)
    crops = np.empty((count, CROP_SIZE, CROP_SIZE, 3), np.uint8)

    def fill(segment: Segment) -> None:
        """Decode the crops of one segment."""
        data = part_path(folder, segment.clip, ".jpgs").read_bytes()
        for row in range(segment.start, segment.start + segment.frames):
            start = int(columns["jpeg_start"][row])
            crops[row] = decode(data[start : start + int(columns["jpeg_size"][row])])

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, segments):
            pass
    return crops
