"""The Job that submits a RayJob's entrypoint, as KubeRay makes it in `K8sJobMode`.

The command asks for the state of the job first. So a submitter that comes back follows the job, or
submits it again to a head without memory of it.

Source: KubeRay, ray-operator/controllers/ray/common/job.go (`BuildJobSubmitCommand`) and
rayjob_controller.go (`configureSubmitterContainer`, `createNewK8sJob`).
"""

from __future__ import annotations

import copy
import json

import yaml

from tests.kube.api import Object
from tests.kube.ray_pods import add_token, owner_reference, uses_token

NAME = "ray-job-submitter"


def submitter_job(job: Object, status: Object, cluster: Object) -> Object:
    """Return the Job that submits a RayJob to a cluster."""
    spec, metadata = job["spec"], job["metadata"]
    template = copy.deepcopy(spec.get("submitterPodTemplate") or _default_template(cluster))
    container = template["spec"]["containers"][0]
    if not container.get("command"):
        container |= {"command": ["/bin/bash", "-ce", "--"], "args": [command(spec, status)]}
    container.setdefault("env", [])
    container["env"] += [
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        {"name": "RAY_DASHBOARD_ADDRESS", "value": status["dashboardURL"]},
        {"name": "RAY_JOB_SUBMISSION_ID", "value": status["jobId"]},
    ]
    if uses_token(cluster):
        add_token(cluster, container)
    labels = {
        "ray.io/originated-from-cr-name": metadata["name"],
        "ray.io/originated-from-crd": "RayJob",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    inner = template.setdefault("metadata", {})
    inner["labels"] = {**(inner.get("labels") or {}), **labels}
    return {
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "backoffLimit": (spec.get("submitterConfig") or {}).get("backoffLimit", 2),
            "template": template,
        },
    }


def command(spec: Object, status: Object) -> str:
    """Return the shell command of the submitter."""
    address, job_id = f"http://{status['dashboardURL']}", status["jobId"]
    healthy = (
        'python -c "import urllib.request; '
        f"r=urllib.request.urlopen('{address}/api/gcs_healthz', timeout=10); "
        "exit(0 if b'success' in r.read() else 1)\""
    )
    options = []
    if spec.get("runtimeEnvYAML"):
        text = json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]))
        options += ["--runtime-env-json", json.dumps(text)]
    if spec.get("metadata"):
        options += ["--metadata-json", json.dumps(json.dumps(spec["metadata"]))]
    options += ["--submission-id", job_id]
    for field in ("cpus", "gpus"):
        amount = spec.get(f"entrypointNum{field.title()}", 0)
        options += [f"--entrypoint-num-{field}", f"{amount:f}"] if amount else []
    if spec.get("entrypointResources"):
        options += ["--entrypoint-resources", json.dumps(spec["entrypointResources"])]
    return (
        f"until {healthy} >/dev/null 2>&1 ; do "
        f'echo "Waiting for Ray Dashboard GCS to become healthy at {address} ..." ; sleep 2 ; '
        f"done ; if ! ray job status --address {address} {job_id} >/dev/null 2>&1 ; then "
        f"ray job submit --address {address} --no-wait {' '.join(options)} -- "
        f"{spec.get('entrypoint', '').strip()} ; fi ; "
        f"ray job logs --address {address} --follow {job_id}"
    )


def _default_template(cluster: Object) -> Object:
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container = {
        "name": NAME,
        "image": head["image"],
        "resources": {
            "limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "500m", "memory": "200Mi"},
        },
    }
    return {"spec": {"containers": [container], "restartPolicy": "Never"}}
