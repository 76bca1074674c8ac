"""Tone mapping of HDR video (PQ and HLG, BT.2020) to SDR (BT.709): the network, and what writes the result, know SDR only.

The mapping is computed once as a table of 33³ colours, which FFmpeg's filter `lut3d` applies: ITU-R BT.2100 from signal to light, BT.2408's
diffuse white of 203 cd/m² for SDR's white, the curve of BT.2390 for what is brighter, and BT.1886 back to a signal.
"""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["HLG", "PQ", "table", "tone_mapped"]

Floats = NDArray[np.float64]

PQ, HLG = 16, 18  # FFmpeg's AVColorTransferCharacteristic
WHITE_NITS = 203.0
PEAK_NITS = 1000.0  # of the display that the footage was graded for; what is brighter clips
SIZE = 33
_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])  # BT.2087
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def _pq_to_nits(signal: Floats) -> Floats:
    root = np.clip(signal, 0, 1) ** (1 / _M2)
    return np.asarray(10_000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1))


def _nits_to_pq(nits: Floats) -> Floats:
    power = (np.clip(nits, 0, None) / 10_000) ** _M1
    return np.asarray(((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2)


def _hlg_to_nits(signal: Floats) -> Floats:
    """HLG's light on a display of `PEAK_NITS`, by its system gamma of 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luma = scene @ _LUMA_2020
    return np.asarray(PEAK_NITS * scene * np.maximum(luma, 1e-9)[..., None] ** 0.2)


def _rolled_off(nits: Floats) -> Floats:
    """Map light of up to `PEAK_NITS` to at most `WHITE_NITS` (BT.2390, 5.4.1)."""
    top = float(_nits_to_pq(np.array(PEAK_NITS)))
    highest = float(_nits_to_pq(np.array(WHITE_NITS))) / top
    knee = 1.5 * highest - 0.5
    value = np.clip(_nits_to_pq(nits) / top, 0, 1)
    t = np.clip((value - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * highest
    return _pq_to_nits(np.where(value < knee, value, spline) * top)


def tone_mapped(signal: Floats, transfer: int) -> Floats:
    """Convert BT.2020 R'G'B' [..., 3] in [0, 1] to BT.709 R'G'B' in [0, 1].

    Args:
        signal: PQ or HLG signal, full range.
        transfer: `PQ` or `HLG`.
    """
    nits = _pq_to_nits(signal) if transfer == PQ else _hlg_to_nits(signal)
    # The brightest of the three channels decides, and all are scaled alike: hues stay.
    brightest = np.maximum(nits.max(-1), 1e-6)
    nits = nits * (_rolled_off(brightest) / brightest)[..., None]
    linear = np.clip(nits @ _TO_709.T / WHITE_NITS, 0, 1)
    return np.asarray(linear ** (1 / 2.4))


@functools.cache
def table(transfer: int) -> Path:
    """Return a file with the mapping of a transfer function for `lut3d`; it is removed when the program ends."""
    steps = np.linspace(0, 1, SIZE)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # red changes fastest in the file
    mapped = tone_mapped(np.stack([red, green, blue], -1), transfer).reshape(-1, 3)
    descriptor, name = tempfile.mkstemp(prefix="insync-", suffix=".cube")
    with os.fdopen(descriptor, "w") as file:
        file.write(f"LUT_3D_SIZE {SIZE}\n")
        np.savetxt(file, mapped, fmt="%.6f")
    atexit.register(Path(name).unlink, missing_ok=True)
    return Path(name)
