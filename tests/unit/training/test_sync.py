"""Tests of SyncNet's metrics with known embeddings, its loss, and the thresholds of curation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from insync.ensemble.models.log_mel import LogMel
from insync.network.syncnet import EMBEDDING, FRAME_S, SyncNet
from insync.training.curation.audio_quality import music_share, silence_share, voice_share
from insync.training.curation.identities import Looks, cluster_people, copies, split_of
from insync.training.curation.quality import Gates, clip_metrics, picture_faults, sound_verdict
from insync.training.data.audio import read_speech, windows
from insync.training.data.manifest import Row, read_manifest, write_manifest
from insync.training.metrics.sync import (
    MAX_OFFSET,
    SyncJudge,
    SyncLoss,
    curve_of,
    frame_grid,
    load_weights,
    metrics_of_curve,
    mouths_of,
    save_weights,
)

Floats = npt.NDArray[np.float32]


def bell(best: int, depth: float = 0.3) -> tuple[float, ...]:
    return tuple(float(1.3 - depth * (offset == best)) for offset in range(-MAX_OFFSET, MAX_OFFSET + 1))


def speaking(**changes: object) -> Row:
    row = Row("a@0", "a", frames=100, fps=25, stored=True, keep=True, has_sound=True, silence=0.1, curve=bell(0))
    return replace(row, **changes)  # type: ignore[arg-type]


def unit(seed: int, count: int) -> Floats:
    vectors = np.random.default_rng(seed).normal(size=(count, EMBEDDING)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_curve_against_the_definition() -> None:
    audio = unit(0, 70)
    seen = audio[MAX_OFFSET + 4 : MAX_OFFSET + 4 + 36]  # the audio trails by four frames
    sounding = np.ones(70, bool)[: 36 + 2 * MAX_OFFSET]
    curve, frames = curve_of(seen, audio[: 36 + 2 * MAX_OFFSET], sounding)
    assert frames == 36
    for offset in (-15, -1, 0, 7):
        pairs = [np.linalg.norm(seen[t] - audio[t + MAX_OFFSET + offset]) for t in range(36)]
        assert curve[offset + MAX_OFFSET] == pytest.approx(np.mean(pairs), rel=1e-5)
    found = metrics_of_curve(curve, frames)
    assert found.offset == 4
    assert found.lse_d == pytest.approx(0, abs=1e-6)
    assert found.lse_c == pytest.approx(float(np.median(curve)), rel=1e-5)
    silent, _ = curve_of(seen, audio[: 36 + 2 * MAX_OFFSET], np.zeros_like(sounding))
    assert np.all(silent == np.float32(2**0.5))  # without audio, all distances are those of random pairs


@pytest.mark.parametrize("fps", [15.0, 25.0, 29.97, 60.0])
def test_any_frame_rate_becomes_25(fps: float) -> None:
    times = (np.arange(int(2 * fps)) / fps + 0.5).astype(np.float32)
    grid, nearest = frame_grid(times)
    np.testing.assert_allclose(np.diff(grid), FRAME_S, atol=1e-5)
    for k in (0, len(grid) // 2, len(grid) - 1):
        wanted = grid[k] + FRAME_S * np.arange(-2, 3)
        gaps = np.abs(times[nearest[k]] - wanted)
        assert gaps.max() <= 0.5 / fps + 1e-5
        np.testing.assert_allclose(gaps, [np.abs(times - w).min() for w in wanted], atol=1e-6)


class KnownEmbeddings(SyncJudge):
    """A judge whose embeddings depend only on the picture's grey value and on the audio's loudness, so that the offset is known."""

    def __init__(self) -> None:
        self._mel = LogMel()
        self._codes = unit(3, 256)

    def seen(self, mouths: npt.NDArray[np.uint8]) -> Floats:
        return np.asarray(self._codes[mouths[:, 2, 0, 0]], np.float32)

    def embed_audio(self, mels: Floats) -> Floats:
        return np.asarray(self._codes[self.number(mels)], np.float32)

    def number(self, mels: Floats) -> npt.NDArray[np.int64]:
        return np.asarray(
            mels[:, :, 28].mean(1).argsort().argsort(), np.int64
        )  # 280 ms into the window: the frame's own time


def test_known_offset_of_a_clip() -> None:
    # The noise gets louder all the time: the rank of a window's loudness is its position in time.
    rng = np.random.default_rng(0)
    audio = (rng.normal(size=80_000) * np.linspace(0.001, 0.3, 80_000)).astype(np.float32)
    judge = KnownEmbeddings()
    times = np.arange(15 + 2, 100).astype(np.float32) * np.float32(FRAME_S)
    reach = np.arange(-15, len(times) - 4 + 15) * FRAME_S + times[2]
    ranks = judge.number(judge._mel(windows(audio, reach.astype(np.float32))))
    for offset in (-6, 0, 5):
        mouths = np.zeros((len(times), 56, 56), np.uint8)
        mouths[2:-2] = ranks[15 + offset : 15 + offset + len(times) - 4, None, None]
        found = judge.metrics_of_mouths(mouths, times, audio)
        assert found is not None
        assert found.offset == offset
    assert judge.metrics_of_mouths(mouths[:4], times[:4], audio) is None
    assert judge.metrics_of_mouths(mouths[:18], times[:18], audio) is None  # too short to measure
    assert judge.metrics_of_mouths(mouths, times + 90, audio) is None  # after the end of the audio


def test_shipped_weights_load_and_survive_storing(tmp_path: Path) -> None:
    from insync.training.metrics.sync import WEIGHTS

    model = load_weights(WEIGHTS)
    save_weights(model, tmp_path / "again.npz")
    again = load_weights(tmp_path / "again.npz")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert WEIGHTS.stat().st_size < 2_000_000
    with pytest.raises(FileNotFoundError, match="no SyncNet weights"):
        load_weights(tmp_path / "none.npz")


def test_skin_and_light_do_not_matter() -> None:
    torch.manual_seed(0)
    model = SyncNet().eval()
    mouths = torch.rand(3, 5, 56, 56)
    with torch.no_grad():
        np.testing.assert_allclose(model.seen(mouths), model.seen(0.6 * mouths + 0.2), atol=0.05)


def test_loss_has_gradients_at_the_picture_and_none_at_the_weights() -> None:
    loss = SyncLoss()
    loss.train()
    assert not any(module.training for module in loss.modules())
    before = {name: value.clone() for name, value in loss.model.state_dict().items()}
    for frames in (5, 1):
        mouths = torch.rand(2, frames, 3, 112, 112, requires_grad=True)
        value = loss(mouths, torch.randn(2, 80, 40))
        value.backward()
        assert 0 <= float(value.detach()) <= 2
        assert mouths.grad is not None
        assert float(mouths.grad.abs().sum()) > 0
    assert all(torch.equal(before[name], value) for name, value in loss.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_mouths_for_curation_and_for_the_loss_are_the_same() -> None:
    crops = np.random.default_rng(0).integers(0, 255, (2, 256, 256, 3)).astype(np.uint8)
    mouths = mouths_of(crops)
    assert mouths.shape == (2, 56, 56)
    wide = mouths_of(crops, 12)
    np.testing.assert_array_equal(wide[:, 6:-6, 6:-6], mouths)


def test_audio_is_used_shifted_or_not_used() -> None:
    gates = Gates()

    def verdict(row: Row, *others: Row) -> Row:
        return sound_verdict(row, clip_metrics([row, *others]), gates)

    assert verdict(speaking()).speaks
    late = verdict(speaking(curve=bell(3)))
    assert (late.speaks, late.offset_s) == (True, 0.12)
    assert "trails by 3 frames" in late.reason
    assert verdict(speaking(curve=bell(-2))).offset_s == -0.08
    # A short segment uses the offset of its clip, ...
    short = speaking(frames=40, curve=bell(-9, 0.35))
    corrected = verdict(
        replace(short, curve=tuple(np.minimum(short.curve, bell(2, 0.2)))), speaking(frames=900, curve=bell(2))
    )
    assert (corrected.speaks, corrected.offset_s) == (True, 0.08)
    assert "the offset of its clip" in corrected.reason
    # ... a long one with a clear curve uses its own.
    assert verdict(speaking(curve=bell(1)), speaking(frames=900, curve=bell(4))).offset_s == 0.04
    for row, words in (
        (speaking(curve=bell(0, 0.01)), "mouth and sound do not match"),
        (speaking(frames=40, curve=bell(0, 0.07)), "offset uncertain in the segment and in its clip"),
        (speaking(curve=bell(11)), "+11 frames, at most 8"),
        (speaking(silence=0.95), "silent for 95%"),
        (speaking(voice=0.05), "a voice for 5% of the time only"),
        (speaking(music=0.9, curve=bell(0, 0.07)), "music for 90%"),
        (speaking(has_sound=False), "no sound"),
        (speaking(curve=()), "too short"),
    ):
        silenced = verdict(row)
        assert not silenced.speaks
        assert silenced.keep
        assert words in silenced.reason
    assert verdict(speaking(music=0.9)).speaks  # a high confidence means that it is speech after all
    assert not verdict(speaking(keep=False)).speaks


def test_picture_gates() -> None:
    good = Row("a@0", "a", frames=60, stored=True, sharpness=30, visible=0.95)
    assert picture_faults(good, "", Gates()) == []
    bad = replace(good, frames=7, sharpness=1, visible=0.2, duplicate_of="b@0")
    assert [fault.split(":")[0].split(" as ")[0] for fault in picture_faults(bad, "face turned away", Gates())] == [
        "face turned away", "short", "blurred", "mouth covered", "shows the same",
    ]  # fmt: skip


def test_manifest_round_trip_and_invalid_manifests(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "manifest.parquet"
    rows = [speaking(lse_c=0.2, lse_d=1.0, overrule="silent", overrule_offset_s=-0.04), Row("b", "b", reason="broken")]
    write_manifest(rows, path)
    again = read_manifest(path)
    np.testing.assert_allclose(again[0].curve, rows[0].curve, rtol=1e-6)
    assert replace(again[0], curve=()) == replace(rows[0], curve=())
    assert (again[1].reason, np.isnan(again[1].lse_c), again[1].overrule_offset_s) == ("broken", True, None)
    table = pq.read_table(path)
    words = pa.array(["yes", ""])
    pq.write_table(table.set_column(table.column_names.index("overrule"), "overrule", words), path)
    with pytest.raises(ValueError, match=r"a@0: overrule is 'yes', must be one of \(empty\), keep, silent, drop"):
        read_manifest(path)
    pq.write_table(table.drop_columns(["keep"]), path)
    with pytest.raises(ValueError, match="columns keep are missing"):
        read_manifest(path)
    with pytest.raises(FileNotFoundError, match="run `insync curate` first"):
        read_manifest(tmp_path / "none.parquet")


def test_silence_and_music_are_distinguished_from_speech() -> None:
    rng, time_s = np.random.default_rng(0), np.arange(64_000) / 16_000
    noise = rng.normal(size=64_000)
    syllables = np.clip(np.sin(2 * np.pi * 3 * time_s), 0, 1) ** 2  # three a second, with pauses
    speech = (0.2 * noise * syllables).astype(np.float32)
    chord = (0.05 * sum(np.sin(2 * np.pi * f * time_s) for f in range(220, 2_000, 220))).astype(np.float32)
    assert silence_share(np.zeros(16_000, np.float32)) == silence_share(np.zeros(0, np.float32)) == 1
    assert silence_share(speech) < 0.6
    half = speech.copy()
    half[32_000:] = 0
    assert silence_share(half) > 0.5
    assert music_share(speech) == 0
    assert music_share(chord) == 1
    assert music_share(speech + chord) > 0.7
    assert music_share((0.1 * noise).astype(np.float32)) == 0  # noise is not music
    assert music_share(np.zeros(64_000, np.float32)) == music_share(np.zeros(9, np.float32)) == 0


def test_a_voice_is_heard_in_speech_and_not_in_music_noise_or_silence(root: Path) -> None:
    speech = read_speech(root / "samples" / "speech.wav")
    assert speech is not None
    assert voice_share(speech) > 0.7
    rng, time_s = np.random.default_rng(0), np.arange(64_000) / 16_000
    chord = (0.05 * sum(np.sin(2 * np.pi * f * time_s) for f in range(220, 2_000, 220))).astype(np.float32)
    for audio in (chord, (0.1 * rng.normal(size=64_000)).astype(np.float32), np.zeros(16_000, np.float32)):
        assert voice_share(audio) < 0.1
    assert voice_share(np.zeros(0, np.float32)) == 0


def person(seed: int, name: str, frames: int = 40, start: int = 0, moving: bool = True) -> Looks:
    rng = np.random.default_rng(seed)
    shape, colours = rng.normal(0, 0.1, (27, 2)), rng.uniform(40, 200, (6, 12, 3))
    film = np.random.default_rng(seed + 100)
    hashes, apertures = film.random((200, 256)) < 0.5, film.random(200) * moving
    part = slice(start, start + frames)
    noise = np.random.default_rng(start).normal(0, 0.002, shape.shape)
    return Looks(
        name, (shape + noise).astype(np.float32), colours.astype(np.float32), hashes[part],
        apertures[part].astype(np.float32),
    )  # fmt: skip


def test_people_and_copies() -> None:
    takes = [person(0, "a"), person(1, "b"), person(0, "c", start=60), person(0, "d", frames=30, start=5)]
    assert cluster_people(takes) == ["p001", "p002", "p001", "p001"]
    assert cluster_people([]) == []
    assert cluster_people(takes[:1]) == ["p001"]
    assert copies(takes) == {3: 0}  # part of the first; the third is the same person at another time
    assert copies([person(0, "a"), person(1, "b")]) == {}


def test_splits_stay_when_footage_is_added() -> None:
    names = [f"clip{i}.mp4" for i in range(400)]
    held = [name for name in names if split_of(name, 0.1) == "held_out"]
    assert 15 < len(held) < 80
    assert held == [name for name in names if split_of(name, 0.1) == "held_out"]
    assert all(split_of(name, 0.0) == "train" for name in names)
