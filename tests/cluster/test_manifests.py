"""Promises and validity of the cluster manifests: k8s/*.yaml and cluster.yaml.

- Kubernetes' schemas come with kubernetes-validate, and Ray's launcher schema with Ray.
- KubeRay's schemas are read from the folder in KUBERAY_CRDS (`ray.io_rayclusters.yaml`,
  `ray.io_rayjobs.yaml`). Without the variable their test skips.
- Schemas cover neither CEL rules nor the behavior of a cluster.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from ssd_ray import recipes

TOP = Path(__file__).parents[2]
RAY_KINDS = ("RayCluster", "RayJob")
Yaml = dict[str, Any]


@functools.cache
def manifests() -> list[Yaml]:
    return [
        document
        for path in sorted((TOP / "k8s").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def of_kind(*kinds: str) -> list[Yaml]:
    return [manifest for manifest in manifests() if manifest["kind"] in kinds]


def launcher() -> Yaml:
    document: Yaml = yaml.safe_load((TOP / "cluster.yaml").read_text())
    return document


def ray_clusters() -> list[Yaml]:
    return [job["spec"]["rayClusterSpec"] for job in of_kind("RayJob")] + [
        each["spec"] for each in of_kind("RayCluster")
    ]


def pods() -> Iterator[Yaml]:
    """Yield every pod template in the Ray resources."""
    for cluster in ray_clusters():
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster["workerGroupSpecs"])
    yield from (job["spec"]["submitterPodTemplate"] for job in of_kind("RayJob"))


def containers() -> list[Yaml]:
    return [
        container
        for pod in pods()
        for part in ("containers", "initContainers")
        for container in pod["spec"].get(part, ())
    ]


def pods_of(role: str) -> list[Yaml]:
    matches = [pod for pod in pods() if pod["metadata"]["labels"]["ssd-ray/role"] == role]
    assert matches, f"no pod has the role {role}"
    return matches


def environment(container: Yaml) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in container.get("env", ())}


def closed(schema: Any) -> Any:
    """Return a custom resource's schema, with unknown fields refused.

    A cluster would drop them silently.
    """
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        schema.setdefault("additionalProperties", False)
    return schema


def test_there_are_a_job_a_permanent_cluster_and_shared_parts() -> None:
    assert {manifest["kind"] for manifest in manifests()} == {
        *RAY_KINDS,
        "PersistentVolumeClaim",
        "NetworkPolicy",
    }


def test_every_kubernetes_object_and_pod_template_is_valid() -> None:
    templates = [{"apiVersion": "v1", "kind": "Pod", **pod} for pod in pods()]
    core = [manifest for manifest in manifests() if manifest["kind"] not in RAY_KINDS]
    for each in [*templates, *core]:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_every_ray_resource_is_valid_for_kuberay() -> None:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS does not name a folder with KubeRay's resource definitions")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for manifest in of_kind(*RAY_KINDS):
        definition = yaml.load(
            (Path(folder) / f"ray.io_{manifest['kind'].lower()}s.yaml").read_text(), Loader=loader
        )
        served = {
            each["name"]: each["schema"]["openAPIV3Schema"]
            for each in definition["spec"]["versions"]
            if each["served"]
        }
        schema = served[manifest["apiVersion"].removeprefix("ray.io/")]
        schema["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"] = True
        jsonschema.Draft202012Validator(closed(schema)).validate(manifest)


def test_the_launcher_file_is_valid_for_ray() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations
    schema = Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(launcher())
    types = launcher()["available_node_types"]
    assert launcher()["head_node_type"] in types
    assert sum(each.get("max_workers", 0) for each in types.values()) == launcher()["max_workers"]


def test_the_job_and_the_permanent_cluster_are_defined_alike() -> None:
    first, *others = ray_clusters()
    assert others
    assert all(other == first for other in others)


def test_manifests_and_image_have_the_ray_of_the_package() -> None:
    assert {cluster["rayVersion"] for cluster in ray_clusters()} == {version("ray")}
    assert f"FROM rayproject/ray:{version('ray')}-" in (TOP / "k8s" / "Dockerfile").read_text()


def test_the_head_takes_no_work_and_is_on_demand() -> None:
    for cluster in ray_clusters():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    head = launcher()["available_node_types"][launcher()["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_gpu_workers_are_spot_and_scale_to_zero() -> None:
    for cluster in ray_clusters():
        assert cluster["enableInTreeAutoscaling"]
        gpu = next(
            group for group in cluster["workerGroupSpecs"] if group["groupName"].startswith("gpu")
        )
        assert gpu["labels"]["ray.io/market-type"] == "spot"
        assert (gpu["minReplicas"], gpu["maxReplicas"]) == (0, 8)
        assert "nvidia.com/gpu" in gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpu = launcher()["available_node_types"]["gpu_spot"]
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert gpu["min_workers"] == 0


def test_every_image_has_a_tag_and_none_is_latest() -> None:
    images = {container["image"] for container in containers()} | {launcher()["docker"]["image"]}
    for line in (TOP / "k8s" / "Dockerfile").read_text().splitlines():
        images |= {line.split()[1]} if line.startswith("FROM ") else set()
    for image in images:
        name, colon, tag = image.rpartition(":")
        assert name, image
        assert colon, image
        assert tag not in {"", "latest"}, image
        assert "/" not in tag, image


def test_every_container_requests_what_it_may_use() -> None:
    autoscalers = [cluster["autoscalerOptions"] for cluster in ray_clusters()]
    for container in [*containers(), *autoscalers]:
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys()
        assert resources["requests"] == resources["limits"]


def test_graders_run_unprivileged_and_without_tokens() -> None:
    for pod in pods_of("grader"):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }
            assert None not in environment(container).values(), "a value from a secret"
            assert "envFrom" not in container
        assert not any("secret" in volume or "projected" in volume for volume in spec["volumes"])
    grader = launcher()["available_node_types"]["grader"]
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(
        grader["docker"]["worker_run_options"]
    )


def test_the_run_directory_and_caches_are_on_the_shared_volume() -> None:
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    for pod in [*pods_of("head"), *pods_of("gpu"), *pods_of("grader")]:
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        (container,) = pod["spec"]["containers"]
        mounted = {
            mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]
        }
        assert mounted["/mnt/shared"]["persistentVolumeClaim"]["claimName"] in claims
        assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        variables = environment(container)
        assert variables["SSD_RAY_RUNS"] == "/mnt/shared/runs"
        assert all(
            variables[name].startswith("/mnt/shared/")
            for name in ("SSD_RAY_CACHE", "HF_HOME")
            if name in variables
        )
    options = launcher()["docker"]["run_options"]
    assert {"--volume=/mnt/shared:/mnt/shared", "--env=SSD_RAY_RUNS=/mnt/shared/runs"} <= set(
        options
    )


def test_the_shared_volume_is_writable_from_every_node() -> None:
    assert [claim["spec"]["accessModes"] for claim in of_kind("PersistentVolumeClaim")] == [
        ["ReadWriteMany"]
    ]


def test_the_entrypoint_runs_a_shipped_job_and_recipe() -> None:
    for job in of_kind("RayJob"):
        python, script, recipe, *_ = shlex.split(job["spec"]["entrypoint"])
        assert python == "python"
        assert Path(script).parent == Path("jobs")
        assert (TOP / script).is_file()
        assert recipe in recipes.shipped()


def test_a_failed_job_is_retried_and_a_done_one_is_removed() -> None:
    for job in of_kind("RayJob"):
        assert job["spec"]["backoffLimit"] > 0
        assert job["spec"]["shutdownAfterJobFinishes"]


def test_ray_asks_for_a_token_and_sends_no_usage_reports() -> None:
    assert all(cluster["authOptions"]["mode"] == "token" for cluster in ray_clusters())
    for pod in [*pods_of("head"), *pods_of("gpu"), *pods_of("grader")]:
        assert environment(pod["spec"]["containers"][0])["RAY_USAGE_STATS_ENABLED"] == "0"
    assert {"--env=RAY_AUTH_MODE=token", "--env=RAY_USAGE_STATS_ENABLED=0"} <= set(
        launcher()["docker"]["run_options"]
    )


def test_engines_have_the_niceness_of_other_processes() -> None:
    """A raylet reads it from its own environment; the driver would set it too late."""
    for pod in [*pods_of("head"), *pods_of("gpu"), *pods_of("grader")]:
        assert environment(pod["spec"]["containers"][0])["RAY_worker_niceness"] == "0"
    assert "--env=RAY_worker_niceness=0" in launcher()["docker"]["run_options"]


def test_ray_ports_and_graders_are_closed_to_the_outside() -> None:
    policies = {
        kind: policy["spec"]
        for policy in of_kind("NetworkPolicy")
        for kind in policy["spec"]["policyTypes"]
    }
    own = {"podSelector": {"matchExpressions": [{"key": "ssd-ray/role", "operator": "Exists"}]}}
    assert all("ssd-ray/role" in pod["metadata"]["labels"] for pod in pods())
    inward, outward = policies["Ingress"], policies["Egress"]
    assert inward["podSelector"] == own["podSelector"]
    everything, *limited = inward["ingress"]
    assert everything == {"from": [own]}
    assert all(rule["ports"] == [{"protocol": "TCP", "port": 8265}] for rule in limited)
    assert outward["podSelector"] == {"matchLabels": {"ssd-ray/role": "grader"}}
    everything, *limited = outward["egress"]
    assert everything == {"to": [own]}
    assert all({port["port"] for port in rule["ports"]} == {53} for rule in limited)
