"""Tests of curation on the sample: broken clips are listed, a killed run resumes, manual overrides are kept, and training uses the result."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from insync.cli.main import main
from insync.client.media.scenes import Scenes
from insync.core.mouth import MouthBasis
from insync.core.spec import SAMPLE_RATE_HZ
from insync.training.curation import pipeline as curation
from insync.training.curation.clip import ABSENT, GOOD, Run, Visibility, pose_degrees
from insync.training.curation.pipeline import _joined, curate
from insync.training.curation.report import REPORT, curve_svg, outcome, write_report
from insync.training.data.audio import read_speech
from insync.training.data.dataset import Dataset
from insync.training.data.manifest import FILE, Row, overrule, read_manifest, write_manifest
from insync.training.data.segments import part_path
from insync.training.trainers.syncnet import train_syncnet

Floats = npt.NDArray[np.float32]


def clip(path: Path, source: Path, frames: int, speech: Floats | None, late_s: float = 0.0) -> None:
    """Write the first frames of the sample, with speech that starts `late_s` later."""
    with av.open(str(source)) as reader, av.open(str(path), "w") as sink:
        video = sink.add_stream_from_template(reader.streams.video[0])
        sound = None if speech is None else sink.add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ)
        for packet in list(reader.demux(video=0))[:frames]:
            if packet.dts is not None:
                packet.stream = video
                sink.mux(packet)
        if sound is not None and speech is not None:
            samples = np.pad(speech, (round(late_s * SAMPLE_RATE_HZ), 0))[: round(frames / 25 * SAMPLE_RATE_HZ)]
            frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], "s16", "mono")
            frame.sample_rate = SAMPLE_RATE_HZ
            sink.mux(sound.encode(frame))
            sink.mux(sound.encode())


@pytest.fixture(scope="module")
def basis(repository: Path) -> MouthBasis:
    return MouthBasis.load(repository / "lipsync_twin" / "1" / "mouth_basis.npz")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, sample_clip: Path, sample_speech: Path) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    speech = read_speech(sample_speech)
    clip(folder / "a.mkv", sample_clip, 60, speech)
    clip(folder / "again.mkv", sample_clip, 40, speech, 0.2)
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "notes.txt").write_text("not a clip")
    whole = (folder / "a.mkv").read_bytes()
    (folder / "cut_off.mkv").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, clips: Path, repository: Path, basis: MouthBasis) -> Path:
    """Return a data set whose curation was killed at its second clip, and then resumed."""
    out = tmp_path_factory.mktemp("made") / "set"
    models, calls = repository / "lipsync_face" / "1", []

    def killed(path: Path, *rest: object) -> None:
        calls.append(path.name)
        if len(calls) == 2:
            part_path(out, path.name, ".jpgs").write_bytes(b"half of")
            raise KeyboardInterrupt
        original(path, *rest)

    original = vars(curation)["make_part"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curation, "make_part", killed)
        with pytest.raises(KeyboardInterrupt):
            curate(clips, out, models, basis.rigid)
        assert not (out / FILE).exists()
        curate(clips, out, models, basis.rigid)
    assert calls == ["a.mkv", "again.mkv", "again.mkv", "broken.mp4", "cut_off.mkv"]
    return out


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "set"))


def test_every_clip_is_in_the_manifest_with_its_reason(made: Path) -> None:
    rows: dict[str, Row] = {}
    for row in read_manifest(made / FILE):
        rows.setdefault(row.clip, row)
    assert list(rows) == ["a.mkv", "again.mkv", "broken.mp4", "cut_off.mkv"]
    assert rows["a.mkv"].kept
    assert rows["a.mkv"].frames == 60
    assert rows["a.mkv"].has_sound
    assert rows["a.mkv"].person == "p001"
    assert rows["a.mkv"].silence < 0.5
    assert not rows["again.mkv"].kept
    assert rows["again.mkv"].duplicate_of == rows["a.mkv"].segment
    assert "shows the same as a.mkv" in rows["again.mkv"].reason
    assert "cannot be read" in rows["broken.mp4"].reason
    assert (rows["broken.mp4"].frames, rows["broken.mp4"].stored) == (0, False)
    assert 0 < rows["cut_off.mkv"].frames < 60  # the frames before the damage are usable


def test_a_still_mouth_does_not_speak(
    root: Path, sample_speech: Path, tmp_path: Path, repository: Path, basis: MouthBasis
) -> None:
    """The shipped photo under a camera that moves, with speech as its sound."""
    photo, source = cv2.imread(str(root / "samples" / "photo.jpg")), tmp_path / "still.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 512, 600, "yuv420p"
        for index in range(60):
            moved = cv2.getRotationMatrix2D((262, 214), 0.9 * math.sin(index / 24), 1 + index / 1500)
            image = cv2.warpAffine(photo, moved, (512, 600), borderMode=cv2.BORDER_REFLECT_101)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    (tmp_path / "clips").mkdir()
    clip(tmp_path / "clips" / "still.mkv", source, 60, read_speech(sample_speech))
    curate(tmp_path / "clips", tmp_path / "set", repository / "lipsync_face" / "1", basis.rigid)
    row = read_manifest(tmp_path / "set" / FILE)[0]
    assert len(row.curve) == 31
    assert not row.spoken
    assert "mouth and sound do not match" in row.reason


def test_crops_are_compact_and_close(made: Path, sample_clip: Path, repository: Path) -> None:
    from insync.ensemble.models.face import FaceFinder, take_crop

    kept = Dataset(made)
    assert (
        part_path(made, "a.mkv", ".jpgs").stat().st_size < kept.crops[:60].nbytes / 3
    )  # the sample is sharper than usual footage
    with av.open(str(sample_clip)) as container:
        image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    face = FaceFinder(repository / "lipsync_face" / "1", 1).find(image)
    assert face is not None
    assert np.abs(take_crop(image, face.transform).astype(int) - kept.crops[0]).mean() < 2


def test_a_finished_clip_is_not_read_again(
    made: Path, dataset: Path, clips: Path, repository: Path, basis: MouthBasis
) -> None:
    before = part_path(dataset, "a.mkv", ".json").stat().st_mtime_ns
    rows = curate(clips, dataset, repository / "lipsync_face" / "1", basis.rigid)
    assert part_path(dataset, "a.mkv", ".json").stat().st_mtime_ns == before
    earlier = read_manifest(made / FILE)
    assert [(row.segment, row.reason, row.person) for row in rows] == [
        (row.segment, row.reason, row.person) for row in earlier
    ]
    np.testing.assert_allclose([row.lse_c for row in rows], [row.lse_c for row in earlier])


def test_manual_overrides_are_used_and_kept(dataset: Path, clips: Path, repository: Path, basis: MouthBasis) -> None:
    first, again = (row.segment for row in read_manifest(dataset / FILE)[:2])
    mel = Dataset(dataset).mel[:60]
    assert main(["curate", "-o", str(dataset), "--overrule", f"{again}=keep", "--overrule", f"{first}=0.08"]) == 0
    changed = Dataset(dataset)
    assert {segment.clip for segment in changed.segments} >= {"a.mkv", "again.mkv"}
    # The audio is read two frames later: the first frame now has the log-mel of the third.
    np.testing.assert_allclose(changed.mel[:55].astype(np.float32), mel[2:57].astype(np.float32), atol=2e-3)
    assert "overruled: keep" in (dataset / REPORT).read_text()
    rows = curate(clips, dataset, repository / "lipsync_face" / "1", basis.rigid)
    assert [(row.overrule, row.overrule_offset_s) for row in rows[:2]] == [("", 0.08), ("keep", None)]
    np.testing.assert_array_equal(Dataset(dataset).mel[:60], changed.mel[:60])
    write_manifest(overrule(rows, [f"{first}=drop"]), dataset / FILE)
    assert "a.mkv" not in {segment.clip for segment in Dataset(dataset).segments}


def test_the_report_is_complete_and_self_contained(made: Path) -> None:
    page = (made / REPORT).read_text()
    rows = read_manifest(made / FILE)
    assert page.count("<section") == len(rows)
    assert all(row.segment in page for row in rows)
    assert page.count("<svg") == sum(bool(row.curve) for row in rows) > 0
    assert page.count("data:image/jpeg;base64,") == 2 * sum(row.frames > 0 for row in rows)
    assert "http" not in page
    assert "src='data:" in page
    assert not [part for part in page.split("src=")[1:] if not part.startswith("'data:")]


def test_the_report_escapes_names(dataset: Path) -> None:
    rows = [replace(row, reason="<b> & 'c'") for row in read_manifest(dataset / FILE)]
    write_report(rows, dataset)
    page = (dataset / REPORT).read_text()
    assert page.count("<p class=why>&lt;b&gt; &amp; &#39;c&#39;</p>") == len(rows)


def test_outcomes_and_curves() -> None:
    row = Row("a@0", "a", stored=True, keep=True, speaks=True, has_sound=True, curve=(1.4,) * 18 + (1.0,) + (1.4,) * 12)
    assert outcome(row) == "keep"
    assert outcome(replace(row, offset_s=0.12)) == "shifted"
    assert outcome(replace(row, has_sound=False)) == "silent"
    assert outcome(replace(row, overrule="silent")) == "silent"
    assert outcome(replace(row, overrule="drop")) == "dropped"
    assert outcome(replace(row, stored=False, overrule="keep")) == "dropped"
    assert "best +3, corrected +3" in curve_svg(replace(row, offset_s=0.12))
    assert curve_svg(replace(row, curve=())) == ""


def test_scene_cuts_are_detected_and_fades_are_not() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 255, (36, 64, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1) for _ in range(2))
    scenes = Scenes()
    drifting = [np.roll(first, i, 1) for i in range(6)]
    assert [scenes.cut(image) for image in drifting] == [True] + [False] * 5
    assert scenes.cut(second)
    fading = [(second * (1 - k / 10)).astype(np.uint8) for k in range(10)]
    assert not any(scenes.cut(image) for image in fading)


def test_flicker_is_merged_within_a_scene_only() -> None:
    runs = [
        Run(ABSENT, 0, 0, 0.0, 0.4, 10, 1),
        Run(GOOD, 0, 3, 0.44, 0.52, 3, 1),
        Run(ABSENT, 3, 0, 0.56, 1.0, 12, 1),
        Run(ABSENT, 3, 0, 1.04, 2.0, 25, 2),
        Run(GOOD, 3, 60, 2.04, 4.4, 60, 2),
    ]
    joined = _joined(runs)
    assert [(run.verdict, run.stored, run.frames) for run in joined] == [
        (ABSENT, 3, 25),
        (ABSENT, 0, 25),
        (GOOD, 60, 60),
    ]
    assert (joined[0].start_s, joined[0].end_s) == (0.0, 1.0)


def test_a_turned_head_is_measured_in_degrees(basis: MouthBasis) -> None:
    from insync.core.mouth import RIGID

    for yaw, pitch in ((0, 0), (25, 0), (-40, 0), (0, 20), (0, -15)):
        a, b = np.radians([yaw, pitch])
        across = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
        down = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        landmarks = np.zeros((468, 3), np.float32)
        landmarks[list(RIGID)] = basis.rigid @ (across @ down).T * 90 + [300, 200, 0]
        assert pose_degrees(landmarks, basis.rigid) == pytest.approx((yaw, pitch), abs=0.1)


def test_a_covered_mouth_is_detected(made: Path, repository: Path) -> None:
    kept, visible = Dataset(made), Visibility(repository)
    assert visible(kept.crops[0], kept.landmarks[0]) > 0.8
    covered = kept.crops[0].copy()
    covered[130:170, 85:175] = [20, 20, 25]
    assert visible(covered, kept.landmarks[0]) < 0.5


def test_syncnet_trains_and_resumes(dataset: Path, basis: MouthBasis, tmp_path: Path) -> None:
    rows = read_manifest(dataset / FILE)
    with pytest.raises(ValueError, match="0 segments have a mouth that matches its audio; SyncNet needs at least two"):
        train_syncnet(Dataset(dataset), basis, tmp_path, 0.01)
    write_manifest(overrule(rows, [f"{row.segment}=keep" for row in rows if row.stored]), dataset / FILE)
    train_syncnet(Dataset(dataset), basis, tmp_path, 0.02)
    steps = (tmp_path / "syncnet.csv").read_text()
    train_syncnet(Dataset(dataset), basis, tmp_path, 0.04)
    assert (tmp_path / "syncnet.csv").read_text().startswith(steps)
    assert 3e5 < (tmp_path / "syncnet.npz").stat().st_size < 2e6


def test_errors_are_one_line(tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([str(tmp_path / "none"), "-o", str(tmp_path / "out")], "no such folder"),
        ([str(tmp_path), "-o", str(tmp_path / "out")], "no clip in "),
        (["-o", str(tmp_path), "--overrule", "a=keep"], "run `insync curate` first"),
        (["-o", str(made), "--overrule", "nobody@1.00=keep"], "there is no segment"),
        (["-o", str(made), "--overrule", "broken.mp4=keep"], "nothing to keep"),
        (["-o", str(made), "--overrule", "broken.mp4=perhaps"], "'perhaps' must be keep"),
        (["-o", str(made), "--overrule", "broken.mp4=7"], "must be -1.0 to 1.0"),
    ):
        assert main(["curate", *arguments]) == 1
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["curate", "-o", str(tmp_path)])


def test_earlier_data_sets_are_read_too(dataset: Path) -> None:
    now = Dataset(dataset)
    with np.load(dataset / "frames.npz") as rows:
        columns = {name: rows[name] for name in ("time_s", "landmarks", "skull", "mel", "segment")}
    count = len(columns["time_s"])
    (dataset / FILE).unlink()  # they have no manifest, and crops as raw pixels
    np.savez(dataset / "frames.npz", **columns)
    np.resize(now.crops, (count, 256, 256, 3)).tofile(dataset / "crops.u8")
    then = Dataset(dataset, "train")
    assert not then.has_manifest
    assert len(then.time_s) == count == sum(segment.frames for segment in then.segments)
    np.testing.assert_array_equal(then.crops[:60], now.crops[:60])
    assert then.speaks == [segment.has_sound for segment in then.segments]
