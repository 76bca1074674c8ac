"""The speech judge: it hears speech through a large speech model, and says how far a mouth that speaks it is open.

It is independent of what is served: another teacher than that of the audio projection layer, and footage of people that no served weight was
trained on. Its figure for a clip is the correlation of the mouth's aperture with what it hears. The mouth of one who speaks cannot reach 1:
filmed people, and their own speech, reach what the table says under `untouched`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from insync.core.spec import MOUTH
from insync.network.blocks import activation
from insync.training.data.teacher import STEP_S, WIDTH, Teacher

Floats = npt.NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "weights" / "speech_judge.npz"
TEACHER = "base"
KEPT = 16  # recordings whose apertures are kept
REACH = 10  # features on each side of a frame's own: ±0.2 s


class FeaturesToMouth(nn.Module):
    """Convolutions over 21 features of a teacher, which read the mouth code of the one in the middle.

    Args:
        width: size of the features.
        channels: of the convolutions.
    """

    def __init__(self, width: int, channels: int = 128) -> None:
        super().__init__()

        def layer() -> list[nn.Module]:
            return [nn.Conv1d(channels, channels, 5), nn.BatchNorm1d(channels), activation()]

        self.body = nn.Sequential(
            nn.Dropout(0.1), nn.Conv1d(width, channels, 1), activation(), nn.Dropout(0.3),
            *layer(), *layer(), nn.Dropout(0.3), *layer(), *layer(), nn.Dropout(0.3), nn.Conv1d(channels, MOUTH, 5),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Read mouth codes [B, N, 12] from features [B, width, N + 20]."""
        codes: Tensor = self.body(features)
        return codes.transpose(1, 2)

    @torch.no_grad()
    def read(self, features: npt.NDArray[np.float16]) -> Floats:
        """Read the mouth codes float32 [T, 12] of a whole recording's features [T, width]."""
        padded = np.pad(features.astype(np.float32).T, ((0, 0), (REACH, REACH)))
        codes: Floats = self.eval()(torch.from_numpy(padded)[None])[0].numpy()
        return codes


class SpeechJudge:
    """A trained judge.

    Args:
        aperture_row: float32 [12], see `MouthBasis.aperture_row`.
        weights: `.npz` file written by `save_judge`; by default the one included in InSync.

    Raises:
        FileNotFoundError: the file, or the package with the teacher's weights, does not exist.
    """

    def __init__(self, aperture_row: Floats, weights: Path = WEIGHTS) -> None:
        if not weights.is_file():
            raise FileNotFoundError(f"no weights at {weights.name}: train them with `insync train judge`")
        self._model, self._row, self._teacher = FeaturesToMouth(WIDTH[TEACHER]), aperture_row, Teacher(TEACHER)
        with np.load(weights) as data:
            state = {name: torch.from_numpy(data[name]) for name in data.files}
        self._model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        self._heard: dict[bytes, Floats] = {}  # by the audio itself

    def apertures(self, audio: Floats, times_s: Floats) -> Floats:
        """Return the apertures float32 [N] that it expects at times_s [N] of audio float32 [samples], up to a constant factor and sum."""
        key = audio.tobytes()
        if key not in self._heard:
            while len(self._heard) >= KEPT:
                self._heard.pop(next(iter(self._heard)))
            self._heard[key] = self._model.read(self._teacher([audio], "judge")[0]) @ self._row
        heard = self._heard[key]
        return np.interp(times_s, np.arange(len(heard)) * STEP_S, heard).astype(np.float32)


def save_judge(model: FeaturesToMouth, path: Path) -> None:
    """Write a judge's weights as a compressed `.npz` in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(
        path, **{name: v.astype(np.float16) if v.dtype == np.float32 else v for name, v in values.items()}
    )
