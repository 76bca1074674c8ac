"""Parts shared by benchmarks of training: a PyTorch network for evaluation, the filmed mouths' codes, and sheets of the results."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from insync.core.head import in_window
from insync.core.mouth import POINTS, MouthBasis
from insync.ensemble.inference.pipeline import Twin
from insync.ensemble.models.registration import pixels_of
from insync.ensemble.models.twin_store import Record
from insync.network.adaat import adaat
from insync.network.inpainter import to_patch
from insync.network.model import LipSync
from insync.training.evaluation.evaluate import Footage

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

SHOWN_ROWS = slice(100, 250)  # of the crop, in the picture
SHOWN_COLUMNS = slice(48, 208)
FRAMES_SHOWN = 2  # of each clip


class TorchGraphs:
    """A PyTorch network in place of evaluation's graphs. If `codes` is set, it draws these mouth codes instead of the audio's."""

    def __init__(self, network: LipSync) -> None:
        self._network = network.eval()
        self.codes: Iterator[Floats] | None = None

    @torch.no_grad()
    def reference(self, record: Record) -> Twin:
        """Return a twin's features."""
        crops = torch.from_numpy(record.crops).permute(0, 3, 1, 2)[None].float() / 255
        reference, identity = self._network.reference(crops, torch.from_numpy(record.codes)[None])
        return Twin(
            reference.numpy(), identity.numpy(), pixels_of(record.crops)[None], record.places[None], record.neutral[None]
        )  # fmt: skip

    @torch.no_grad()
    def patch(self, crop: Floats, mel: Floats, head: Floats, twin: Twin) -> tuple[Picture, Floats]:
        """Return a patch and its mouth code, as `Chain.patch`."""
        network = self._network
        reference, identity, places, neutral = (
            torch.from_numpy(part) for part in (twin.reference, twin.identity, twin.places, twin.neutral)
        )
        source, pose = network.source(torch.from_numpy(crop))
        code = network.code(torch.from_numpy(mel)) if self.codes is None else torch.from_numpy(next(self.codes))[None]
        affine, style = network.alignment(pose, identity, code)
        pixels = torch.from_numpy(twin.pixels).float() / 255
        wanted = network.placing(torch.from_numpy(head), neutral, code)
        painted = network.inpainter(source, adaat(reference, affine), style, pixels, places, wanted)
        return to_patch(painted.colours, painted.alpha)[0].numpy(), code[0].numpy()


def filmed_codes(footage: Footage, neutral: Floats, basis: MouthBasis) -> Floats:
    """Return the mouth codes float32 [N, 12] of the filmed frames that did not register the twin; without a face, that of the frame before."""
    codes = [np.zeros(len(basis.deviation), np.float32)]
    for landmarks, head in zip(footage.landmarks[footage.first :], footage.heads[footage.first :], strict=True):
        lips = in_window(landmarks[list(POINTS)]) - head[2 : 2 + len(POINTS)]
        shape = (lips @ np.linalg.inv(head[:2])).astype(np.float32)
        codes.append(basis.code(shape, neutral) if np.isfinite(shape).all() else codes[-1])
    return np.stack(codes[1:])


def sheet(filmed: list[Picture], columns: dict[str, list[Picture]], path: Path) -> None:
    """Write a picture of the same frames of every clip, with a column for each variant."""
    lines = []
    names = ["filmed", *columns]
    for number, real in enumerate(filmed):
        for frame in np.linspace(0, len(real) - 1, FRAMES_SHOWN + 2).astype(int)[1:-1]:
            row = [real[frame], *(pictures[number][frame] for pictures in columns.values())]
            lines.append(np.hstack([picture[SHOWN_ROWS, SHOWN_COLUMNS] for picture in row]))
    width = SHOWN_COLUMNS.stop - SHOWN_COLUMNS.start
    head = np.full((44, width * len(names), 3), 255, np.uint8)
    for number, name in enumerate(names):
        for line, text in enumerate(textwrap.wrap(name, 22)[:2]):
            at = (width * number + 4, 18 + 18 * line)
            cv2.putText(head, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    picture = cv2.cvtColor(np.vstack([head, *lines]), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 88])
