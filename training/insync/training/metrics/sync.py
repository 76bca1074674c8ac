"""SyncNet metrics of a clip: audio offset, LSE-C and LSE-D; and a lip-sync loss.

The definitions are those of Wav2Lip's evaluation (Prajwal et al., 2020), which are those of SyncNet (Chung & Zisserman, 2016): distances
between the embeddings of picture and audio at every offset up to ±15 frames, averaged over the clip; LSE-D is the smallest of these
means, LSE-C their median minus the smallest, and the offset is that of the smallest. Our embeddings are unit vectors, so distances are in
[0, 2] and those of random pairs near √2: values are comparable with each other, not with those of other SyncNets.
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
MIN_SPAN_FRAMES = 15  # shorter clips are not measured
PART = 256  # batch size of the embeddings


@dataclass(frozen=True)
class SyncMetrics:
    """The SyncNet metrics of one clip.

    Attributes:
        offset: frames of 40 ms by which the audio trails the picture; to correct it, read the audio that much later.
        lse_c: confidence; the median distance over offsets minus the smallest. Larger is better.
        lse_d: the smallest mean distance, in [0, 2]. Smaller is better.
        curve: float32 [31], mean distance at offsets of -15 … 15 frames.
        frames: number of mouths compared.
    """

    offset: int
    lse_c: float
    lse_d: float
    curve: Floats
    frames: int


def mouths_of(crops: Picture, margin: int = 0) -> Picture:
    """Extract grey mouths at half size from crops uint8 [N, 256, 256, 3]: uint8 [N, 56 + margin, 56 + margin]; the margin, an even number, is the sum of both sides."""
    rows = slice(mask.MOUTH_ROWS[0] - margin, mask.MOUTH_ROWS[1] + margin)
    columns = slice(mask.MOUTH_COLUMNS[0] - margin, mask.MOUTH_COLUMNS[1] + margin)
    side = MOUTH_SIZE + margin
    result = np.empty((len(crops), side, side), np.uint8)
    for number, crop in enumerate(crops):
        luma = crop[rows, columns] @ np.array(LUMA, np.float32)
        result[number] = cv2.resize(luma, (side, side), interpolation=cv2.INTER_AREA).round()
    return result


def frame_grid(times_s: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Resample a clip of any frame rate to 25 frames per second.

    Args:
        times_s: float32 [N], ascending.

    Returns:
        Times in seconds float32 [T], and for each the indices of five frames 40 ms apart around it, nearest in time: int64 [T, 5].
    """
    reach = MOUTH_FRAMES // 2
    count = int(np.floor((times_s[-1] - times_s[0]) / FRAME_S + 1e-3)) + 1
    grid = times_s[0] + FRAME_S * np.arange(count)
    grid = grid[reach : count - reach]
    wanted = grid[:, None] + FRAME_S * np.arange(-reach, reach + 1)
    after = np.clip(np.searchsorted(times_s, wanted), 1, len(times_s) - 1)
    nearest = after - (wanted - times_s[after - 1] < times_s[after] - wanted)
    return grid.astype(np.float32), nearest.astype(np.int64)


def metrics_of_curve(curve: Floats, frames: int) -> SyncMetrics:
    """Compute the metrics from a curve of mean distances float32 [31]."""
    best = int(curve.argmin())
    return SyncMetrics(best - MAX_OFFSET, float(np.median(curve) - curve[best]), float(curve[best]), curve, frames)


def curve_of(seen: Floats, audio: Floats, sounding: npt.NDArray[np.bool_]) -> tuple[Floats, int]:
    """Compute the mean distance at every offset.

    Args:
        seen: float32 [T, 128], embeddings of the mouths (unit vectors).
        audio: float32 [T + 30, 128], embeddings of the audio, from 15 frames before the first mouth to 15 after the last.
        sounding: bool [T + 30], False where the clip has no audio (before its start, after its end).

    Returns:
        The curve float32 [31], and the number of mouths compared at offset 0.
    """
    curve = np.full(2 * MAX_OFFSET + 1, 2**0.5, np.float32)
    for shift in range(len(curve)):
        valid = sounding[shift : shift + len(seen)]
        if valid.sum() >= MIN_SPAN_FRAMES:
            curve[shift] = np.linalg.norm(seen[valid] - audio[shift : shift + len(seen)][valid], axis=1).mean()
    return curve, int(sounding[MAX_OFFSET : MAX_OFFSET + len(seen)].sum())


class SyncJudge:
    """A trained SyncNet that measures clips.

    Args:
        weights: `.npz` file written by `save_weights`; by default the one included in InSync.

    Raises:
        FileNotFoundError: the file does not exist.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._model, self._mel = load_weights(weights), LogMel()

    def metrics(self, crops: Picture, times_s: Floats, audio: Floats) -> SyncMetrics | None:
        """Measure a clip; see `metrics_of_mouths`.

        Args:
            crops: uint8 [N, 256, 256, 3] RGB, consecutive frames of one face.
            times_s: float32 [N], ascending; time 0 is the start of the audio.
            audio: float32 [samples] at 16 kHz.
        """
        return self.metrics_of_mouths(mouths_of(crops), times_s, audio)

    def metrics_of_mouths(self, mouths: Picture, times_s: Floats, audio: Floats) -> SyncMetrics | None:
        """Measure a clip, given as mouths uint8 [N, 56, 56]; None if it is too short or has no audio."""
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
        """Compute the embeddings float32 [T, 128] of groups of five mouths uint8 [T, 5, 56, 56]."""
        parts = [
            self._model.seen(torch.from_numpy(mouths[i : i + PART]).float() / 255).numpy()
            for i in range(0, len(mouths), PART)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, EMBEDDING), np.float32)

    @torch.no_grad()
    def embed_audio(self, mels: Floats) -> Floats:
        """Compute the embeddings float32 [T, 128] of log-mel windows [T, 80, 40]."""
        parts = [
            self._model.embed_audio(torch.from_numpy(mels[i : i + PART]).float()).numpy()
            for i in range(0, len(mels), PART)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, EMBEDDING), np.float32)


def sync_metrics(crops: Picture, times_s: Floats, audio: Floats, judge: SyncJudge | None = None) -> SyncMetrics | None:
    """Compute LSE-C, LSE-D and offset of one clip by `SyncJudge.metrics`, with the weights included in InSync unless a judge is given."""
    return (judge or SyncJudge()).metrics(crops, times_s, audio)


class SyncLoss(nn.Module):
    """A lip-sync loss: one minus the cosine of the embeddings of mouths and audio. Differentiable in the mouths; the SyncNet is frozen.

    Args:
        model: a trained SyncNet; by default the one included in InSync.
    """

    def __init__(self, model: SyncNet | None = None) -> None:
        super().__init__()
        self.model = (model or load_weights(WEIGHTS)).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> SyncLoss:
        """Stay in evaluation mode, because batch statistics must not affect the loss."""
        del mode
        return super().train(False)

    def forward(self, mouths: Tensor, mel: Tensor) -> Tensor:
        """Compute the mean loss over the batch.

        Args:
            mouths: [B, T, 3, 112, 112] in [0, 1], the mouth region of the crop (`mask.MOUTH_ROWS`, `mask.MOUTH_COLUMNS`) in T = 5
                frames 40 ms apart, or T = 1: SyncNet is also trained on still pictures.
            mel: [B, 80, 40], log-mel of the middle frame.
        """
        luma = torch.einsum("btchw,c->bthw", mouths, mouths.new_tensor(LUMA))
        half = F.avg_pool2d(luma, 2)
        if half.shape[1] == 1:
            half = half.expand(-1, MOUTH_FRAMES, -1, -1)
        cosine = (self.model.seen(half) * self.model.embed_audio(mel)).sum(1)
        return (1 - cosine).mean()


def save_weights(model: SyncNet, path: Path) -> None:
    """Write a SyncNet as a compressed `.npz` in half precision, which does not change the third digit of any metric."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        **{
            name: value.numpy().astype(np.float16 if value.is_floating_point() else np.int64)
            for name, value in model.state_dict().items()
        },
    )


def load_weights(path: Path) -> SyncNet:
    """Load a SyncNet that `save_weights` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no SyncNet weights at {path.name}: train them with `insync train syncnet`")
    model = SyncNet()
    with np.load(path) as data:
        state = {name: torch.from_numpy(data[name]) for name in data.files}
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval()
