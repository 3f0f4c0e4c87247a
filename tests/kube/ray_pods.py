"""Pods of a RayCluster as KubeRay makes them: pure functions from the cluster to a pod.

Source: KubeRay, ray-operator/controllers/ray/common/pod.go (`DefaultHeadPodTemplate`,
`DefaultWorkerPodTemplate`, `BuildPod`, `BuildAutoscalerContainer`) and utils/constant.go. Not here:
mTLS, the history server, Kubernetes' own tokens, the embedded store, Ray before 2.53.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

from tests.kube.api import Object
from tests.kube.pod_parts import add_env, add_fields, add_variable, mount
from tests.kube.quantities import ceiling, quantity

BASH = ["/bin/bash", "-c", "--"]
AUTOSCALER = "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"  # noqa: E501
WAIT_GCS = """
SECONDS=0
until ray health-check --address {address} > /dev/null 2>&1; do
  echo "$SECONDS seconds elapsed: Waiting for GCS to be ready."
  sleep 5
done
echo "GCS is ready."
"""
_FLAGS_WITH_VALUES = ("log-color", "include-dashboard", "include-log-monitor")
_SMALL = {"cpu": "200m", "memory": "256Mi"}


def head_service_name(cluster: Object) -> str:
    """Return the name of a cluster's head service (utils/util.go, `GenerateHeadServiceName`)."""
    service = cluster["spec"]["headGroupSpec"].get("headService") or {}
    return str(service.get("metadata", {}).get("name") or f"{cluster['metadata']['name']}-head-svc")


def head_host(cluster: Object) -> str:
    """Return the full name of the host of a cluster's head."""
    return f"{head_service_name(cluster)}.{cluster['metadata']['namespace']}.svc.cluster.local"


def uses_token(cluster: Object) -> bool:
    """Return True if Ray asks for a token."""
    return (cluster["spec"].get("authOptions") or {}).get("mode") == "token"


def autoscales(spec: Object) -> bool:
    """Return True if Ray's autoscaler runs in the head pod."""
    return bool(spec.get("enableInTreeAutoscaling"))


def is_v2(spec: Object) -> bool:
    """Return True for version 2 of the autoscaler."""
    return (spec.get("autoscalerOptions") or {}).get("version") == "v2"


def short_name(name: str) -> str:
    """Return a name of at most 50 characters (utils/util.go, `CheckName`)."""
    name = name[-50:]
    return name if name[0].isalpha() else f"r{name[1:]}"


def account_name(cluster: Object) -> str:
    """Return the service account of the head pod."""
    spec = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    return short_name(spec.get("serviceAccountName") or cluster["metadata"]["name"])


def head_pod(cluster: Object) -> Object:
    """Return the head pod of a cluster."""
    spec, group = cluster["spec"], cluster["spec"]["headGroupSpec"]
    pod = _pod(cluster, group, "head")
    ray = pod["spec"]["containers"][0]
    parameters = _parameters(group) | {"block": "true"}
    parameters.setdefault("dashboard-host", "0.0.0.0")
    if autoscales(spec):
        parameters["no-monitor"] = "true"
        pod["spec"]["serviceAccountName"] = account_name(cluster)
        pod["spec"]["containers"].append(_autoscaler(cluster, ray))
        version = (spec.get("autoscalerOptions") or {}).get("version")
        if version:
            add_env(ray, RAY_enable_autoscaler_v2="true" if is_v2(spec) else "false")
    fault_tolerance = spec.get("gcsFaultToleranceOptions")
    pod["metadata"]["annotations"]["ray.io/ft-enabled"] = str(bool(fault_tolerance)).lower()
    if fault_tolerance:
        _add_redis(cluster, pod, parameters)
    _finish(cluster, pod, parameters, is_head=True)
    if autoscales(spec):
        for container in (ray, pod["spec"]["containers"][-1]):
            mount(pod, container, "ray-logs", "/tmp/ray", {})
    return pod


def worker_pod(cluster: Object, group: Object, labels: Mapping[str, str] | None = None) -> Object:
    """Return a worker pod of a group; `labels` are those of its replica."""
    pod = _pod(cluster, group, "worker")
    pod["metadata"]["labels"].update(labels or {})
    ray = pod["spec"]["containers"][0]
    address = f"{head_host(cluster)}:{_head_port(cluster)}"
    wait = {
        "name": "wait-gcs-ready",
        "image": ray["image"],
        "command": BASH,
        "args": [WAIT_GCS.format(address=address)],
        "env": copy.deepcopy(ray.get("env", [])),
        "volumeMounts": copy.deepcopy(ray.get("volumeMounts", [])),
        "resources": {"limits": dict(_SMALL), "requests": dict(_SMALL)},
    }
    for field in ("imagePullPolicy", "securityContext"):
        if field in ray:
            wait[field] = copy.deepcopy(ray[field])
    pod["spec"].setdefault("initContainers", []).append(wait)
    parameters = _parameters(group) | {"block": "true"}
    parameters.setdefault("address", address)
    if cluster["spec"].get("gcsFaultToleranceOptions"):
        add_env(ray, RAY_gcs_rpc_server_reconnect_timeout_s="600")
    _finish(cluster, pod, parameters, is_head=False)
    return pod


def _pod(cluster: Object, group: Object, node_type: str) -> Object:
    """Return the template of a group with KubeRay's name, labels and owner."""
    name, is_head = cluster["metadata"]["name"], node_type == "head"
    template = copy.deepcopy(group["template"])
    metadata = template.setdefault("metadata", {})
    group_name = "headgroup" if is_head else group["groupName"]
    prefix = name if is_head else f"{name}-{group_name}"
    fixed = {
        "ray.io/node-type": node_type,
        "ray.io/group": group_name,
        "ray.io/cluster": name,
    }
    metadata.pop("name", None)
    metadata |= {
        "generateName": f"{prefix[:50]}-{node_type}-".lower(),
        "namespace": cluster["metadata"]["namespace"],
        "annotations": metadata.get("annotations") or {},
        "ownerReferences": [owner_reference(cluster)],
        "labels": {
            "ray.io/is-ray-node": "yes",
            "ray.io/identifier": f"{name}-{node_type}"[-63:],
            "app.kubernetes.io/name": "kuberay",
            "app.kubernetes.io/created-by": "kuberay-operator",
            **(metadata.get("labels") or {}),
            **(group.get("labels") or {}),
            **fixed,
        },
    }
    if autoscales(cluster["spec"]) and is_v2(cluster["spec"]):
        # A pod is one Ray node, never started again.
        template["spec"]["restartPolicy"] = "Never"
    return {"metadata": metadata, "spec": template["spec"]}


def owner_reference(owner: Object) -> Object:
    """Return the reference of a controlled object to its owner."""
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _parameters(group: Object) -> dict[str, str]:
    """Return the parameters of `ray start` with the group's resources and labels."""
    parameters = dict(group.get("rayStartParams") or {})
    custom = {}
    for name, amount in (group.get("resources") or {}).items():
        if name.lower() in ("cpu", "memory"):
            parameters["num-cpus" if name.lower() == "cpu" else "memory"] = str(ceiling(amount))
        elif name.lower().endswith("gpu"):
            parameters["num-gpus"] = str(ceiling(amount))
        else:
            custom[name] = quantity(amount)
    if custom:
        parameters["resources"] = f"'{json.dumps(custom)}'"
    labels = group.get("labels") or {}
    if labels:
        parameters["labels"] = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
    parameters.setdefault("metrics-export-port", "8080")
    parameters.setdefault("dashboard-agent-listen-port", "52365")
    return parameters


def _finish(cluster: Object, pod: Object, parameters: dict[str, str], *, is_head: bool) -> None:
    """Add the command, environment, ports, memory and probes of the Ray container."""
    ray = pod["spec"]["containers"][0]
    if not any(port.get("name") == "metrics" for port in ray.get("ports") or ()):
        ray["ports"] = [*(ray.get("ports") or ()), {"name": "metrics", "containerPort": 8080}]
    if uses_token(cluster):
        for container in (ray, *pod["spec"].get("initContainers", ())):
            if container is ray or container["name"] == "wait-gcs-ready":
                add_token(cluster, container)
    limits = (ray.get("resources") or {}).get("limits") or {}
    requests = (ray.get("resources") or {}).get("requests") or {}
    if "plasma-directory" not in parameters:
        memory = limits.get("memory", requests.get("memory"))
        size = {"sizeLimit": memory} if memory else {}
        mount(pod, ray, "shared-mem", "/dev/shm", {"medium": "Memory", **size})
    start = _start_command(parameters, limits, requests, is_head=is_head)
    existing = " ".join([*(ray.get("command") or ()), *(ray.get("args") or ())])
    if "ray start" not in existing:
        command = f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {start}"
        ray["command"] = BASH
        ray["args"] = [f"{existing} && {command}" if existing else command]
    for container in pod["spec"].get("initContainers", ()):
        add_env(container, FQ_RAY_IP=head_host(cluster), RAY_IP=head_service_name(cluster))
    _add_environment(cluster, ray, start, is_head=is_head)
    probe: Object = {
        "httpGet": {"path": "/api/healthz", "port": int(parameters["dashboard-agent-listen-port"])},
        "timeoutSeconds": 5 if is_head else 2,
        "periodSeconds": 5,
        "successThreshold": 1,
    }
    ray.setdefault("livenessProbe", probe | {"initialDelaySeconds": 30, "failureThreshold": 120})
    ray.setdefault("readinessProbe", probe | {"initialDelaySeconds": 10, "failureThreshold": 10})


def _start_command(
    parameters: Mapping[str, str], limits: Object, requests: Object, *, is_head: bool
) -> str:
    parameters = dict(parameters)
    if "num-cpus" not in parameters and (cpu := limits.get("cpu", requests.get("cpu"))):
        parameters["num-cpus"] = str(ceiling(cpu))
    if "memory" not in parameters and "memory" in limits:
        parameters["memory"] = str(ceiling(limits["memory"]))
    for name in sorted(limits):
        if name.endswith("gpu") and quantity(limits[name]):
            parameters.setdefault("num-gpus", str(ceiling(limits[name])))
    words = ["ray start --head" if is_head else "ray start"]
    for name in sorted(parameters):
        value = parameters[name]
        if value.lower() not in ("true", "false") or name in _FLAGS_WITH_VALUES:
            words.append(f"--{name}={value}")
        elif value.lower() == "true":
            words.append(f"--{name}")
    return " ".join(words)


def _add_environment(cluster: Object, ray: Object, start: str, *, is_head: bool) -> None:
    """Add the variables of `setContainerEnvVars`.

    Ray's autoscaler knows a node by RAY_CLOUD_INSTANCE_ID, which is the pod's name, and its group
    by RAY_NODE_TYPE_NAME.
    """
    port = _head_port(cluster)
    if not is_head:
        add_env(ray, FQ_RAY_IP=head_host(cluster), RAY_IP=head_service_name(cluster))
    add_fields(
        ray,
        RAY_CLUSTER_NAME="metadata.labels['ray.io/cluster']",
        RAY_CLUSTER_NAMESPACE="metadata.namespace",
        RAY_CLOUD_INSTANCE_ID="metadata.name",
        RAY_NODE_TYPE_NAME="metadata.labels['ray.io/group']",
    )
    add_env(
        ray,
        KUBERAY_GEN_RAY_START_CMD=start,
        RAY_PORT=port,
        RAY_ADDRESS=f"{'127.0.0.1' if is_head else head_host(cluster)}:{port}",
        RAY_USAGE_STATS_KUBERAY_IN_USE="1",
        RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE="1",
    )


def _autoscaler(cluster: Object, ray: Object) -> Object:
    """Return the autoscaler's container, overridden by `autoscalerOptions`."""
    options = cluster["spec"].get("autoscalerOptions") or {}
    small = {"cpu": "500m", "memory": "512Mi"}
    container: Object = {
        "name": "autoscaler",
        "image": options.get("image", ray["image"]),
        "imagePullPolicy": options.get("imagePullPolicy", "IfNotPresent"),
        "command": options.get("command") or BASH,
        "args": options.get("args") or [AUTOSCALER],
        "resources": options.get("resources") or {"limits": small, "requests": dict(small)},
    }
    add_fields(
        container,
        RAY_CLUSTER_NAME="metadata.labels['ray.io/cluster']",
        RAY_CLUSTER_NAMESPACE="metadata.namespace",
        RAY_HEAD_POD_NAME="metadata.name",
    )
    add_env(container, KUBERAY_CRD_VER="v1", KUBERAY_GEN_AUTOSCALER_START_CMD=AUTOSCALER)
    if uses_token(cluster):
        add_token(cluster, container)
    container["env"] += options.get("env") or []
    for field in ("envFrom", "volumeMounts", "securityContext"):
        if options.get(field):
            container[field] = copy.deepcopy(options[field])
    return container


def _add_redis(cluster: Object, pod: Object, parameters: dict[str, str]) -> None:
    """Add the store of a fault-tolerant head (`configureRedisFT`)."""
    options, ray = cluster["spec"]["gcsFaultToleranceOptions"], pod["spec"]["containers"][0]
    namespace = options.get("externalStorageNamespace") or cluster["metadata"]["uid"]
    pod["metadata"]["annotations"]["ray.io/external-storage-namespace"] = namespace
    add_env(ray, RAY_external_storage_namespace=namespace)
    add_env(ray, RAY_REDIS_ADDRESS=options.get("redisAddress", ""))
    for field, name in (("redisUsername", "REDIS_USERNAME"), ("redisPassword", "REDIS_PASSWORD")):
        if options.get(field):
            parameters[name.lower().replace("_", "-")] = f"${name}"
            ray.setdefault("env", []).append({"name": name, **options[field]})


def add_token(cluster: Object, container: Object) -> None:
    """Add Ray's token from its secret to a container (`SetContainerTokenAuthEnvVars`)."""
    secret = (cluster["spec"].get("authOptions") or {}).get("secretName")
    name = secret or short_name(cluster["metadata"]["name"])
    add_env(container, RAY_AUTH_MODE="token")
    reference = {"secretKeyRef": {"name": name, "key": "auth_token"}}
    add_variable(container, {"name": "RAY_AUTH_TOKEN", "valueFrom": reference})


def _head_port(cluster: Object) -> str:
    return str((cluster["spec"]["headGroupSpec"].get("rayStartParams") or {}).get("port", "6379"))
