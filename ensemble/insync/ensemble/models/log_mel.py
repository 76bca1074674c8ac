"""Log-mel spectrograms of audio windows, computed by DALI: one graph for serving and for training.

The serialised `lipsync_preprocess` pipeline and `LogMel` are built from the same `log_mel`, so that the audio front end
is the same in serving and in training. DALI is imported on first use: the thin client does not install it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insync.core.spec import MEL_BANDS, MEL_FRAMES, SAMPLE_RATE_HZ, WINDOW_SAMPLES

WINDOW_LENGTH = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
FFT_SIZE = 512
HIGHEST_HZ = 8_000.0
FLOOR = 1e-6  # of mel power: digital silence
OFFSET = 4.0  # with SCALE, puts silence at -1 and loud speech near 1
SCALE = 9.8


def log_mel(audio: Any, whole: bool = False) -> Any:
    """Add the log-mel graph to the DALI pipeline that is being defined.

    Windows are centred on multiples of the hop, 0 to 39, with the signal mirrored at both ends. Bands use Slaney's
    formula with unit area, as in librosa. The result is `(ln(max(power, 1e-6)) + 4) / 9.8`.

    Args:
        audio: data node, float32 [6400], mono at 16 kHz in [-1, 1]; any length if `whole`.
        whole: keep all windows instead of the first 40: for training on whole recordings.

    Returns:
        Data node, float32 [80, 40]; with `whole` [80, T], one column every 10 ms from time 0 on.
    """
    from nvidia.dali import fn, math

    power = fn.spectrogram(audio, nfft=FFT_SIZE, window_length=WINDOW_LENGTH, window_step=HOP)
    mel = fn.mel_filter_bank(
        power, nfilter=MEL_BANDS, sample_rate=float(SAMPLE_RATE_HZ), freq_low=0.0, freq_high=HIGHEST_HZ
    )
    # A centred spectrogram has one more window, around the end: its second half would be mirrored signal.
    mel = mel if whole else fn.slice(mel, 0, MEL_FRAMES, axes=[1])
    return (math.log(math.max(mel, FLOOR)) + OFFSET) * (1.0 / SCALE)


class LogMel:
    """Runs `log_mel` on arrays, on the CPU. Not thread-safe."""

    def __init__(self, batch_size: int = 64, threads: int = 1) -> None:
        """Build the pipeline.

        Args:
            batch_size: the most windows computed in one run; a call may have any number.
            threads: CPU threads of DALI.
        """
        self._batch_size = batch_size
        self._pipeline = _pipeline(batch_size, threads)

    def __call__(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute log-mel spectrograms.

        Args:
            audio: float32 [N, 6400], mono at 16 kHz in [-1, 1].

        Returns:
            float32 [N, 80, 40], about -1 for silence and rarely above 1.

        Raises:
            ValueError: wrong shape.
        """
        if audio.ndim != 2 or audio.shape[1] != WINDOW_SAMPLES:
            raise ValueError(f"audio has shape {list(audio.shape)}, must be [N, {WINDOW_SAMPLES}]")
        audio = np.ascontiguousarray(audio, np.float32)
        mels = np.empty((len(audio), MEL_BANDS, MEL_FRAMES), np.float32)
        for start in range(0, len(audio), self._batch_size):
            part = audio[start : start + self._batch_size]
            self._pipeline.feed_input("AUDIO", part)
            (output,) = self._pipeline.run()
            mels[start : start + len(part)] = output.as_array()
        return mels

    @staticmethod
    def of_recordings(recordings: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Compute the log-mel [80, T] of whole recordings [samples]; column k is centred on k · 10 ms.

        A window's log-mel is a slice of it, but for the columns that reach over the window's ends, where the signal is mirrored.
        """
        pipeline = _pipeline(1, 1, whole=True)
        for audio in recordings:
            pipeline.feed_input("AUDIO", [np.ascontiguousarray(audio, np.float32)])
            yield np.array(pipeline.run()[0].as_array()[0])


def _pipeline(batch_size: int, threads: int, whole: bool = False) -> Any:
    """Build a pipeline of `log_mel` alone."""
    from nvidia.dali import Pipeline, fn

    pipeline: Any = Pipeline(batch_size, threads, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    with pipeline:
        pipeline.set_outputs(log_mel(fn.external_source(name="AUDIO", ndim=1), whole))
    pipeline.build()
    return pipeline
