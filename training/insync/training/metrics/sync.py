"""What SyncNet says of a clip: offset of its sound, LSE-C, LSE-D; and how well mouths fit their sound, as a loss.

The definitions are those of Wav2Lip's evaluation (Prajwal et al., 2020), which are those of SyncNet (Chung & Zisserman, 2016): distances
between the embeddings of picture and sound at every offset up to ±15 frames, averaged over the clip; LSE-D is the smallest of these
means, LSE-C their median minus the smallest, and the offset is where the smallest lies. Our embeddings are unit vectors, so distances lie in [0, 2]
and random pairs near √2: figures compare with each other, not with those of other SyncNets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insync.core.spec import SAMPLE_RATE_HZ
from insync.ensemble.models.log_mel import LogMel
from insync.network import mask
from insync.network.syncnet import EMBEDDING, FRAME_S, LUMA, MOUTH_FRAMES, MOUTH_SIZE, SyncNet
from insync.training.data.audio import windows

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

WEIGHTS = Path(__file__).parent / "weights" / "syncnet.npz"
MAX_OFFSET = 15  # frames of 40 ms
MIN_SPAN_FRAMES = 15  # shorter clips say nothing
PART = 256  # embeddings computed at once


@dataclass(frozen=True)
class SyncFigures:
    """What SyncNet says of one clip.

    Attributes:
        offset: frames of 40 ms by which the sound trails the picture; to mend, read the sound that much later.
        lse_c: confidence; the median distance over offsets minus the smallest. Larger is better.
        lse_d: the smallest mean distance, in [0, 2]. Smaller is better.
        curve: float32 [31], mean distance at offsets -15 … 15 frames.
        frames: mouths that were compared.
    """

    offset: int
    lse_c: float
    lse_d: float
    curve: Floats
    frames: int


def mouths_of(crops: Picture, room: int = 0) -> Picture:
    """Grey mouths at half size: crops uint8 [N, 256, 256, 3] → uint8 [N, 56 + room, 56 + room]; room is even and lies around."""
    rows = slice(mask.MOUTH_ROWS[0] - room, mask.MOUTH_ROWS[1] + room)
    columns = slice(mask.MOUTH_COLUMNS[0] - room, mask.MOUTH_COLUMNS[1] + room)
    side = MOUTH_SIZE + room
    result = np.empty((len(crops), side, side), np.uint8)
    for number, crop in enumerate(crops):
        luma = crop[rows, columns] @ np.array(LUMA, np.float32)
        result[number] = cv2.resize(luma, (side, side), interpolation=cv2.INTER_AREA).round()
    return result


def frame_grid(times_s: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """A clip of any frame rate at 25 frames per second.

    Args:
        times_s: float32 [N], ascending.

    Returns:
        Times in seconds float32 [T], and for each the five frames around it, the nearest in time: int64 [T, 5].
    """
    reach = MOUTH_FRAMES // 2
    count = int(np.floor((times_s[-1] - times_s[0]) / FRAME_S + 1e-3)) + 1
    grid = times_s[0] + FRAME_S * np.arange(count)
    grid = grid[reach : count - reach]
    wanted = grid[:, None] + FRAME_S * np.arange(-reach, reach + 1)
    after = np.clip(np.searchsorted(times_s, wanted), 1, len(times_s) - 1)
    nearest = after - (wanted - times_s[after - 1] < times_s[after] - wanted)
    return grid.astype(np.float32), nearest.astype(np.int64)


def metrics_of_curve(curve: Floats, frames: int) -> SyncFigures:
    """The figures that a curve of mean distances float32 [31] holds."""
    best = int(curve.argmin())
    return SyncFigures(best - MAX_OFFSET, float(np.median(curve) - curve[best]), float(curve[best]), curve, frames)


def curve_of(seen: Floats, audio: Floats, sounding: npt.NDArray[np.bool_]) -> tuple[Floats, int]:
    """Mean distance at every offset.

    Args:
        seen: float32 [T, 128], unit vectors of the mouths.
        audio: float32 [T + 30, 128], those of the sound, from 15 frames before the first mouth to 15 after the last.
        sounding: bool [T + 30], False where the clip has no sound (before its beginning, after its end).

    Returns:
        float32 [31]; and the number of mouths compared at offset 0.
    """
    curve = np.full(2 * MAX_OFFSET + 1, 2**0.5, np.float32)
    for shift in range(len(curve)):
        valid = sounding[shift : shift + len(seen)]
        if valid.sum() >= MIN_SPAN_FRAMES:
            curve[shift] = np.linalg.norm(seen[valid] - audio[shift : shift + len(seen)][valid], axis=1).mean()
    return curve, int(sounding[MAX_OFFSET : MAX_OFFSET + len(seen)].sum())


class SyncJudge:
    """A trained SyncNet that judges clips.

    Args:
        weights: `.npz` as `save_weights` writes it; by default the one that comes with InSync.

    Raises:
        FileNotFoundError: there are no weights.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._model, self._mel = load_weights(weights), LogMel()

    def figures(self, crops: Picture, times_s: Floats, audio: Floats) -> SyncFigures | None:
        """Judges a clip; see `metrics_of_mouths`.

        Args:
            crops: uint8 [N, 256, 256, 3] RGB, of one unbroken take.
            times_s: float32 [N], ascending, on the clock of the audio.
            audio: float32 [samples] at 16 kHz.
        """
        return self.metrics_of_mouths(mouths_of(crops), times_s, audio)

    def metrics_of_mouths(self, mouths: Picture, times_s: Floats, audio: Floats) -> SyncFigures | None:
        """Judges a clip, given as mouths uint8 [N, 56, 56]. None where it is too short, or has no sound."""
        if len(times_s) < MOUTH_FRAMES:
            return None
        grid, nearest = frame_grid(times_s)
        reach = FRAME_S * np.arange(-MAX_OFFSET, MAX_OFFSET + 1)
        if len(grid) < MIN_SPAN_FRAMES:
            return None
        times = np.concatenate([grid[0] + reach[:MAX_OFFSET], grid, grid[-1] + reach[MAX_OFFSET + 1 :]])
        sounding = (times >= 0) & (times * SAMPLE_RATE_HZ <= len(audio))
        if not sounding.any():
            return None
        audio = self.embed_audio(self._mel(windows(audio, times.astype(np.float32))))
        curve, frames = curve_of(self.seen(mouths[nearest]), audio, sounding)
        return metrics_of_curve(curve, frames)

    @torch.no_grad()
    def seen(self, mouths: Picture) -> Floats:
        """Unit vectors float32 [T, 128] of five mouths each, uint8 [T, 5, 56, 56]."""
        parts = [
            self._model.seen(torch.from_numpy(mouths[i : i + PART]).float() / 255).numpy()
            for i in range(0, len(mouths), PART)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, EMBEDDING), np.float32)

    @torch.no_grad()
    def embed_audio(self, mels: Floats) -> Floats:
        """Unit vectors float32 [T, 128] of log-mel windows [T, 80, 40]."""
        parts = [
            self._model.embed_audio(torch.from_numpy(mels[i : i + PART]).float()).numpy()
            for i in range(0, len(mels), PART)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, EMBEDDING), np.float32)


def sync_figures(crops: Picture, times_s: Floats, audio: Floats, judge: SyncJudge | None = None) -> SyncFigures | None:
    """LSE-C, LSE-D and offset of one clip: `SyncJudge.figures`, with the weights that come with InSync unless a judge is given."""
    return (judge or SyncJudge()).figures(crops, times_s, audio)


class SyncLoss(nn.Module):
    """How badly drawn mouths fit their sound: one minus the cosine of their embeddings. Differentiable in the mouths; the SyncNet is frozen.

    Args:
        model: a trained SyncNet; by default the one that comes with InSync.
    """

    def __init__(self, model: SyncNet | None = None) -> None:
        super().__init__()
        self.model = (model or load_weights(WEIGHTS)).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> SyncLoss:
        """Stays in evaluation mode: the batch's statistics must not judge it."""
        del mode
        return super().train(False)

    def forward(self, mouths: Tensor, mel: Tensor) -> Tensor:
        """Mean over the batch.

        Args:
            mouths: [B, T, 3, 112, 112] in [0, 1], the mouth region of the crop (`mask.MOUTH_ROWS`, `mask.MOUTH_COLUMNS`) in T = 5
                frames 40 ms apart, or T = 1: the network has also learned from stills.
            mel: [B, 80, 40], the sound of the middle frame.
        """
        luma = torch.einsum("btchw,c->bthw", mouths, mouths.new_tensor(LUMA))
        half = F.avg_pool2d(luma, 2)
        if half.shape[1] == 1:
            half = half.expand(-1, MOUTH_FRAMES, -1, -1)
        cosine = (self.model.seen(half) * self.model.embed_audio(mel)).sum(1)
        return (1 - cosine).mean()


def save_weights(model: SyncNet, path: Path) -> None:
    """Writes a SyncNet in half precision, which changes no figure's third digit, as one compressed `.npz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        **{
            name: value.numpy().astype(np.float16 if value.is_floating_point() else np.int64)
            for name, value in model.state_dict().items()
        },
    )


def load_weights(path: Path) -> SyncNet:
    """The SyncNet that `save_weights` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name}: no SyncNet weights there; train them (insync train syncnet)")
    model = SyncNet()
    with np.load(path) as data:
        state = {name: torch.from_numpy(data[name]) for name in data.files}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval()
