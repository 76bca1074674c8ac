"""The frames and audio that the guard accepts and refuses, with the error messages."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.core.errors import BadInput
from insync.core.spec import MAX_FRAME_BYTES, WINDOW_SAMPLES
from insync.ensemble.models.guard import Size, check_audio, check_frame, check_registration


def encoded(kind: str, width: int = 64, height: int = 48, *options: int) -> bytes:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(kind, image, options)[1])


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares any size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def with_chunk(png: bytes, kind: bytes, data: bytes, times: int = 1) -> bytes:
    """A PNG with extra chunks after its header."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk * times + png[33:]


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose first scan is repeated: each copy costs three bytes and a pass over all pixels."""
    whole = encoded(".jpg", 64, 48, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    start = whole.index(b"\xff\xda")
    end = whole.index(b"\xff", start + 2)
    while whole[end + 1] == 0:
        end = whole.index(b"\xff", end + 2)
    return whole[:start] + whole[start:end] * count + b"\xff\xd9"


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_a_whole_picture_passes(kind: str) -> None:
    assert check_frame(encoded(kind)) == Size(64, 48)
    assert check_frame(memoryview(encoded(kind))) == (64, 48)


def test_a_progressive_jpeg_passes() -> None:
    assert check_frame(encoded(".jpg", 64, 48, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)) == (64, 48)


def test_a_jpeg_with_metadata_that_holds_a_thumbnail_passes() -> None:
    thumbnail, whole = encoded(".jpg", 16, 16), encoded(".jpg", 320, 200)
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert check_frame(whole[:2] + segment + whole[2:]) == (320, 200)


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_every_cut_is_noticed(kind: str) -> None:
    data = encoded(kind)
    for length in (0, 1, 3, 10, 20, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(BadInput, match="FRAME"):
            check_frame(data[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"FRAME is empty \(0 bytes\)"),
        (b"GIF89a" + bytes(100), "FRAME must be a JPEG or PNG picture: it begins with bytes 47 49 46 38"),
        (b"hello, world", "FRAME must be a JPEG or PNG picture"),
        (b"\xff\xd8\xff" + bytes(200), "damaged JPEG|truncated"),
        (b"\xff\xd8\xff\xd9", "without a frame header"),
        (encoded(".jpg")[:-2], "truncated: its .* bytes have no end marker"),
        (encoded(".png")[:-5], "truncated: its .* bytes have no end marker"),
        (png_header(5000, 4000), r"5000×4000 \(20\.0 megapixels\): it must have at most 16\.8 megapixels"),
        (png_header(2**31 - 1, 2**31 - 1), "megapixels"),
        (png_header(8, 400), "8×400: its sides must be 16 to"),
        (png_header(40_000, 100), "40000×100: its sides must be 16 to 32,000 pixels"),
        (png_header(0, 0), "0×0"),
        (encoded(".jpg") + bytes(MAX_FRAME_BYTES), f"bytes: it must have at most {MAX_FRAME_BYTES:,}"),
        (png_header(64, 48), "a PNG without pixels"),
        (encoded(".png")[:33] + encoded(".png"), "truncated: a PNG whose chunks do not end|several pictures"),
        (with_chunk(encoded(".png"), b"acTL", bytes(8)), "a PNG of several pictures"),
        (with_chunk(encoded(".png"), b"IHDR", bytes(13)), "a PNG of several pictures"),
        (with_chunk(encoded(".png"), b"tEXt", b"", 201), "more than 200 chunks other than pixels"),
        (with_chunk(encoded(".png"), b"IDAT", b"", 20_001), "more than 20,000 chunks"),
        (encoded(".png")[:24] + b"\x07" + encoded(".png")[25:], "colour type 2 with 7 bits"),
        (b"\xff\xd8" + b"\xff" * 40_000 + b"\xd9", "more than 20,000 segments"),
        (many_scans(65), "a JPEG of 65 scans: it must have at most 64"),
    ],
)
def test_bad_frames(data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_frame(data)


def test_the_field_is_named() -> None:
    with pytest.raises(BadInput, match=r"^FRAMES\[3\] is empty"):
        check_frame(b"", "FRAMES[3]")


def test_random_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(4)
    for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b""):
        for _ in range(300):
            with pytest.raises(BadInput):
                check_frame(start + rng.bytes(int(rng.integers(0, 80))) + b"\xff")


def test_a_registration_is_checked_as_a_whole_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    good = encoded(".jpg")
    check_registration([good] * 300)
    with pytest.raises(BadInput, match=r"FRAMES\[1\] is empty"):
        check_registration([good, b""])
    large = good[:-2] + bytes(30 * 2**20) + good[-2:]
    with pytest.raises(BadInput, match=r"FRAMES have .* bytes together, must have at most 268,435,456"):
        check_registration([large] * 9)
    monkeypatch.setattr("insync.ensemble.models.guard.MAX_REGISTRATION_PIXELS", 64 * 48 * 10)
    check_registration([good] * 10)
    with pytest.raises(BadInput, match="megapixels together"):
        check_registration([good] * 11)


def window(value: float = 0.0) -> NDArray[np.float32]:
    return np.full(WINDOW_SAMPLES, value, np.float32)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.2])
def test_audio_passes(value: float) -> None:
    check_audio(window(value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 samples that are not finite"),
        (np.inf, "not finite"),
        (-np.inf, "not finite"),
        (3000.0, r"reaches 3000, must be float samples in \[-1, 1\]"),
    ],
)
def test_bad_samples(value: float, message: str) -> None:
    audio = window(0.1)
    audio[17] = value
    with pytest.raises(BadInput, match=message):
        check_audio(audio)


def test_another_length() -> None:
    with pytest.raises(BadInput, match=r"\[6399\], must be \[6400\]"):
        check_audio(window()[:-1])
