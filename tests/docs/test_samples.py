"""The shipped sample has the properties that the demo and the tests rely on, and the demo's picture can be drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from insync.ensemble.models.face import FaceFinder

SCRIPT = Path("samples") / "side_by_side.py"


def _draw(root: Path, source: Path, synced: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / SCRIPT), str(source), str(synced), "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _clip(path: Path, images: list[NDArray[np.uint8]]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_clip_has_a_large_face_throughout(repository: Path, sample_clip: Path) -> None:
    finder = FaceFinder(repository / "lipsync_face" / "1")
    count = 0
    with av.open(str(sample_clip)) as container:
        assert not container.streams.audio
        assert container.streams.video[0].average_rate == 25
        for count, frame in enumerate(container.decode(video=0), start=1):
            assert (frame.width, frame.height) == (1280, 720)
            if count % 20 == 1:
                face = finder.find(frame.to_ndarray(format="rgb24"))
                assert face is not None
                assert face.confidence > 0.7
                assert np.ptp(face.landmarks[:, 0]) > 200
    assert count == 200


def test_the_mouth_opens_and_closes_and_the_cuts_do_not_jump(repository: Path, sample_clip: Path) -> None:
    """The clip shows teeth, unlike the photo. Between its three sentences, frames differ no more than elsewhere."""
    finder, openings, steps = FaceFinder(repository / "lipsync_face" / "1"), [], []
    before: NDArray[np.float32] | None = None
    with av.open(str(sample_clip)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            image = frame.to_ndarray(format="rgb24")
            small = cv2.resize(image, (160, 90), interpolation=cv2.INTER_AREA).astype(np.float32)
            if before is not None:
                steps.append(float(np.abs(small - before).mean()))
            before = small
            if index % 5 == 0:
                face = finder.find(image)
                assert face is not None
                lips, eyes = face.landmarks[[13, 14], :2], face.landmarks[[33, 263], :2]
                openings.append(np.linalg.norm(lips[0] - lips[1]) / np.linalg.norm(eyes[0] - eyes[1]))
    assert min(openings) < 0.02
    assert max(openings) > 0.12
    assert max(steps) < 4 * np.median(steps)


def test_photo_has_a_face(root: Path, repository: Path) -> None:
    image = cv2.imread(str(root / "samples" / "photo.jpg"))
    assert image.shape == (600, 512, 3)
    face = FaceFinder(repository / "lipsync_face" / "1").find(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    assert face is not None
    assert face.confidence > 0.7
    assert np.ptp(face.landmarks[:, 0]) > 100


def test_speech_fits_the_clip(sample_speech: Path) -> None:
    with av.open(str(sample_speech)) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)]) / 32768
        assert (stream.rate, stream.channels) == (24_000, 1)
        assert 7.4 < len(samples) / stream.rate <= 8.0
    assert 0.3 < np.abs(samples).max() < 1.0


@pytest.mark.parametrize("count", [1, 30])
def test_side_by_side_shows_both_clips(root: Path, tmp_path: Path, count: int) -> None:
    """The upper row is grey, the lower one has a bright square, which the picture must show."""
    plain = np.full((240, 320, 3), 90, np.uint8)
    marked = plain.copy()
    marked[100:140, 200:240] = 230
    source, synced = _clip(tmp_path / "a.mp4", [plain] * count), _clip(tmp_path / "b.mp4", [marked] * count)
    done = _draw(root, source, synced, tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(tmp_path / "out.png"))
    tile = picture[30:330, 6:306], picture[366:666, 6:306]
    assert np.abs(tile[0].astype(int) - 90).max() < 12
    bright = (tile[1] > 180).mean()
    assert 0.1 < bright < 0.5
    assert np.abs(np.argwhere(tile[1][..., 0] > 180).mean(0) - 150).max() < 25


def test_animation_shows_both_clips_moving(root: Path, tmp_path: Path) -> None:
    """A square moves on the right side only."""
    plain = [np.full((240, 320, 3), 90, np.uint8) for _ in range(20)]
    marked = [image.copy() for image in plain]
    for index, image in enumerate(marked):
        image[100:140, 130 + 2 * index : 170 + 2 * index] = 230
    source, synced = _clip(tmp_path / "a.mp4", plain), _clip(tmp_path / "b.mp4", marked)
    command = [sys.executable, str(root / SCRIPT), str(source), str(synced), "-o", str(tmp_path / "out.png")]
    command += ["--animation", str(tmp_path / "out.webp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = cv2.imreadanimation(str(tmp_path / "out.webp"))[1].frames
    assert len(shown) == 10  # every second frame
    places = []
    for picture in shown:
        assert picture.shape[:2] == (390, 726)
        assert np.abs(picture[30:, :360, :3].astype(int) - 90).max() < 20
        places.append(np.argwhere(picture[30:, 366:, 0] > 180)[:, 1].mean())
    assert (np.diff(places) > 3).all()  # 4 pixels of the clip, 1.5 times as large


def test_side_by_side_refuses_clips_of_different_sizes(root: Path, tmp_path: Path) -> None:
    small = _clip(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3)
    large = _clip(tmp_path / "b.mp4", [np.zeros((96, 64, 3), np.uint8)] * 3)
    done = _draw(root, small, large, tmp_path / "out.png")
    assert done.returncode == 1
    assert done.stderr.strip() == "side_by_side: the clips differ in size: (64, 64) and (64, 96)"
    done = _draw(root, tmp_path / "nowhere.mp4", large, tmp_path / "out.png")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.png").exists()
