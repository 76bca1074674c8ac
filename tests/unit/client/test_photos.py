"""Photos and animated pictures: upright, in their colours, from any container, with a note on what is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from tests.support.media import assert_alike, corners

from insync.client.media.reader import VideoFile
from insync.core.errors import UnreadableMedia

Picture = NDArray[np.uint8]
ORIENTATION, MAKE = 0x0112, 0x010F

# How a picture is stored under each value of EXIF's orientation (CIPA DC-008, 4.6.4): where row 0 and column 0 lie on display.
STORED: dict[int, Callable[[Picture], Picture]] = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],  # right, top
    3: lambda shown: shown[::-1, ::-1],  # right, bottom
    4: lambda shown: shown[::-1],  # left, bottom
    5: lambda shown: shown.swapaxes(0, 1),  # top, left
    6: lambda shown: shown.swapaxes(0, 1)[::-1],  # row 0 is the right side
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: shown.swapaxes(0, 1)[:, ::-1],  # row 0 is the left side
}


def save(path: Path, stored: Picture, orientation: int | None = None, **options: object) -> Path:
    image = Image.fromarray(np.ascontiguousarray(stored))
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION], exif[MAKE] = orientation, "A maker"
        options["exif"] = exif
    if path.suffix == ".heic":
        pillow_heif.from_pillow(image).save(str(path), quality=95)
    else:
        image.save(path, **options)
    return path


def shown(video: VideoFile) -> Picture:
    (frame,) = list(video.frames())
    return video.picture(frame.frame).rgb()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_all_orientations_are_right_in_every_format(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = save(tmp_path / f"photo{suffix}", STORED[orientation](corners()), orientation)
    video = VideoFile(path)
    assert video.photo
    assert_alike(shown(video), corners())


@pytest.mark.parametrize("suffix", [".avif", ".heic", ".gif", ".bmp", ".jp2"])
def test_a_photo_is_a_photo_whatever_its_container(tmp_path: Path, suffix: str) -> None:
    video = VideoFile(save(tmp_path / f"photo{suffix}", corners()))
    assert video.photo
    assert video.frames_expected == 1
    assert_alike(shown(video), corners())


def test_an_animated_gif_is_a_video_with_its_own_times(tmp_path: Path) -> None:
    images = [Image.fromarray(np.roll(corners(), 8 * n, axis=1)) for n in range(4)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 200, 100, 100])
    video = VideoFile(tmp_path / "a.gif")
    assert not video.photo
    assert [round(float(f.pts * video.time_base), 2) for f in video.frames()] == [0, 0.1, 0.3, 0.4]


def test_an_animated_webp_is_a_video_with_its_own_times(tmp_path: Path) -> None:
    images = [Image.fromarray(np.roll(corners(), 8 * n, axis=1)) for n in range(4)]
    images[0].save(
        tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=[40, 80, 40, 40], lossless=True
    )
    video = VideoFile(tmp_path / "a.webp")
    assert not video.photo
    frames = list(video.frames())
    assert [float(f.pts * video.time_base) for f in frames] == [0, 0.04, 0.12, 0.16]
    assert video.frames_expected == 4
    for number, frame in enumerate(frames):
        assert_alike(video.picture(frame.frame).rgb(), np.roll(corners(), 8 * number, axis=1))


def test_transparent_parts_become_black_with_a_note(tmp_path: Path) -> None:
    picture = np.dstack([corners(), np.full((64, 96), 255, np.uint8)])
    picture[:32, :48, 3] = 0
    video = VideoFile(save(tmp_path / "photo.png", picture))
    assert any("transparent" in note for note in video.notes)
    wanted = corners()
    wanted[:32, :48] = 0
    assert_alike(shown(video), wanted)


def test_opaque_alpha_is_no_news(tmp_path: Path) -> None:
    picture = np.dstack([corners(), np.full((64, 96), 255, np.uint8)])
    assert VideoFile(save(tmp_path / "photo.png", picture)).notes == []


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "I;16"])
def test_other_kinds_of_pixels_are_converted(tmp_path: Path, mode: str) -> None:
    grey = np.repeat(corners()[..., :1], 3, axis=2)
    if mode == "I;16":
        Image.fromarray(corners()[..., 0].astype(np.uint16) * 257).save(tmp_path / "photo.png")
    elif mode == "P":
        Image.fromarray(grey).quantize().save(tmp_path / "photo.png")
    else:
        Image.fromarray(grey).convert(mode).save(tmp_path / ("photo.tiff" if mode == "CMYK" else "photo.png"))
    (path,) = tmp_path.iterdir()
    assert_alike(shown(VideoFile(path)), grey)


def test_colours_of_a_profile_are_converted_to_srgb(tmp_path: Path) -> None:
    # A profile whose values mean something else: CIE L*a*b* colours are no RGB, so Pillow's XYZ stands in as a linear one.
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    broken = save(tmp_path / "photo.png", corners(), icc_profile=linear.tobytes())
    assert VideoFile(broken).photo  # a profile that does not fit is no reason to refuse
    damaged = save(tmp_path / "other.png", corners(), icc_profile=b"no profile at all")
    assert_alike(shown(VideoFile(damaged)), corners())


def test_a_damaged_photo_is_refused_in_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", np.random.default_rng(0).integers(0, 255, (640, 960, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UnreadableMedia, match="damaged"):
        VideoFile(path)


def test_jpegs_one_after_the_other_are_a_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mjpeg"
    parts = []
    for number in range(3):
        save(tmp_path / "one.jpg", np.roll(corners(), 8 * number, axis=1), subsampling=2)
        parts.append((tmp_path / "one.jpg").read_bytes())
    path.write_bytes(b"".join(parts))
    video = VideoFile(path)
    assert not video.photo
    assert len(list(video.frames())) == 3


def test_cover_art_is_no_photo(tmp_path: Path) -> None:
    """An audio file stays one, although Pillow would read the picture in it."""
    with av.open(str(tmp_path / "song.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(Exception, match="no video track and no photo"):
        VideoFile(tmp_path / "song.wav")
