"""The head service of a RayCluster.

Source: KubeRay, ray-operator/controllers/ray/common/service.go.
"""

from __future__ import annotations

from tests.kube.api import Object

_PORTS = {"client": 10001, "gcs-server": 6379, "dashboard": 8265, "serve": 8000}


def head_service(cluster: Object) -> Object:
    """Return the head service of a cluster, its name left out (`BuildServiceForHeadPod`)."""
    name, group = cluster["metadata"]["name"], cluster["spec"]["headGroupSpec"]
    template = group["template"]
    ports = {
        port.get("name", f"{port['containerPort']}-port"): port["containerPort"]
        for port in template["spec"]["containers"][0].get("ports") or ()
    }
    ports = {"metrics": 8080, **(ports or _PORTS)}
    labels = (template.get("metadata") or {}).get("labels") or {}
    selector = {
        "ray.io/cluster": name,
        "ray.io/node-type": "head",
        "ray.io/identifier": f"{name}-head"[-63:],
        "app.kubernetes.io/name": labels.get("app.kubernetes.io/name", "kuberay"),
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    spec: Object = {
        "type": group.get("serviceType") or "ClusterIP",
        "selector": selector,
        "ports": [{"name": key, "port": ports[key]} for key in sorted(ports)],
    }
    if spec["type"] == "ClusterIP":
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    return {"metadata": {}, "spec": spec}
