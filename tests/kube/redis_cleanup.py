"""The end of a RayCluster with its state in Redis: its keys are removed by a Job first.

Source: KubeRay, raycluster_controller.go, `rayClusterReconcile` (finalizer) and
`buildRedisCleanupJob`; utils/constant.go for the time after which the finalizer goes by force.
"""

from __future__ import annotations

import time

from tests.kube.api import Object, Store
from tests.kube.objects import seconds
from tests.kube.ray_pods import BASH, head_pod, owner_reference
from tests.kube.replicas import delete_pod, pods_of

FINALIZER = "ray.io/gcs-ft-redis-cleanup-finalizer"
FORCED_AFTER_S = 300.0
_SCRIPT = (
    "import os, sys; from urllib.parse import urlparse; "
    "from ray._private.gcs_utils import cleanup_redis_storage; "
    "address = os.environ['RAY_REDIS_ADDRESS'].split(',')[0]; "
    "url = urlparse(address if '://' in address else 'redis://' + address); "
    "sys.exit(not cleanup_redis_storage(host=url.hostname, port=url.port, "
    "password=os.getenv('REDIS_PASSWORD', url.password or ''), use_ssl=url.scheme == 'rediss', "
    "storage_namespace=os.environ['RAY_external_storage_namespace']))"
)


def uses_redis(cluster: Object) -> bool:
    """Return True if the head keeps its state in Redis."""
    options = cluster["spec"].get("gcsFaultToleranceOptions")
    return bool(options) and options.get("backend", "redis") == "redis"


def clean_up(store: Store, cluster: Object) -> None:
    """Go one step further with the end of a deleted cluster: pods, Job, finalizer."""
    metadata = cluster["metadata"]
    pods = pods_of(store, cluster)
    for pod in pods:
        delete_pod(store, pod)
    if any(pod["metadata"]["labels"]["ray.io/node-type"] == "head" for pod in pods):
        return  # The head still writes to the store.
    name = f"{metadata['name']}-redis-cleanup"
    job = store.get("jobs", metadata["namespace"], name)
    if job is None:
        store.create("jobs", _job(cluster, name))
        return
    conditions = (job.get("status") or {}).get("conditions") or ()
    finished = any(each["type"] in ("Complete", "Failed") for each in conditions)
    age_s = time.time() - seconds(metadata["deletionTimestamp"])
    if finished or age_s > FORCED_AFTER_S:
        metadata["finalizers"] = [each for each in metadata["finalizers"] if each != FINALIZER]
        store.replace("rayclusters", cluster)


def _job(cluster: Object, name: str) -> Object:
    """Return the Job: the head's container with another command, without its init containers."""
    pod = head_pod(cluster)
    ray = pod["spec"]["containers"][0]
    for field in ("livenessProbe", "readinessProbe"):
        ray.pop(field, None)
    small = {"cpu": "200m", "memory": "256Mi"}
    ray |= {
        "command": BASH,
        "args": [f'python -c "{_SCRIPT}"'],
        "resources": {"limits": small, "requests": dict(small)},
    }
    ray["env"] += [
        {"name": "RAY_redis_db_connect_retries", "value": "120"},
        {"name": "RAY_redis_db_connect_wait_milliseconds", "value": "500"},
    ]
    labels = pod["metadata"]["labels"] | {"ray.io/node-type": "redis-cleanup"}
    labels.pop("ray.io/is-ray-node")
    pod["spec"] |= {"containers": [ray], "restartPolicy": "Never"}
    metadata = cluster["metadata"]
    return {
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(cluster)],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": 300,
            "template": {"metadata": {"labels": labels}, "spec": pod["spec"]},
        },
    }
