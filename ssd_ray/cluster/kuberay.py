"""The RayCluster of KubeRay in which this process runs, as the Kubernetes API has it.

- KubeRay gives the head's pod the right to read its RayCluster, for the autoscaler.
- Other pods have no such right. The largest size of their cluster stays unknown.

Reads the pod's environment and token, and asks the API once; writes nothing.
"""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from ssd_ray.cluster.groups import Document, Group, kuberay_groups
from ssd_ray.errors import UserError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SCHEME = "https"
_TIMEOUT_S = 5.0


def own_name() -> str:
    """Return the name of the RayCluster of this pod, "" outside of KubeRay."""
    return os.environ.get("RAY_CLUSTER_NAME", "")


def own_groups() -> tuple[Group, ...]:
    """Return the groups of the RayCluster of this pod, empty if they cannot be read."""
    document = _own_cluster()
    if document is None or not document.get("spec", {}).get("enableInTreeAutoscaling"):
        return ()
    try:
        return kuberay_groups(document["spec"])
    except UserError:
        # Quantities in forms that only the operator knows. The run goes on without a maximum.
        return ()


def _own_cluster() -> Document | None:
    """Ask the Kubernetes API for the RayCluster of this pod; None without an answer."""
    name = own_name()
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if not name or not host:
        return None
    port = os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    host = f"[{host}]" if ":" in host else host
    try:
        namespace = (_ACCOUNT / "namespace").read_text().strip()
        request = urllib.request.Request(
            f"{_SCHEME}://{host}:{port}/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{name}",
            headers={"Authorization": f"Bearer {(_ACCOUNT / 'token').read_text().strip()}"},
        )
        context = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as answer:
            document: Document = json.load(answer)
    except (OSError, urllib.error.URLError, ValueError):
        return None
    return document
