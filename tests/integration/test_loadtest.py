"""`insync loadtest` against a real server: every kind of user, the search for the capacity, and a short soak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from insync.ensemble.server.embedded import EmbeddedServer
from insync.loadtest import cli

pytestmark = pytest.mark.triton

# Light enough for a busy machine; no deadline that a slow one could miss.
LIGHT = ["--height", "270", "--fps", "5", "--deadline", "60000", "-q"]


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main([*LIGHT, *arguments, "-o", str(folder)])
    assert "<svg" in (folder / "report.html").read_text()
    return code, json.loads((folder / "report.json").read_text())


def test_capacity_of_a_running_server(server: EmbeddedServer, tmp_path: Path) -> None:
    code, report = run(
        tmp_path,
        *("--host", server.grpc_url, "--metrics", server.metrics_url),
        *("--find-capacity", "--most", "1", "--step", "3", "--run-time", "20s"),
    )
    assert (code, report["ended"]) == (0, "complete")
    (search,) = report["searches"]
    assert {step["streams"] for step in search["steps"]} == {1}
    assert search["capacity"] == search["steps"][-1]["held"]  # a busy machine may not hold even one stream
    assert report["summary"]["frames"] > 0
    assert report["models"]["lipsync_frame"]["batch"] >= 1
    assert report["usage"]["clients_cores"] > 0
    assert report["summary"]["disordered"] == report["summary"]["errors"] == 0, report["errors"]


def test_refused_users_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two live users on a server with capacity for one of them; late frames would be skipped."""
    monkeypatch.setenv("INSYNC_CAPACITY_FPS", "5")
    code, report = run(tmp_path, "--users", "live=2", "--run-time", "12s", "--late", "skip")
    summary = report["summary"]
    assert code == summary["errors"] == summary["disordered"] == 0, report["errors"]
    assert summary["frames"] > 0
    assert summary["refused"] == summary["hinted"] > 0
    assert 2500 <= summary["hint_p50_ms"] <= summary["hint_max_ms"] <= 5000
    assert summary["late"] == summary["missed"] + summary["dropped"] + summary["skipped"]


def test_short_soak(tmp_path: Path) -> None:
    """Clients connect and disconnect on a server of the run's own. Growth of memory is measured by a run of an hour."""
    code, report = run(
        tmp_path,
        *("--soak", "0.5", "--users", "live=1,dub=1,twin=1", "--in-flight", "2", "--job-frames", "5"),
        *("--session", "3", "6", "--away", "2", "--reconnect", "0.5"),
    )
    summary = report["summary"]
    assert not report["errors"]
    assert summary["frames"] > 0
    assert summary["jobs"] > 0
    assert summary["registrations"] >= 3
    assert summary["disordered"] == summary["lost"] == 0
    # Half a minute is too short for memory to settle. Countable series vary with three users, and no further.
    growth = {one["name"]: one["after"] - one["before"] for one in report["growth"]}
    assert growth["shared memory regions"] <= 0, report["growth"]
    assert growth["server and models, processes"] <= 0, report["growth"]
    assert growth["server and models, file handles"] <= 6, report["growth"]
    assert growth["clients, file handles"] <= 6, report["growth"]
    assert growth["clients, threads"] <= 15, report["growth"]
    assert code == any(not one["flat"] for one in report["growth"])
