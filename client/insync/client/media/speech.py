"""Conversion of decoded audio to 16 kHz mono, the one way for every file that is read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from insync.core.mono import MonoMixer
from insync.core.spec import SAMPLE_RATE_HZ

__all__ = ["packed", "shifted", "silence", "speech_chunks"]

CHUNK_SAMPLES = SAMPLE_RATE_HZ // 2  # not smaller: each chunk costs its consumer time
SILENCE_SAMPLES = 1_024  # of a frame of silence
PLANES = 8  # PyAV 18 reads beyond the planes of frames with so many, and crashes: they are packed first


def speech_chunks(frames: Iterable[Any]) -> Iterator[NDArray[np.float32]]:
    """Convert a track to 16 kHz mono, in chunks float32 [N] of half a second or a little more.

    The channels are resampled one by one and mixed with the weights that FFmpeg gives them, but an inverted channel does not
    cancel the others: `MonoMixer` decides on each chunk. At most one chunk is in memory.

    Args:
        frames: the track's av.AudioFrames, in order. Their times are ignored, and with them gaps between packets.
    """
    resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE_HZ)  # packed; see `PLANES`
    mixer: MonoMixer | None = None
    waiting: list[NDArray[np.float32]] = []
    for frame in itertools.chain(frames, (None,)):
        if frame is not None:
            frame.pts = None
            if mixer is None:
                mixer = MonoMixer(_weights(str(frame.layout.name), int(frame.layout.nb_channels)), SAMPLE_RATE_HZ)
        if mixer is None:
            return
        for part in resampler.resample(frame):
            waiting.append(part.to_ndarray().reshape(-1, mixer.channels))
        if waiting and (frame is None or sum(map(len, waiting)) >= CHUNK_SAMPLES):
            yield mixer.mix(np.concatenate(waiting).T)
            waiting = []


def packed(frame: Any) -> NDArray[Any]:
    """Return a frame's samples, [N, channels], in its own sample type."""
    channels = int(frame.layout.nb_channels)
    if frame.format.is_planar and channels < PLANES:
        return np.asarray(frame.to_ndarray()).T
    if frame.format.is_planar:
        pts, frame.pts = frame.pts, None
        frames = av.AudioResampler(format=frame.format.packed.name).resample(frame)
        frame.pts = pts
    else:
        frames = [frame]
    return np.concatenate([np.asarray(part.to_ndarray()).reshape(-1, channels) for part in frames])


def shifted(frames: Iterator[Any], lead: int) -> Iterator[Any]:
    """Yield a track's frames after `lead` samples of silence, or without its first -`lead` samples.

    A track of planar frames with eight channels or more stays as it is.
    """
    for frame in frames:
        planar = frame.format.is_planar
        if not lead or (planar and frame.layout.nb_channels >= PLANES):
            yield frame
            break
        if lead > 0:
            yield from silence(frame, lead)
            yield frame
            break
        if frame.samples > -lead:
            yield _like(frame, packed(frame)[-lead:])
            break
        lead += frame.samples
    yield from frames


def silence(frame: Any, count: int) -> Iterator[Any]:
    """Yield frames of `count` silent samples in another frame's format; none for planar frames with eight channels or more."""
    if frame.format.is_planar and frame.layout.nb_channels >= PLANES:
        return
    silent = np.full_like(packed(frame)[:1], 128 if frame.format.name.startswith("u8") else 0)
    while count > 0:
        yield _like(frame, np.repeat(silent, min(count, SILENCE_SAMPLES), axis=0))
        count -= SILENCE_SAMPLES


def _like(frame: Any, samples: NDArray[Any]) -> Any:
    """Return a frame of samples [N, channels] in another frame's format."""
    planes = samples.T if frame.format.is_planar else samples.reshape(1, -1)
    made: Any = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(planes), format=frame.format.name, layout=frame.layout.name
    )
    made.sample_rate, made.time_base = frame.sample_rate, Fraction(1, frame.sample_rate)
    return made


def _weights(layout: str, channels: int) -> NDArray[np.float32]:
    """Return the weight that FFmpeg gives each channel in mono: float32 [channels]; equal ones if it knows none."""
    impulses = np.eye(channels, dtype=np.float32).reshape(1, -1)  # one sample of 1 in each channel, one after the other
    try:
        frame = av.AudioFrame.from_ndarray(impulses, format="flt", layout=layout)
        frame.sample_rate = SAMPLE_RATE_HZ
        parts = av.AudioResampler(format="flt", layout="mono").resample(frame)
    except (av.error.FFmpegError, ValueError):
        return np.full(channels, 1 / channels, np.float32)
    return np.concatenate([np.asarray(part.to_ndarray()[0], np.float32) for part in parts])
