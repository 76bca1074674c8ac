"""docker/helm and docker/kubernetes: the rendered chart, checked against Kubernetes' schemas."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml

from insync.ensemble.container import CONFIGS

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
CHART = DOCKER / "helm" / "insync"
RENDERED = DOCKER / "kubernetes" / "insync.yaml"
VERSION = "1.37"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def by_kind(kind: str, name: str) -> dict[str, Any]:
    (found,) = [
        document
        for document in documents(RENDERED)
        if document["kind"] == kind and document["metadata"]["name"] == name
    ]
    return found


def server() -> dict[str, Any]:
    container: dict[str, Any] = by_kind("Deployment", "insync")["spec"]["template"]["spec"]["containers"][0]
    return container


def serving_runtime() -> dict[str, Any]:
    (found,) = [item for item in documents(DOCKER / "kubernetes" / "kserve.yaml") if item["kind"] == "ServingRuntime"]
    return found


def test_the_rendered_chart_is_that_of_the_current_chart() -> None:
    """The digest is computed as in docker/render.sh: `find | sort | xargs sha256sum | sha256sum`."""
    files = sorted(str(path.relative_to(DOCKER)) for path in CHART.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256((DOCKER / file).read_bytes()).hexdigest()}  {file}\n" for file in files]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    assert digest in RENDERED.read_text().partition("\n")[0], "run docker/render.sh, which renders it with Helm"


@pytest.mark.parametrize("document", documents(RENDERED), ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_kubernetes_schemas_accept_it(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schemas_refuse_an_unknown_field() -> None:
    wrong = by_kind("Service", "insync")
    wrong["spec"]["prots"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_it_has_all_resources() -> None:
    assert sorted((item["kind"], item["metadata"]["name"]) for item in documents(RENDERED)) == [
        ("ConfigMap", "insync-balancer"),
        ("Deployment", "insync"),
        ("Deployment", "insync-balancer"),
        ("HorizontalPodAutoscaler", "insync"),
        ("NetworkPolicy", "insync-balancer"),
        ("NetworkPolicy", "insync-servers"),
        ("PersistentVolumeClaim", "insync-plans"),
        ("PersistentVolumeClaim", "insync-twins"),
        ("PodDisruptionBudget", "insync-balancer"),
        ("PodDisruptionBudget", "insync-servers"),
        ("Service", "insync"),
        ("Service", "insync-servers"),
    ]


def test_values_match_their_schema_and_are_all_in_it() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(VALUES, schema)
    assert VALUES.keys() == schema["properties"].keys() - {"global"}
    assert tuple(schema["properties"]["config"]["enum"]) == CONFIGS
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**VALUES, "sharedMemory": "4GB"}, schema)


def test_a_server_has_a_gpu_and_sized_shared_memory_and_is_not_root() -> None:
    assert server()["resources"]["limits"]["nvidia.com/gpu"] == 1
    pod = by_kind("Deployment", "insync")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    mounts = {mount["mountPath"]: mount["name"] for mount in server()["volumeMounts"]}
    assert mounts["/dev/shm"] == "shared-memory"
    assert {mounts["/twins"], mounts["/plans"]} == {"twins", "plans"}
    assert {mount["name"] for mount in server()["volumeMounts"]} == volumes.keys()
    for name in ("insync", "insync-balancer"):
        pod = by_kind("Deployment", name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("of", ["chart", "kserve"])
def test_a_dead_model_is_found_by_a_frame_and_plans_have_time_to_be_built(of: str) -> None:
    container = server() if of == "chart" else serving_runtime()["spec"]["containers"][0]
    live, startup = container["livenessProbe"], container["startupProbe"]
    command = live["exec"]["command"]
    assert command[:4] == ["insync", "probe", "127.0.0.1:8001", "--canary"]
    assert float(command[command.index("--timeout") + 1]) < live["timeoutSeconds"]
    assert live["timeoutSeconds"] <= live["periodSeconds"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 20 * 60
    for probe in (startup, container["readinessProbe"]):
        assert probe["httpGet"]["path"] == "/v2/health/ready"


def test_management_requires_a_key_from_a_secret() -> None:
    for container in (server(), serving_runtime()["spec"]["containers"][0]):
        restricted = [part for part in container["args"] if "restricted" in part]
        assert len(restricted) == 2
        assert all(part.endswith(":insync-admin=$(INSYNC_ADMIN_KEY)") for part in restricted)
        (key,) = [entry for entry in container["env"] if entry["name"] == "INSYNC_ADMIN_KEY"]
        assert key["valueFrom"]["secretKeyRef"]["key"] == "admin-key"


def test_the_autoscaler_uses_the_metric_that_the_adapter_provides() -> None:
    (metric,) = by_kind("HorizontalPodAutoscaler", "insync")["spec"]["metrics"]
    adapter = yaml.safe_load((DOCKER / "kubernetes" / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    promql_parser.parse(rule["seriesQuery"])


def test_the_balancer_of_the_chart_is_that_of_compose_for_the_servers_by_name() -> None:
    ours = (DOCKER / "envoy.yaml").read_text()
    assert (CHART / "files" / "envoy.yaml").read_text() == ours
    mounted = yaml.safe_load(by_kind("ConfigMap", "insync-balancer")["data"]["envoy.yaml"])
    expected = yaml.safe_load(ours)
    endpoint = expected["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    endpoint["endpoint"]["address"]["socket_address"]["address"] = "insync-servers"
    assert mounted == expected
    service = by_kind("Service", "insync-servers")
    assert service["spec"]["clusterIP"] == "None"


def test_selectors_find_their_pods() -> None:
    pods = {
        name: by_kind("Deployment", name)["spec"]["template"]["metadata"]["labels"]
        for name in ("insync", "insync-balancer")
    }
    chosen = {
        "insync": [
            by_kind("Deployment", "insync")["spec"]["selector"]["matchLabels"],
            by_kind("Service", "insync-servers")["spec"]["selector"],
            by_kind("NetworkPolicy", "insync-servers")["spec"]["podSelector"]["matchLabels"],
        ],
        "insync-balancer": [
            by_kind("Deployment", "insync-balancer")["spec"]["selector"]["matchLabels"],
            by_kind("Service", "insync")["spec"]["selector"],
            by_kind("NetworkPolicy", "insync-balancer")["spec"]["podSelector"]["matchLabels"],
        ],
    }
    for name, selectors in chosen.items():
        for selector in selectors:
            matching = {pod for pod, labels in pods.items() if selector.items() <= labels.items()}
            assert matching == {name}


def test_servers_have_no_egress() -> None:
    policy = by_kind("NetworkPolicy", "insync-servers")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy.get("egress", []) == []


def test_kserve_s_pod_is_a_pod() -> None:
    """Kubernetes' schemas do not include KServe's, so check the pod that KServe makes of the runtime."""
    spec = serving_runtime()["spec"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "insync"},
        "spec": {"containers": spec["containers"], "volumes": spec["volumes"]},
    }
    kubernetes_validate.validate(pod, VERSION, strict=True)
    service = next(
        item for item in documents(DOCKER / "kubernetes" / "kserve.yaml") if item["kind"] == "InferenceService"
    )
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == serving_runtime()["metadata"]["name"]
    assert model["modelFormat"]["name"] in [item["name"] for item in spec["supportedModelFormats"]]
    assert model["protocolVersion"] in spec["protocolVersions"]


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()
    assert server()["image"] == f"insync:{chart['appVersion']}"
    assert serving_runtime()["spec"]["containers"][0]["image"] == f"insync:{chart['appVersion']}"
    assert f"${{INSYNC_VERSION:-{chart['appVersion']}}}" in (DOCKER / "compose.yaml").read_text()
