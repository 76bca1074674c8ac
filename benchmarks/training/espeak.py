"""Synthesis with espeak-ng, which says when it says which sound: `pip install espeakng-loader` brings its library."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from insync.client.streaming.resampler import Resampler
from insync.core.spec import SAMPLE_RATE_HZ
from insync.training.metrics.closures import Sound

Floats = npt.NDArray[np.float32]

# Of espeak-ng's speak_lib.h.
SYNCHRONOUS, PHONEME_EVENTS, IPA, UTF8, CHARACTERS = 2, 0x0001, 0x0002, 1, 1
LIST_END, PHONEME = 0, 7

QUIET = 0.03  # of the loudest sample: below this is silence
MAX_SILENCE_S = 0.08  # of the silence before a stop that belongs to it
STOPS = ("p", "b", "t", "d", "k", "ɡ")


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p), ("id", _Id),
    )  # fmt: skip


class Speech(NamedTuple):
    """Synthetic speech: float32 [samples] at 16 kHz, and its sounds in order."""

    audio: Floats
    sounds: list[Sound]


class Espeak:
    """The library. A process should have one.

    Raises:
        ImportError: the package espeakng-loader is not installed.
    """

    def __init__(self) -> None:
        import espeakng_loader  # type: ignore[import-untyped,import-not-found,unused-ignore]

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(espeakng_loader.get_data_path()).encode()
        self._rate_hz = int(self._library.espeak_Initialize(SYNCHRONOUS, 0, data, PHONEME_EVENTS | IPA))
        self._pieces: list[npt.NDArray[np.int16]] = []
        self._starts: list[tuple[str, int]] = []
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
        )  # fmt: skip
        self._callback = kind(self._take)  # kept: the library only has its address
        self._library.espeak_SetSynthCallback(self._callback)

    def __call__(self, text: str, voice: str) -> Speech:
        """Speak a text.

        Args:
            text: what to say.
            voice: language and variant, for example `de+f2`.

        Raises:
            ValueError: espeak-ng has no such voice, or does not speak the text.
        """
        self._pieces, self._starts = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice}")
        said = text.encode()
        if self._library.espeak_Synth(said, len(said) + 1, 0, CHARACTERS, 0, UTF8, None, None) or not self._pieces:
            raise ValueError(f"espeak-ng does not speak with the voice {voice}")
        samples = np.concatenate(self._pieces)
        resampler = Resampler(self._rate_hz)
        return Speech(np.concatenate([resampler.push(samples), resampler.flush()]), self._sounds(samples))

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != LIST_END:
            event = events[index]
            if event.type == PHONEME:
                self._starts.append((event.id.string.decode("utf-8", "replace"), event.sample))
            index += 1
        return 0

    def _sounds(self, samples: npt.NDArray[np.int16]) -> list[Sound]:
        """Return the sounds of int16 samples.

        espeak-ng reports a stop when it is released. The silence before, in which it is closed, is moved to it.
        """
        loud = np.abs(samples.astype(np.int32)) > QUIET * np.abs(samples.astype(np.int32)).max()
        starts: list[tuple[str, int]] = []
        for name, start in self._starts:
            if name.startswith("("):  # the name of a language
                continue
            first = start
            if name.startswith(STOPS):
                earliest = max(starts[-1][1] if starts else 0, start - round(MAX_SILENCE_S * self._rate_hz))
                heard = np.flatnonzero(loud[earliest:start])
                first = earliest + (int(heard[-1]) + 1 if heard.size else 0)
            starts.append((name, first))
        ends = [start for _, start in starts[1:]] + [len(samples)]
        return [
            Sound(name, start / self._rate_hz, end / self._rate_hz)
            for (name, start), end in zip(starts, ends, strict=True)
            if end > start
        ]


def at(sounds: list[Sound], start_s: float) -> list[Sound]:
    """Return sounds that begin later by `start_s`."""
    return [Sound(name, first + start_s, end + start_s) for name, first, end in sounds]


def lead(audio: Floats, start_s: float) -> Floats:
    """Return audio float32 [samples] at 16 kHz after that much silence."""
    return np.pad(audio, (round(start_s * SAMPLE_RATE_HZ), 0))
