"""The head services of RayClusters and RayJobs.

Source: KubeRay, ray-operator/controllers/ray/common/service.go and common/job.go.
"""

from __future__ import annotations

from tests.kube.api import Object, Store
from tests.kube.ray_pods import owner_reference

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


def serve_job(store: Store, job: Object, cluster: Object) -> None:
    """Point the service named after a RayJob to its cluster, whoever made the service.

    Source: rayjob_controller.go, `reconcileServices`; it updates a service of another owner.
    """
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    spec = head_service(cluster)["spec"]
    existing = store.get("services", namespace, f"{name}-head-svc")
    if existing is None:
        labels = {
            "ray.io/originated-from-cr-name": name,
            "ray.io/originated-from-crd": "RayJob",
            "ray.io/node-type": "head",
            "ray.io/identifier": f"{name}-head"[-63:],
        }
        metadata: Object = {"name": f"{name}-head-svc", "namespace": namespace}
        metadata |= {"labels": labels, "ownerReferences": [owner_reference(job)]}
        store.create("services", {"metadata": metadata, "spec": spec})
    elif existing["spec"]["selector"]["ray.io/cluster"] != cluster["metadata"]["name"]:
        store.replace("services", existing | {"spec": spec})
