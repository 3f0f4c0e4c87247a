"""Kinds of objects served by the double: group, version, plural name, scope."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of object."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str
    namespaced: bool
    short: tuple[str, ...]
    """Short names for kubectl."""

    @property
    def api_version(self) -> str:
        """Group and version, as in a manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version


_TABLE = """
v1 configmaps ConfigMap cm
v1 endpoints Endpoints ep
v1 events Event ev
v1 namespaces Namespace ns !
v1 nodes Node no !
v1 persistentvolumeclaims PersistentVolumeClaim pvc
v1 persistentvolumes PersistentVolume pv !
v1 pods Pod po
v1 secrets Secret
v1 serviceaccounts ServiceAccount sa
v1 services Service svc
apps/v1 deployments Deployment deploy
apps/v1 statefulsets StatefulSet sts
batch/v1 jobs Job
kueue.x-k8s.io/v1beta1 clusterqueues ClusterQueue cq !
kueue.x-k8s.io/v1beta1 localqueues LocalQueue lq
kueue.x-k8s.io/v1beta1 resourceflavors ResourceFlavor rf !
kueue.x-k8s.io/v1beta1 workloads Workload wl
monitoring.coreos.com/v1 podmonitors PodMonitor
monitoring.coreos.com/v1 prometheusrules PrometheusRule
networking.k8s.io/v1 networkpolicies NetworkPolicy netpol
node.k8s.io/v1 runtimeclasses RuntimeClass !
policy/v1 poddisruptionbudgets PodDisruptionBudget pdb
ray.io/v1 rayclusters RayCluster
ray.io/v1 rayjobs RayJob
rbac.authorization.k8s.io/v1 rolebindings RoleBinding
rbac.authorization.k8s.io/v1 roles Role
scheduling.k8s.io/v1 priorityclasses PriorityClass pc !
storage.k8s.io/v1 storageclasses StorageClass sc !
"""


def _kind(line: str) -> Kind:
    api_version, plural, kind, *rest = line.split()
    group, _, version = api_version.rpartition("/")
    return Kind(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        namespaced="!" not in rest,
        short=tuple(name for name in rest if name != "!"),
    )


KINDS = {kind.plural: kind for kind in map(_kind, _TABLE.strip().splitlines())}
"""Kinds by plural name; no two groups share one."""
