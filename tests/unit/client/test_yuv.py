"""Cutting from and pasting into a frame's own planes."""

from __future__ import annotations

import av
import numpy as np
import pytest

from insync.client.media.orientation import Orientation
from insync.client.media.yuv import NATIVE_FORMATS, YuvPicture, copy_frame, plane_views, rgb_to_yuv, yuv_to_rgb
from insync.client.streaming.region import Region
from insync.core.compositing import Placed

WIDTH, HEIGHT = 96, 64


def noise(pixel_format: str, colorspace: int = 5, width: int = WIDTH, height: int = HEIGHT) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, pixel_format)
    frame.colorspace = colorspace
    rng = np.random.default_rng(5)
    for plane in plane_views(frame):
        plane[...] = rng.integers(16, 236, plane.shape, np.uint8)
    return frame


def smooth(pixel_format: str, colorspace: int) -> av.VideoFrame:
    frame = av.VideoFrame(WIDTH, HEIGHT, pixel_format)
    frame.colorspace = colorspace
    for base, plane in zip((60, 110, 140), plane_views(frame), strict=True):
        plane[...] = base + np.linspace(0, 40, plane.shape[1])[None] + np.linspace(0, 20, plane.shape[0])[:, None]
    return frame


def a_patch(x0: int, y0: int, x1: int, y1: int, colour: tuple[int, int, int] = (200, 40, 90)) -> Placed:
    """Return a disc whose alpha falls from 1 to exactly 0."""
    ys, xs = np.mgrid[y0:y1, x0:x1]
    r = np.hypot((xs - (x0 + x1 - 1) / 2) / (x1 - x0), (ys - (y0 + y1 - 1) / 2) / (y1 - y0))
    alpha = np.clip(3 - 8 * r, 0, 1).astype(np.float32)
    rgb = np.broadcast_to(np.array(colour, np.uint8), (*alpha.shape, 3)).copy()
    return Placed(x0, y0, x1, y1, rgb, alpha)


@pytest.mark.parametrize("colorspace", [1, 2, 5, 9])
@pytest.mark.parametrize("full", [False, True])
def test_the_matrices_map_black_white_and_grey_exactly_and_are_inverse(colorspace: int, full: bool) -> None:
    forward, inverse = rgb_to_yuv(colorspace, full, 720), yuv_to_rgb(colorspace, full, 720)
    low, high = (0, 255) if full else (16, 235)
    for grey, luma in ((0, low), (255, high), (127.5, (low + high) / 2)):
        np.testing.assert_allclose(forward @ [grey, grey, grey, 1], [luma, 128, 128], atol=1e-9)
    colour = np.array([31.0, 200, 77])
    np.testing.assert_allclose(inverse @ [*(forward @ [*colour, 1]), 1], colour, atol=1e-9)


def test_primaries_are_those_of_the_standards() -> None:
    # ITU-R BT.601 and BT.709, 8 bits: luma of pure red, green and blue.
    for colorspace, lumas in ((5, (81, 145, 41)), (1, (63, 173, 32))):
        for channel, luma in enumerate(lumas):
            colour = np.zeros(4)
            colour[[channel, 3]] = 255, 1
            assert round((rgb_to_yuv(colorspace, False, 480) @ colour)[0]) == luma


def test_an_unspecified_matrix_depends_on_the_size_as_in_players() -> None:
    np.testing.assert_array_equal(rgb_to_yuv(2, False, 1080), rgb_to_yuv(1, False, 1080))
    np.testing.assert_array_equal(rgb_to_yuv(2, False, 576), rgb_to_yuv(5, False, 576))


@pytest.mark.parametrize("colorspace", [1, 5])
@pytest.mark.parametrize("pixel_format", NATIVE_FORMATS)
def test_colours_agree_with_swscale(pixel_format: str, colorspace: int) -> None:
    frame = smooth(pixel_format, colorspace)
    full = pixel_format.startswith("yuvj")
    expected = frame.reformat(
        format="rgb24",
        src_colorspace={1: "ITU709", 5: "ITU601"}[colorspace],
        src_color_range="JPEG" if full else "MPEG",
        dst_color_range="JPEG",
    ).to_ndarray()
    got = YuvPicture(frame).rgb()
    assert got.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(got.astype(int) - expected)[4:-4, 4:-4].mean() < 1.5


@pytest.mark.parametrize("pixel_format", NATIVE_FORMATS)
@pytest.mark.parametrize("box", [(20, 10, 60, 50), (21, 11, 60, 49), (0, 0, 33, 27), (60, 40, 96, 64)])
def test_pasting_changes_nothing_outside_the_patch(pixel_format: str, box: tuple[int, int, int, int]) -> None:
    frame = noise(pixel_format)
    before = [plane.copy() for plane in plane_views(frame)]
    placed = a_patch(*box)
    YuvPicture(frame).paste(placed)
    _, across, down = NATIVE_FORMATS[pixel_format]
    alpha = np.zeros((HEIGHT, WIDTH), np.float32)
    alpha[box[1] : box[3], box[0] : box[2]] = placed.alpha
    covered = [alpha] + [
        alpha.reshape(HEIGHT // down, down, WIDTH // across, across).mean(axis=(1, 3)) for _ in range(2)
    ]
    matrix = rgb_to_yuv(5, pixel_format.startswith("yuvj"), HEIGHT)
    target = matrix @ [200, 40, 90, 1]
    for old, new, share, value in zip(before, plane_views(frame), covered, target, strict=True):
        np.testing.assert_array_equal(new[share == 0], old[share == 0])
        assert (new != old).any()
        ideal = old + share * (value - old)
        assert np.abs(new - ideal).max() <= 1.01  # one rounding of the colour, one of the blend


def test_an_opaque_patch_reads_back_as_its_colour() -> None:
    frame = noise("yuv420p", colorspace=1)
    picture = YuvPicture(frame)
    placed = Placed(20, 20, 60, 60, np.full((40, 40, 3), (30, 180, 220), np.uint8), np.ones((40, 40), np.float32))
    picture.paste(placed)
    inner = picture.cut(Region(24, 24, 56, 56, 32, 32))
    assert np.abs(inner.astype(int) - [30, 180, 220]).max() <= 2


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_frame_behaves_as_its_upright_picture(turns: int) -> None:
    straight, turned = YuvPicture(noise("yuv444p")), YuvPicture(noise("yuv444p"), Orientation(turns))
    upright = np.rot90(straight.rgb(), turns)
    assert (turned.height, turned.width) == upright.shape[:2]
    np.testing.assert_array_equal(turned.rgb(), upright)
    np.testing.assert_array_equal(turned.cut(Region(4, 8, 44, 38, 40, 30)), upright[8:38, 4:44])
    placed = a_patch(11, 20, 41, 52)
    turned.paste(placed)
    changed = (turned.rgb() != upright).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 20 <= rows.min() < rows.max() < 52
    assert 11 <= columns.min() < columns.max() < 41
    centre = turned.rgb()[36, 26].astype(int)
    assert np.abs(centre - [200, 40, 90]).max() <= 2


def test_odd_sizes_and_shrinking() -> None:
    picture = YuvPicture(noise("yuv420p", width=95, height=63))
    assert picture.cut(Region(0, 0, 95, 63, 40, 30)).shape == (30, 40, 3)
    picture.paste(a_patch(80, 50, 95, 63))
    assert picture.rgb().shape == (63, 95, 3)


def test_a_frame_that_the_decoder_still_reads_is_copied_before_it_is_changed() -> None:
    frame = noise("yuv420p")
    copy = copy_frame(frame)
    YuvPicture(copy).paste(a_patch(20, 10, 60, 50))
    again = noise("yuv420p")
    for plane, expected in zip(plane_views(frame), plane_views(again), strict=True):
        np.testing.assert_array_equal(plane, expected)
