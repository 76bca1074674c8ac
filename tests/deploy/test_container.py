"""The container's entry point: plans from the cache or built once, and the server's command line."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from insync.core.errors import ServerError
from insync.ensemble import container
from insync.ensemble.container import CONFIGS, Target, cached_plans, plan_folder
from insync.ensemble.inference import device
from insync.ensemble.repository.tensorrt_plans import GRAPHS, MANIFEST, PLAN

H100 = Target("NVIDIA H100 80GB HBM3", "11.4.0.106")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for name in GRAPHS:
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "configs").mkdir()
        (folder / name / "1" / "model.onnx").write_text(f"graph of {name}")
        (folder / name / "configs" / "h100.pbtxt").write_text("max_batch_size: 8")
    return folder


class Builder:
    """A fake `insync export tensorrt`: writes the same files, and counts its runs."""

    def __init__(self, leave_out: str = "") -> None:
        self.runs = 0
        self.leave_out = leave_out

    def __call__(self, repository: Path) -> None:
        self.runs += 1
        for name in GRAPHS:
            if name != self.leave_out:
                (repository / name / "1" / PLAN).write_text(f"plan of {name}")
        (repository / MANIFEST).write_text("{}")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_plans_are_built_once_and_found_again(repository: Path, tmp_path: Path) -> None:
    build = Builder()
    before = files(repository)
    first = cached_plans(repository, tmp_path / "plans", H100, build)
    assert cached_plans(repository, tmp_path / "plans", H100, build) == first
    assert build.runs == 1
    assert files(first) == {f"{name}/1/{PLAN}" for name in GRAPHS} | {MANIFEST}
    assert files(repository) == before
    assert "nvidia-h100-80gb-hbm3" in first.name
    assert "11.4.0.106" in first.name


@pytest.mark.parametrize("changed", ["gpu", "tensorrt", "graph", "batch"])
def test_another_gpu_tensorrt_graph_or_batch_limit_is_another_set(
    repository: Path, tmp_path: Path, changed: str
) -> None:
    folder = plan_folder(repository, tmp_path, H100)
    target = {"gpu": Target("NVIDIA L40S", H100.tensorrt), "tensorrt": Target(H100.gpu, "11.5.0.1")}.get(changed, H100)
    if changed == "graph":
        (repository / GRAPHS[0] / "1" / "model.onnx").write_text("new weights")
    if changed == "batch":
        (repository / GRAPHS[0] / "configs" / "h100.pbtxt").write_text("max_batch_size: 16")
    assert plan_folder(repository, tmp_path, target) != folder


def test_containers_that_start_together_build_once(repository: Path, tmp_path: Path) -> None:
    build = Builder()
    found: list[Path] = []

    def start() -> None:
        found.append(cached_plans(repository, tmp_path / "plans", H100, build))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert build.runs == 1
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_failed_build_leaves_no_plans(repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "plans"
    with pytest.raises(ServerError, match=f"the build wrote no {GRAPHS[-1]}/1/{PLAN}"):
        cached_plans(repository, cache, H100, Builder(leave_out=GRAPHS[-1]))
    assert all(name.endswith(".lock") for name in files(cache))
    build = Builder()
    cached_plans(repository, cache, H100, build)
    assert build.runs == 1


def test_the_remains_of_a_killed_build_are_removed_by_the_next(repository: Path, tmp_path: Path) -> None:
    left = tmp_path / "plans" / f".building-{plan_folder(repository, tmp_path, H100).name}-abc"
    (left / "repository").mkdir(parents=True)
    cached_plans(repository, tmp_path / "plans", H100, Builder())
    assert not left.exists()


def test_a_set_without_its_manifest_is_rebuilt(repository: Path, tmp_path: Path) -> None:
    build = Builder()
    folder = cached_plans(repository, tmp_path / "plans", H100, build)
    (folder / MANIFEST).unlink()
    cached_plans(repository, tmp_path / "plans", H100, build)
    assert build.runs == 2
    assert (folder / MANIFEST).is_file()


def test_a_cache_that_cannot_be_written_is_named(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match=r"cache of plans .*file.* cannot be written"):
        cached_plans(repository, tmp_path / "file" / "plans", H100, Builder())


def test_the_served_repository_is_recreated_each_time(repository: Path, tmp_path: Path) -> None:
    plans = cached_plans(repository, tmp_path / "plans", H100, Builder())
    served = tmp_path / "served"
    (served / "lipsync_old").mkdir(parents=True)
    container.served_repository(repository, served, plans)
    assert files(served) == files(repository) | files(plans)
    assert not (served / "lipsync_old").exists()
    container.served_repository(repository, served, None)
    assert files(served) == files(repository)


def test_the_command_line_chooses_a_set_of_configs_and_ends_with_the_callers_arguments() -> None:
    for config in CONFIGS:
        line = container.command(Path("/models"), config, ["--exit-timeout-secs=5"])
        assert line[0] == "tritonserver"
        assert [part for part in line if "model-config-name" in part] == (
            [] if config == "default" else [f"--model-config-name={config}"]
        )
        assert line[-1] == "--exit-timeout-secs=5"


def test_serving_replaces_the_process_by_the_server(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execvp", lambda file, line: started.append(line))
    monkeypatch.setattr(container, "find_target", lambda: H100)
    monkeypatch.setattr(container, "build_with_tensorrt", Builder())
    served = tmp_path / "served"
    options = ["--repository", str(repository), "--plans", str(tmp_path / "plans"), "serve", "--served", str(served)]
    container.main([*options, "--", "--log-verbose=1"])
    assert started == [container.command(served, "h100", ["--log-verbose=1"])]
    assert (served / MANIFEST).is_file()


def test_a_job_builds_and_prints_the_folder(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(container, "find_target", lambda: H100)
    monkeypatch.setattr(container, "build_with_tensorrt", Builder())
    assert container.main(["--repository", str(repository), "--plans", str(tmp_path), "plans"]) == 0
    assert Path(capsys.readouterr().out.strip()) == plan_folder(repository, tmp_path, H100)


def test_no_gpu_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi
    assert container.main(["serve"]) == 1
    assert "--config default" in capsys.readouterr().err


def test_the_gpu_is_the_one_that_nvidia_smi_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L40S, 8.9'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device, "_NVINFER", ("libnothing.so.1",))
    with pytest.raises(ServerError, match=r"none of libnothing\.so\.1"):
        container.find_target()


def test_a_missing_server_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert container.main(["serve", "--config", "default", "--served", str(tmp_path / "served")]) == 1
    assert "tritonserver cannot be started" in capsys.readouterr().err


def test_a_build_that_exits_with_an_error_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines: list[list[str]] = []

    def run(line: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        lines.append(line)
        return subprocess.CompletedProcess(line, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ServerError, match="insync export tensorrt failed"):
        container.build_with_tensorrt(tmp_path)
    assert lines[0][1:] == ["-m", "insync.cli", "export", "--repository", str(tmp_path), "tensorrt"]
