"""Fill the defaults of Kubernetes' own kinds, as the API server's code does.

Source: `SetDefaults_*` of Kubernetes, pkg/apis/{core,batch,apps}/v1/defaults.go. Only fields in use
by the double are here.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
_TEMPLATED = ("Job", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")


def fill_core_defaults(obj: Object) -> None:
    """Fill the defaults of an object in place; kinds without any stay as they are."""
    kind, spec = obj.get("kind"), obj.get("spec")
    if not isinstance(spec, dict):
        return
    if kind == "Pod":
        fill_pod_defaults(spec)
    elif kind in _TEMPLATED:
        fill_pod_defaults(spec.get("template", {}).get("spec", {}))
        _fill_workload(str(kind), spec)
    elif kind == "Service":
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        for port in spec.get("ports", ()):
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port["port"])
    elif kind == "NetworkPolicy":
        _fill_policy(spec)
    elif kind == "PersistentVolumeClaim":
        spec.setdefault("volumeMode", "Filesystem")


def fill_pod_defaults(spec: Object) -> None:
    """Fill the defaults of a pod's spec in place."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("securityContext", {})
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        tag = str(container.get("image", "")).rpartition("/")[2].partition(":")[2]
        container.setdefault(
            "imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent"
        )
        for port in container.get("ports", ()):
            port.setdefault("protocol", "TCP")
        resources = container.setdefault("resources", {})
        for name, value in resources.get("limits", {}).items():
            resources.setdefault("requests", {}).setdefault(name, value)


def _fill_workload(kind: str, spec: Object) -> None:
    if kind == "Job":
        spec.setdefault("backoffLimit", 6)
        spec.setdefault("completions", 1)
        spec.setdefault("parallelism", 1)
        spec.setdefault("completionMode", "NonIndexed")
        spec.setdefault("suspend", False)
    else:
        spec.setdefault("replicas", 1)


def _fill_policy(spec: Object) -> None:
    """Ingress is always a type; egress only where a rule is."""
    types = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    spec.setdefault("policyTypes", types)
    rules = (*spec.get("ingress", ()), *spec.get("egress", ()))
    for port in (port for rule in rules for port in rule.get("ports", ())):
        port.setdefault("protocol", "TCP")
