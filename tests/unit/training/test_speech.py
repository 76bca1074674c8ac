"""The speech stage: sequences against windows, what it learns from, the teacher, and a short run that resumes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from insync.core.mouth import MouthBasis
from insync.core.spec import MEL_FRAMES, MOUTH, SAMPLE_RATE_HZ, SPEECH
from insync.ensemble.models.log_mel import LogMel
from insync.network.audio_projection import AudioProjection
from insync.training.data.audio import read_speech, windows
from insync.training.data.sequences import SILENCE, UNHEARD, Spoken, read_recordings
from insync.training.data.teacher import STEP_SAMPLES, Teacher
from insync.training.metrics.speech_judge import FeaturesToMouth, SpeechJudge, save_judge
from insync.training.trainers.losses import code_loss
from insync.training.trainers.run import Budget, load_checkpoint
from insync.training.trainers.speech import (
    LENGTH,
    Noise,
    SpeechOptions,
    SpeechToMouth,
    augment,
    offset_curve,
    predict,
    train_speech,
)
from insync.training.trainers.speech_targets import Draw, load_targets, save_targets

Floats = npt.NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def basis() -> MouthBasis:
    return MouthBasis.load(ROOT / "model_repository" / "lipsync_twin" / "1" / "mouth_basis.npz")


@pytest.fixture(scope="module")
def speech() -> Floats:
    audio = read_speech(ROOT / "samples" / "speech.wav")
    assert audio is not None
    return audio


def _spoken(name: str, steps: int, filmed: bool, seed: int = 0) -> Spoken:
    rng = np.random.default_rng(seed)
    mel = rng.uniform(-1, 0.5, (80, 2 * steps + 30)).astype(np.float16)
    codes, read = rng.normal(size=(2, steps, MOUTH)).astype(np.float32)
    return Spoken(name, mel, 3, codes, read if filmed else codes, UNHEARD, filmed)


@torch.no_grad()
def test_a_sequence_gives_what_its_windows_give() -> None:
    torch.manual_seed(0)
    projection = AudioProjection().eval()
    mel = torch.rand(2, 80, MEL_FRAMES + 2 * 6)
    whole = projection.sequence(mel)
    assert whole.shape == (2, 7, SPEECH)
    for k in range(7):
        torch.testing.assert_close(projection(mel[..., 2 * k : 2 * k + MEL_FRAMES]), whole[:, k], atol=1e-5, rtol=1e-4)


def test_log_mel_of_a_recording_holds_those_of_its_windows(speech: Floats) -> None:
    (whole,) = LogMel.of_recordings([speech])
    times = np.array([0.4, 2.0, 5.2], np.float32)
    inner = slice(2, MEL_FRAMES - 1)  # the others reach over the window's ends
    for time_s, window in zip(times, LogMel()(windows(speech, times)), strict=True):
        first = round(float(time_s) * 100) - 28
        np.testing.assert_allclose(window[:, inner], whole[:, first : first + MEL_FRAMES][:, inner], atol=1e-3)


def test_a_window_before_the_start_and_after_the_end_is_silent() -> None:
    one = _spoken("a", 50, True)
    assert (one.window(0, MEL_FRAMES)[:, : 28 - 6] == SILENCE).all()  # its codes begin at 60 ms
    np.testing.assert_array_equal(one.window(0, MEL_FRAMES)[:, 22:], one.mel[:, :18].astype(np.float32))
    assert (one.window(200, MEL_FRAMES) == SILENCE).all()


def test_footage_is_drawn_as_often_as_other_speech_however_much_there_is() -> None:
    draw = Draw([_spoken("film", 80, True), *(_spoken(f"{k}", 900, False) for k in range(20))], seed=0)
    parts = draw(400, 75)
    assert 150 < sum(one.filmed for one, _, _ in parts) < 250
    assert all(start + count <= len(one.codes) for one, start, count in parts)
    with pytest.raises(ValueError, match="no segment has a mouth that matches its audio"):
        Draw([], seed=0)


def test_targets_survive_being_written(tmp_path: Path) -> None:
    sequences = [_spoken("a", 50, True), _spoken("b", 90, False, 1)]
    noise = [np.full((80, 120), -0.5, np.float16)]
    save_targets(sequences, noise, tmp_path / "targets.npz")
    found, quiet = load_targets(tmp_path / "targets.npz")
    for a, b in zip(sequences, found, strict=True):
        assert (a.name, a.first, a.filmed) == (b.name, b.first, b.filmed)
        for name in ("mel", "codes", "read"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(noise[0], quiet[0])


def test_noise_is_mixed_below_the_speech_and_alone_has_no_voice() -> None:
    torch.manual_seed(0)
    recording = np.random.default_rng(0).uniform(-0.2, 0.2, (80, 400)).astype(np.float16)
    speech = torch.full((8, 80, LENGTH), 0.3)
    mixed = Noise([recording], seed=0).mix(speech.clone(), share=1.0)
    assert bool((mixed > speech).any())
    power = torch.exp(9.8 * mixed).mean((1, 2)) / np.exp(9.8 * 0.3)
    assert float(power.max()) < 1 + 10**0.3 + 0.05  # at most 3 dB above the speech
    assert torch.equal(Noise([], seed=0).mix(speech.clone(), share=1.0), speech)
    alone = Noise([recording], seed=1).alone(20, LENGTH)
    assert alone.shape == (20, 80, LENGTH)
    assert float(alone.min()) >= SILENCE
    assert any(bool((one == SILENCE).all()) for one in alone)


def test_augmented_silence_stays_in_range() -> None:
    mel = augment(torch.full((64, 80, 40), SILENCE))
    assert float(mel.min()) >= SILENCE
    assert torch.isfinite(mel).all()


def test_offset_curve_finds_a_known_shift() -> None:
    rng = np.random.default_rng(0)
    real = np.convolve(rng.normal(size=200), np.ones(5) / 5, "same").astype(np.float32)
    for shift in (-4, 0, 3):
        predicted = np.roll(real, shift) + rng.normal(0, 0.02, 200).astype(np.float32)
        assert int(offset_curve(predicted, real).argmax()) - 6 == shift
    assert offset_curve(np.ones(50, np.float32), real[:50]).max() == 0


def test_too_little_movement_has_a_higher_loss(basis: MouthBasis) -> None:
    real = torch.randn(256, MOUTH)
    weights, aperture = torch.from_numpy(basis.deviation), torch.from_numpy(basis.aperture_row)
    exact, small, shuffled = (float(code_loss(p, real, weights, aperture)) for p in (real, 0.3 * real, real.flip(0)))
    assert exact < 5e-3 < small < shuffled


def test_the_teacher_hears_joined_recordings_as_it_hears_one(speech: Floats) -> None:
    teacher = Teacher(threads=1)
    (alone,) = teacher([speech])
    first, second = teacher([speech, speech[: 3 * SAMPLE_RATE_HZ]])
    assert alone.shape == first.shape == (-(-len(speech) // STEP_SAMPLES) + 1, teacher.width)
    assert len(second) == 151
    a, b = alone[:-50].astype(np.float32), first[:-50].astype(np.float32)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95


def test_recordings_without_audio_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("no audio")
    with pytest.raises(FileNotFoundError, match=r"no file in .* has audio"):
        read_recordings(tmp_path)
    (tmp_path / "voice.wav").write_bytes((ROOT / "samples" / "speech.wav").read_bytes())
    assert list(read_recordings(tmp_path)) == ["voice.wav"]
    (tmp_path / "more").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "more", target_is_directory=True)
    (tmp_path / "voice.wav").rename(tmp_path / "more" / "voice.wav")
    assert list(read_recordings(tmp_path)) == ["link/voice.wav", "more/voice.wav"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_recordings(tmp_path / "nowhere")


def test_a_judge_reads_what_was_saved_and_answers_at_any_time(
    basis: MouthBasis, speech: Floats, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_judge(FeaturesToMouth(512), tmp_path / "judge.npz")
    judge = SpeechJudge(basis.aperture_row, tmp_path / "judge.npz")
    times = np.arange(0, 3, 1 / 30, dtype=np.float32)
    heard = judge.apertures(speech, times)
    assert heard.shape == times.shape
    assert np.isfinite(heard).all()
    np.testing.assert_allclose(judge.apertures(speech, times[::2]), heard[::2], atol=1e-6)
    with pytest.raises(FileNotFoundError, match="insync train judge"):
        SpeechJudge(basis.aperture_row, tmp_path / "nothing.npz")


def test_a_reader_has_one_code_for_each_feature() -> None:
    features = np.random.default_rng(0).normal(size=(60, 384)).astype(np.float16)
    assert FeaturesToMouth(384).read(features).shape == (60, MOUTH)


def test_the_stage_learns_resumes_and_predicts(tmp_path: Path, basis: MouthBasis) -> None:
    sequences = [_spoken("film", 120, True), _spoken("other", 120, False, 1)]
    save_targets(sequences, [], tmp_path / "speech_targets.npz")
    torch.save(_checkpoint(), tmp_path / "speech_last.pt")  # without it the stage would ask the teacher
    steps, ticks = [], itertools.count()
    for minutes in (1.0, 2.0):
        train_speech(
            None, basis, tmp_path, minutes, clock=lambda: float(next(ticks)), options=SpeechOptions(batch=2)  # type: ignore[arg-type]
        )  # fmt: skip
        state = load_checkpoint(tmp_path / "speech_last.pt")
        assert state is not None
        steps.append(state["step"])
    assert steps[1] > steps[0] > 0  # resumed, not begun again
    result = load_checkpoint(tmp_path / "speech.pt")
    assert result is not None
    model = SpeechToMouth()
    model.load_state_dict(result["model"])
    assert predict(model, sequences[0]).shape == (120, MOUTH)


def _checkpoint() -> dict[str, object]:
    from insync.training.trainers.speech import _Training

    return _Training(SpeechOptions(), None).state(0, Budget(1))
