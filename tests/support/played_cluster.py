"""A RayCluster in the cluster double's store, with a kubelet played by hand."""

from __future__ import annotations

from tests.kube.admission import admit
from tests.kube.api import Object, Store
from tests.kube.operator import Operator

JSON = "application/json-patch+json"


class PlayedCluster:
    """A store with one RayCluster, an operator, and a kubelet in one step."""

    def __init__(self, cluster: Object, *, restricted: bool = False) -> None:
        self.store = Store(admit)
        if restricted:
            label = {"pod-security.kubernetes.io/enforce": "restricted"}
            patch = {"metadata": {"labels": label}}
            kind = "application/merge-patch+json"
            self.store.patch("namespaces", "", "default", patch, content_type=kind)
        self.operator = Operator(self.store)
        self.store.create("rayclusters", cluster)
        self.operator.step()

    def pods(self, group: str | None = None) -> list[Object]:
        """Return the pods of Ray, or of one group."""
        labels = {"ray.io/group": group} if group else {}
        return self.store.list("pods", "default", {"ray.io/is-ray-node": "yes", **labels})

    def names(self, group: str) -> list[str]:
        """Return the names of a group's pods."""
        return [pod["metadata"]["name"] for pod in self.pods(group)]

    def object(self) -> Object:
        """Return the RayCluster."""
        return self.store.list("rayclusters")[0]

    def run_pods(self, phase: str = "Running") -> None:
        """Bind pods without a node, and set the phase of those at its beginning."""
        for pod in self.pods():
            name = pod["metadata"]["name"]
            if "nodeName" not in pod["spec"]:
                self.store.replace("pods", pod | {"spec": pod["spec"] | {"nodeName": "n"}})
                self.store.set_status("pods", "default", name, {"phase": phase, "podIP": "1.2.3.4"})

    def end(self, name: str, phase: str = "Failed") -> None:
        """Set the phase of a pod at its end."""
        self.store.set_status("pods", "default", name, {"phase": phase})

    def finalize_all(self) -> None:
        """Remove the pods with notice: their containers are gone."""
        for pod in self.pods():
            if "deletionTimestamp" in pod["metadata"]:
                self.store.finalize("pods", "default", pod["metadata"]["name"])

    def scale(self, index: int, replicas: int, gone: list[str] | None = None) -> None:
        """Send the patch of Ray's autoscaler (v2/.../kuberay/cloud_provider.py)."""
        path = f"/spec/workerGroupSpecs/{index}"
        patch = [{"op": "replace", "path": f"{path}/replicas", "value": replicas}]
        if gone is not None:
            value = {"workersToDelete": gone}
            patch.append({"op": "replace", "path": f"{path}/scaleStrategy", "value": value})
        self.store.patch("rayclusters", "default", "c", patch, content_type=JSON)
