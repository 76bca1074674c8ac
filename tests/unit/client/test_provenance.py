"""Marks of a dubbed file as synthetic: manifest, tag, certificate; and that no file is lost because of them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from cryptography import x509
from numpy.typing import NDArray
from tests.support.certificates import authority

from insync.cli.exit_codes import EXIT_ALTERED, EXIT_TAGGED, EXIT_UNMARKED
from insync.cli.main import main
from insync.client import InsyncError, UnreadableMedia
from insync.client.media.audio_reader import AudioFile
from insync.client.media.reader import VideoFile
from insync.client.media.writer import VideoWriter
from insync.client.provenance.certificates import KEY, local_authority, local_identity
from insync.client.provenance.manifest import Mark, State, Verdict, metadata_tag, read_mark
from insync.core.settings import SIGNING_VARIABLE

FRAMES = 6
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where certificate and key will be."""
    folder = tmp_path / "data" / "signing"
    monkeypatch.setenv(SIGNING_VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(FRAMES):
            picture = np.full((64, 96, 3), 20 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def written(out: Path, video: Path, audio: Path, provenance: bool = True) -> VideoWriter:
    clip = VideoFile(video)
    with VideoWriter(out, clip, AudioFile(audio), "lossless", provenance) as writer:
        for _, frame in zip(range(FRAMES), clip.frames(), strict=False):
            writer.write(frame.frame, frame.pts)
    return writer


def content(path: Path) -> tuple[list[Fraction], list[NDArray[np.uint8]], NDArray[Any]]:
    """Return times and planes of the pictures, and the sound."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        planes = [frame.to_ndarray() for frame in frames]
        times = [frame.pts * frame.time_base for frame in frames]
    return times, planes, np.concatenate(list(AudioFile(path).speech()))


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov"])
def test_signing_does_not_change_pictures_or_sound(
    folder: Path, clip: Path, sample_speech: Path, tmp_path: Path, suffix: str
) -> None:
    signed, plain = tmp_path / f"signed{suffix}", tmp_path / f"plain{suffix}"
    assert written(signed, clip, sample_speech).mark is Mark.SIGNED
    assert written(plain, clip, sample_speech, provenance=False).mark is Mark.NONE
    (times, planes, sound), (plain_times, plain_planes, plain_sound) = content(signed), content(plain)
    assert times == plain_times
    np.testing.assert_array_equal(planes, plain_planes)
    np.testing.assert_array_equal(sound, plain_sound)
    assert read_mark(signed) == Verdict(
        State.SIGNED, COMPOSITE, f"InSync {metadata_tag().split('InSync ')[1].split('. ')[0]}", "InSync dub", True
    )
    assert read_mark(plain) == Verdict(State.UNMARKED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", plain.name, signed.name]
    # Players can start before the whole file is loaded, as without a manifest.
    head = signed.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")


def test_any_change_is_detected(folder: Path, clip: Path, sample_speech: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    written(out, clip, sample_speech)
    whole = out.read_bytes()
    for at in (whole.index(b"mdat") + 100, len(whole) - 10, whole.index(b"stsz") + 8, whole.index(b"InSync dub")):
        out.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        verdict = read_mark(out)
        assert verdict.state is State.ALTERED
        assert verdict.reasons
    start = whole.index(b"uuid") - 4
    cut = int.from_bytes(whole[start : start + 4], "big")
    out.write_bytes(whole[:start] + cut.to_bytes(4, "big") + b"free" + whole[start + 8 :])
    assert read_mark(out).state is State.TAGGED  # removing the manifest leaves the tag


def test_a_format_without_manifests(folder: Path, clip: Path, sample_speech: Path, tmp_path: Path) -> None:
    writer = written(tmp_path / "out.mkv", clip, sample_speech)
    assert (writer.mark, "mkv file cannot hold" in writer.unsigned) == (Mark.TAGGED, True)
    assert read_mark(tmp_path / "out.mkv") == Verdict(State.TAGGED, COMPOSITE)
    assert not folder.exists()  # nothing was signed


def test_a_source_that_has_a_manifest(folder: Path, clip: Path, sample_speech: Path, tmp_path: Path) -> None:
    import c2pa

    written(tmp_path / "one.mp4", clip, sample_speech)
    written(tmp_path / "two.mp4", tmp_path / "one.mp4", sample_speech)
    assert read_mark(tmp_path / "two.mp4").state is State.SIGNED
    manifest = c2pa.Reader(str(tmp_path / "two.mp4")).get_active_manifest()
    assert [ingredient["relationship"] for ingredient in manifest["ingredients"]] == ["parentOf"]
    actions = next(a for a in manifest["assertions"] if a["label"].startswith("c2pa.actions"))["data"]["actions"]
    assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.edited"]


def test_a_file_that_cannot_be_signed_is_kept(
    folder: Path, clip: Path, sample_speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.mkdir()
    folder.touch()  # in the way
    writer = written(tmp_path / "out.mp4", clip, sample_speech)
    assert writer.mark is Mark.TAGGED
    assert writer.unsigned.startswith("signing failed: ")
    assert len(content(tmp_path / "out.mp4")[0]) == FRAMES
    assert read_mark(tmp_path / "out.mp4").state is State.TAGGED

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("insync.client.provenance.manifest._sign", full)
    assert "No space left" in written(tmp_path / "out.mov", clip, sample_speech).unsigned
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.mov", "out.mp4"]


def test_verify_on_the_command_line(
    folder: Path, clip: Path, sample_speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signed, tagged = tmp_path / "out.mp4", tmp_path / "out.mkv"
    for out in (signed, tagged):
        written(out, clip, sample_speech)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for path, code, message in (
        (signed, 0, "signed by InSync dub, trusted on this machine"),
        (tagged, EXIT_TAGGED, "synthetic according to its metadata tag"),
        (clip, EXIT_UNMARKED, "not marked as synthetic"),
    ):
        assert main(["verify", str(path)]) == code
        assert message in capsys.readouterr().out
    for path in (text, tmp_path / "none.mp4"):
        assert main(["verify", str(path)]) == 1
        assert "cannot be read as a media file" in capsys.readouterr().err
    own = local_authority(folder)
    assert own is not None
    (tmp_path / "theirs.pem").write_bytes(own)
    folder.rename(tmp_path / "elsewhere")  # as on another machine
    assert main(["verify", str(signed)]) == 0
    assert "signed by InSync dub, not trusted on this machine" in capsys.readouterr().out
    assert main(["verify", str(signed), "--ca", str(tmp_path / "theirs.pem")]) == 0
    assert "signed by InSync dub, trusted on this machine" in capsys.readouterr().out
    with signed.open("r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"!")
    assert main(["verify", str(signed)]) == EXIT_ALTERED
    assert main(["verify", str(signed), "--ca", str(tmp_path / "none.pem")]) == 1
    assert not folder.exists()  # reading creates no file


def test_only_the_owner_can_read_the_key(folder: Path) -> None:
    before = os.umask(0)
    try:
        one = local_identity(folder)
    finally:
        os.umask(before)
    assert (folder / KEY).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert local_identity(folder) == one
    assert [path.name for path in folder.parent.iterdir()] == ["signing"]
    names = b"".join(c.subject.public_bytes() for c in x509.load_pem_x509_certificates(one.certificates))
    for private in (os.uname().nodename, Path.home().name):
        assert private.encode() not in names


def test_invalid_certificates(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = local_identity(folder)
    monkeypatch.setattr("insync.client.provenance.certificates.RENEW_DAYS", 10**4)
    monkeypatch.setattr("insync.client.provenance.certificates.VALID_DAYS", 2 * 10**4)
    assert local_identity(folder).certificates != first.certificates  # those that we created are replaced
    monkeypatch.undo()
    short = authority(tmp_path, "ca").sign("given")
    (folder / "certificates.pem").write_bytes(short.cert.read_bytes())
    with pytest.raises(InsyncError, match=r"expires on [\d-]+: renew it"):
        local_identity(folder)  # those of others are not replaced
    (folder / KEY).write_text("no key")
    with pytest.raises(InsyncError, match=r"holds no certificates\.pem and key\.pem"):
        local_identity(folder)


def test_concurrent_jobs_create_one_identity(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(local_identity, [folder] * 8))
    assert made == {local_identity(folder)}
    assert [path.name for path in folder.parent.iterdir()] == ["signing"]


def test_noise_is_not_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "noise.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(UnreadableMedia):
        read_mark(path)
