"""The programs of `examples/`, run as their README says against a real server."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from google.protobuf import descriptor_pb2  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from insync.client import Client, SyncedFrame
from insync.core.spec import SAMPLE_RATE_HZ
from insync.ensemble.server.embedded import EmbeddedServer

pytestmark = pytest.mark.triton

Image = NDArray[np.uint8]
UNKNOWN = "0" * 32  # no twin has this id
RUN_S = 120
SHORT_S = 0.6  # of speech


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=RUN_S
    )


def fails(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that a program has failed, with an error of one line that contains all `words`."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


def mouth(face: NDArray[np.float32]) -> tuple[slice, slice]:
    """Return rows and columns of the mouth in a picture, from FACE."""
    x0, y0, x1, y1 = (int(value) for value in face)
    return slice((y0 + 2 * y1) // 3, y1), slice((3 * x0 + x1) // 4, (x0 + 3 * x1) // 4)


def difference(one: Image, other: Image) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def read(path: Path) -> Image:
    decoded = cv2.imread(str(path))
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


@pytest.fixture(scope="module")
def speech(sample_speech: Path) -> NDArray[np.int16]:
    """Return some words of the sample, at 16 kHz."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
    with av.open(str(sample_speech)) as container:
        decoded = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    first = round(1.8 * SAMPLE_RATE_HZ)  # the mouth stays open there: every frame differs from the source
    return np.asarray(np.concatenate(decoded)[first : first + int(SHORT_S * SAMPLE_RATE_HZ)], np.int16)


def write_wav(path: Path, samples: NDArray[np.int16], rate_hz: int = SAMPLE_RATE_HZ) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


# A live camera.


def test_a_live_camera_is_synced(
    server: EmbeddedServer, root: Path, sample_clip: Path, speech: NDArray[np.int16], tmp_path: Path
) -> None:
    words = write_wav(tmp_path / "words.wav", np.tile(speech, 4))
    out = tmp_path / "live"
    program = root / "examples" / "live_camera.py"
    # The number of frames in time depends on the machine: this test is about the frames shown.
    options = ("--camera", sample_clip, "--server", server.grpc_url, "--out", out, "--deadline", "10")
    done = run(sys.executable, program, words, *options)
    assert done.returncode == 0, done.stderr
    match = re.fullmatch(r"(\d+) frames shown in 2\.4 s; the camera has 25 frames/s\n", done.stdout)
    assert match
    shown = sorted(out.iterdir())
    assert len(shown) == int(match[1])
    assert 10 <= len(shown) <= 4 * SHORT_S * 25
    changed = []
    with av.open(str(sample_clip)) as container:
        sources = [
            frame.to_ndarray(format="rgb24") for _, frame in zip(range(70), container.decode(video=0), strict=False)
        ]
    for path in shown:
        source, synced = sources[round(int(path.stem) / 40)], read(path)
        assert synced.shape == source.shape
        different = np.abs(synced.astype(int) - source).max(axis=2) > 60  # far more than a JPEG does
        assert not different[: len(different) // 3].any()  # the eyes
        changed.append(different.any())
    assert any(changed)


def test_errors_of_the_live_camera(server: EmbeddedServer, root: Path, sample_clip: Path, tmp_path: Path) -> None:
    program = root / "examples" / "live_camera.py"
    silent = run(sys.executable, program, sample_clip, "--server", server.grpc_url, "--out", tmp_path)
    fails(silent, "sample.mp4 has no sound")
    absent = run(sys.executable, program, root / "samples" / "speech.wav", "--camera", "none.mp4", "--out", tmp_path)
    fails(absent, "camera 'none.mp4' cannot be opened; it must be")


# Register once.


def test_one_registration_serves_many_sentences(
    server: EmbeddedServer, root: Path, sample_clip: Path, speech: NDArray[np.int16], tmp_path: Path
) -> None:
    lengths_s = {"short": 0.4, "long": 0.6}
    files = [write_wav(tmp_path / f"{name}.wav", speech[: int(s * SAMPLE_RATE_HZ)]) for name, s in lengths_s.items()]
    kept, out = tmp_path / "twin.txt", tmp_path / "sentences"

    def speak() -> str:
        options = ("--out", out, "--twin-file", kept, "--server", server.grpc_url)
        done = run(sys.executable, root / "examples" / "register_once.py", sample_clip, *files, *options)
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in out.iterdir()) == ["long.mp4", "short.mp4"]
        return done.stdout

    assert "registered and stored" in speak()
    twin = kept.read_text().strip()
    assert f"twin {twin}, from" in speak()
    assert kept.read_text().strip() == twin

    for name, length_s in lengths_s.items():
        with av.open(str(out / f"{name}.mp4")) as container:
            assert len(list(container.decode(video=0))) == length_s * 25
            container.seek(0)
            samples = sum(frame.samples for frame in container.decode(audio=0))
            assert samples / SAMPLE_RATE_HZ == pytest.approx(length_s, abs=0.15)  # AAC has whole blocks of 1,024
    assert run(sys.executable, "-m", "insync.cli", "verify", out / "long.mp4").returncode == 3  # tagged, not signed

    kept.write_text(UNKNOWN)
    assert f"has no twin {UNKNOWN}" in speak()
    assert kept.read_text().strip() not in (twin, UNKNOWN)


# Node.


@pytest.fixture(scope="module")
def node(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install and build the Node example in a folder of its own."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm on PATH: install Node 20 or later")
    folder = tmp_path_factory.mktemp("node") / "example"
    shutil.copytree(root / "examples" / "node", folder, ignore=shutil.ignore_patterns("node_modules", "generated"))
    for command in (("ci", "--no-audit", "--no-fund"), ("run", "build")):
        done = run(npm, *command, cwd=folder)
        assert done.returncode == 0, f"npm {' '.join(command)}: {done.stdout}{done.stderr}"
    return folder


@pytest.fixture(scope="module")
def jpegs(images: list[Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("frames")
    for index, image in enumerate(images[:12]):
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{index:03d}.jpg"), bgr, (cv2.IMWRITE_JPEG_QUALITY, 95))
    return sorted(folder.iterdir())


def test_node_syncs_frames_as_the_python_client_does(
    server: EmbeddedServer, node: Path, jpegs: list[Path], speech: NDArray[np.int16], tmp_path: Path
) -> None:
    words = write_wav(tmp_path / "words.wav", speech)
    out = tmp_path / "synced"
    done = run(
        "node", node / "main.js", jpegs[0].parent, words, "--out", out, "--server", server.grpc_url, "--in-flight", "1"
    )
    assert done.returncode == 0, done.stderr
    match = re.search(r"^twin ([0-9a-f]{32})$", done.stdout, re.MULTILINE)
    assert match

    # One at a time, both send the face of the frame before as hint; otherwise it depends on the order of responses.
    async def by_python() -> list[SyncedFrame]:
        frames = [path.read_bytes() for path in jpegs]
        async with Client(server.grpc_url) as client:
            stream = client.stream(frames, speech, twin=match[1], in_flight=1, composite="server")
            return [synced async for synced in stream]

    written = sorted(out.iterdir())
    assert [path.name for path in written] == [f"{index:05d}.jpg" for index in range(len(jpegs))]
    for source, path, expected in zip(jpegs, written, asyncio.run(by_python()), strict=True):
        before, after = read(source), read(path)
        assert after.shape == before.shape
        assert expected.changed
        where = mouth(expected.face)
        to_source, to_python = difference(after[where], before[where]), difference(after[where], expected.image[where])
        # A mouth that happens to be as open as the filmed one differs little from it, but still far more than both clients may.
        assert to_source > 2, path.name
        assert to_python < 0.5, path.name
        assert difference(after, expected.image) < 0.5


def test_node_syncs_a_photo_with_a_saved_twin(
    server: EmbeddedServer,
    node: Path,
    jpegs: list[Path],
    twin: NDArray[np.object_],
    speech: NDArray[np.int16],
    tmp_path: Path,
) -> None:
    words = write_wav(tmp_path / "words.wav", speech[: SAMPLE_RATE_HZ // 5])
    identifier = twin[0].decode()
    options = ("--out", tmp_path / "out", "--server", server.grpc_url, "--twin", identifier, "--fps", "30")
    done = run("node", node / "main.js", jpegs[0], words, *options)
    assert done.returncode == 0, done.stderr
    assert f"twin {identifier}" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_errors_of_the_node_client(
    server: EmbeddedServer, node: Path, jpegs: list[Path], speech: NDArray[np.int16], tmp_path: Path
) -> None:
    words = write_wav(tmp_path / "words.wav", speech)
    fast = write_wav(tmp_path / "fast.wav", speech, 48_000)
    out = tmp_path / "out"
    black = tmp_path / "black.jpg"
    cv2.imwrite(str(black), np.zeros((240, 320, 3), np.uint8))

    def main(*arguments: str | Path, url: str = server.grpc_url) -> subprocess.CompletedProcess[str]:
        return run("node", node / "main.js", *arguments, "--out", out, "--server", url)

    fails(main(jpegs[0].parent, words, "--twin", UNKNOWN), "TWIN", UNKNOWN)
    fails(main(black, words), "no face", "InvalidArgument")
    fails(main(jpegs[0], fast), "48000 Hz", "it must be a WAV file of 16,000 Hz")
    fails(main(jpegs[0], jpegs[0]), "not a WAV file", "it must be a WAV file of 16,000 Hz")
    fails(main(jpegs[0], words, url="127.0.0.1:1"), "ECONNREFUSED", "Unavailable")
    assert not list(out.iterdir())


def test_the_protocol_of_node_equals_tritons(node: Path) -> None:
    """Compare each message, field and method of our .proto with Triton's, by name, number and type."""
    built = run("npm", "exec", "--", "buf", "build", "open_inference_grpc.proto", "-o", "protocol.binpb", cwd=node)
    assert built.returncode == 0, built.stderr
    ours = descriptor_pb2.FileDescriptorSet.FromString((node / "protocol.binpb").read_bytes()).file[0]
    theirs = descriptor_pb2.FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    assert ours.package == theirs.package

    def fields(file: descriptor_pb2.FileDescriptorProto) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}

        def walk(prefix: str, message: descriptor_pb2.DescriptorProto) -> None:
            for field in message.field:
                key = f"{prefix}{message.name}.{field.name}"
                found[key] = (field.number, field.type, field.label, field.type_name, field.HasField("oneof_index"))
            for inner in message.nested_type:
                walk(f"{prefix}{message.name}.", inner)

        for message in file.message_type:
            walk("", message)
        return found

    def methods(file: descriptor_pb2.FileDescriptorProto) -> dict[str, tuple[object, ...]]:
        (service,) = (service for service in file.service if service.name == "GRPCInferenceService")
        return {
            method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            for method in service.method
        }

    assert len(fields(ours)) > 15
    assert fields(ours).items() <= fields(theirs).items()
    assert set(methods(ours)) == {"ServerReady", "ModelReady", "ModelInfer", "ModelStreamInfer"}
    assert methods(ours).items() <= methods(theirs).items()


def test_the_lockfile_names_no_registry(root: Path) -> None:
    lockfile = (root / "examples" / "node" / "package-lock.json").read_text()
    assert '"integrity"' in lockfile
    assert "://" not in lockfile
