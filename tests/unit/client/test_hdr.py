"""HDR footage is seen and written as SDR: greys stay grey, white is white, and a note says it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.client.media.hdr import HLG, PQ, tone_mapped
from insync.client.media.reader import VideoFile

BT2020 = 9
_709_TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def pq(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """SMPTE ST 2084, from light to signal."""
    y = (np.clip(nits, 0, None) / 10_000) ** (2610 / 16384)
    return np.asarray(((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32))


def hlg(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """HLG's signal for light on a display of 1,000 cd/m² (BT.2100)."""
    luma = nits / 1000 @ np.array([0.2627, 0.6780, 0.0593])
    scene = nits / 1000 * np.maximum(luma, 1e-9)[..., None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


SIGNALS = {PQ: pq, HLG: hlg}
SKIN = np.array([0.42, 0.25, 0.18])  # linear BT.709
COLOURS = {
    "black": [0, 0, 0],
    "grey": [0.2, 0.2, 0.2],
    "skin": SKIN,
    "red": [0.4, 0.05, 0.05],
    "blue": [0.05, 0.08, 0.4],
}


def write(path: Path, transfer: int, colours: list[Any]) -> Path:
    """Write columns of linear BT.709 colours, 1 being diffuse white, as HDR in 10 bits."""
    picture = np.repeat(np.repeat(np.array(colours, float)[None], 64, axis=0), 32, axis=1)
    signal = SIGNALS[transfer](203 * picture @ _709_TO_2020.T)
    luma = signal @ np.array([0.2627, 0.6780, 0.0593])
    blue, red = (signal[..., 2] - luma) / 1.8814, (signal[..., 0] - luma) / 1.4746
    planes = [64 + 876 * luma, 512 + 896 * blue[::2, ::2], 512 + 896 * red[::2, ::2]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"crf": "5", "x265-params": "log-level=none"})
        stream.height, stream.width, stream.pix_fmt = (*picture.shape[:2], "yuv420p10le")
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = BT2020, 9, transfer, 1
        for number in range(5):
            frame = av.VideoFrame(picture.shape[1], picture.shape[0], "yuv420p10le")
            frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = BT2020, 9, transfer, 1
            for plane, values in zip(frame.planes, planes, strict=True):
                view = np.frombuffer(plane, np.uint16).reshape(plane.height, -1)
                view[:, : plane.width] = np.rint(values)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_dark_and_middle_light_stay_as_they_were(transfer: int) -> None:
    for name, colour in COLOURS.items():
        signal = SIGNALS[transfer](203 * np.array([colour], float) @ _709_TO_2020.T)
        wanted = np.array(colour, float) ** (1 / 2.4)
        assert tone_mapped(signal, transfer)[0] == pytest.approx(wanted, abs=0.035), name


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_highlights_keep_their_order_and_hue(transfer: int) -> None:
    greys: NDArray[np.float64] = np.array([[0.5] * 3, [1.0] * 3, [2.0] * 3, [3.0] * 3, [4.5] * 3], np.float64)
    mapped = tone_mapped(SIGNALS[transfer](203 * greys), transfer)
    assert sorted(mapped[:, 0]) == list(mapped[:, 0])
    assert (mapped.max(1) - mapped.min(1)).max() < 0.01
    assert 0.8 < mapped[1, 0] < 1  # diffuse white
    assert mapped[-1, 0] > 0.98


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_a_file_is_read_as_sdr_with_a_note(tmp_path: Path, transfer: int) -> None:
    video = VideoFile(write(tmp_path / "hdr.mp4", transfer, list(COLOURS.values())))
    assert any("HDR" in note for note in video.notes)
    assert (video.format, video.colours) == ("yuv420p", (1, 1, 1, 1))
    frames = list(video.frames())
    assert [float(f.pts * video.time_base) for f in frames] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    shown = video.picture(frames[2].frame).rgb()
    for number, (name, colour) in enumerate(COLOURS.items()):
        wanted = 255 * np.array(colour, float) ** (1 / 2.4)
        assert shown[32, 32 * number + 16] == pytest.approx(wanted, abs=12), name


def test_sdr_is_left_alone(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sdr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24").reformat(
            format="yuv420p"
        )
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert VideoFile(tmp_path / "sdr.mp4").notes == []
