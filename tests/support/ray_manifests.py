"""Small RayClusters and RayJobs for tests of the cluster double."""

from __future__ import annotations

from typing import Any

from tests.kube.api import Object

RESOURCES = {"cpu": "2", "memory": "4Gi"}
SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod_template(name: str, **limits: str) -> Object:
    """Return the template of a pod with one container."""
    amounts = {**RESOURCES, **limits}
    container = {
        "name": name,
        "image": "ssd-ray:1",
        "resources": {"limits": amounts, "requests": dict(amounts)},
        "securityContext": SECURITY,
        "ports": [{"name": "dashboard", "containerPort": 8265}] if name == "ray-head" else [],
    }
    security = {"runAsNonRoot": True, "runAsUser": 1000}
    return {"spec": {"securityContext": security, "containers": [container]}}


def worker_group(name: str, replicas: int = 0, most: int = 4, **fields: Any) -> Object:
    """Return a worker group."""
    return {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": 0,
        "maxReplicas": most,
        "numOfHosts": 1,
        "rayStartParams": {},
        "template": pod_template("ray-worker"),
        **fields,
    }


def cluster_spec(*groups: Object, **fields: Any) -> Object:
    """Return the spec of a RayCluster with the autoscaler and a token."""
    return {
        "rayVersion": "2.60.0",
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "securityContext": SECURITY},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": pod_template("ray-head"),
        },
        "workerGroupSpecs": list(groups),
        **fields,
    }


def ray_cluster(name: str = "c", *groups: Object, **fields: Any) -> Object:
    """Return a RayCluster."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": "default"},
        "spec": cluster_spec(*groups, **fields),
    }


def ray_job(name: str = "j", *groups: Object, **fields: Any) -> Object:
    """Return a RayJob."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"entrypoint": "python jobs/pipeline.py quickstart", **fields}
        | {"rayClusterSpec": cluster_spec(*groups)},
    }
