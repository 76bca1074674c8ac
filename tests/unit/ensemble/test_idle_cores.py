"""Idle CPU time, the choice of cores, and equal outputs of a graph on one and several threads."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from insync.core.spec import MODELS
from insync.ensemble.inference import idle_cores
from insync.ensemble.inference.idle_cores import IdleShare
from insync.ensemble.inference.onnx_session import CpuSession

REPOSITORY = Path(__file__).parents[3] / "model_repository"
DTYPES = {"FP32": np.float32, "UINT8": np.uint8}


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    return tmp_path / "stat"


def write(counts: Path, busy: int, iowait: int, idle: int) -> None:
    counts.write_text(f"cpu  {busy} 0 0 {idle} {iowait} 0 0 0 500 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 1 2 3\n")


def test_the_share_is_that_between_two_readings(counts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_cores, "SPAN_S", 0.0)
    write(counts, 1000, 100, 5000)
    share = IdleShare(counts)
    write(counts, 1006, 101, 5003)
    assert share() == 0.4
    assert share() == 0.4  # the counters have not changed
    write(counts, 1016, 101, 5003)
    assert share() == 0.0


def test_it_is_kept_for_a_while(counts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_cores, "SPAN_S", 3600.0)
    write(counts, 0, 0, 0)
    share = IdleShare(counts)
    write(counts, 1, 0, 9)
    assert share() == 0.0


def test_without_counts_nothing_is_idle(counts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_cores, "SPAN_S", 0.0)
    assert IdleShare(counts)() == 0.0


def test_linux_counts() -> None:
    share = IdleShare()
    time.sleep(1.5 * idle_cores.SPAN_S)
    assert 0.0 <= share() <= 1.0
    assert share._all > share._idle > 0


@pytest.mark.parametrize("model", ["lipsync_encoder", "lipsync_decoder"])
def test_threads_change_nothing(model: str) -> None:
    rng = np.random.default_rng(0)
    feed: dict[str, NDArray[Any]] = {
        tensor.name: (rng.random((1, *tensor.shape)) * (255 if tensor.dtype == "UINT8" else 1)).astype(
            DTYPES[tensor.dtype]
        )
        for tensor in MODELS[model].inputs
    }
    outputs = [tensor.name for tensor in MODELS[model].outputs]
    path, options = REPOSITORY / model / "1" / "model.onnx", ort.SessionOptions()
    options.intra_op_num_threads = 1
    cores = idle_cores.cores_for(2, 0)
    if not cores:
        pytest.skip("this machine has one core")
    spread = CpuSession(path, options, cores)
    spread._idle = lambda: 1.0  # type: ignore[assignment]
    allowed = os.sched_getaffinity(0)
    results = [session.run(outputs, feed) for session in (CpuSession(path, options), spread)]
    assert os.sched_getaffinity(0) == allowed
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(
            one.astype(np.float32), two.astype(np.float32), atol=1.0 if one.dtype == np.uint8 else 1e-5
        )


@pytest.mark.parametrize(
    ("allowed", "threads", "expected"),
    [
        ({0, 1}, 2, [(0, 1), (0, 1), (0, 1)]),
        ({3, 5, 6, 9}, 2, [(3, 5), (6, 9), (3, 5)]),
        ({0, 1, 2}, 2, [(0, 1), (2, 0), (1, 2)]),
        ({4}, 2, [(), (), ()]),
    ],
)
def test_threads_get_cores_of_their_own(
    monkeypatch: pytest.MonkeyPatch, allowed: set[int], threads: int, expected: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed)
    assert [idle_cores.cores_for(threads, instance) for instance in range(3)] == expected


def test_a_thread_goes_back_to_all_its_cores() -> None:
    before = os.sched_getaffinity(0)
    with idle_cores.bound_to(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
    with idle_cores.bound_to(100_000):  # there is no such core
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before
