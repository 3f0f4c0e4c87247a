"""Ray's dashboard as the operator sees it: the state of a submitted job.

Source: KubeRay, ray-operator/controllers/ray/utils/dashboardclient/dashboard_httpclient.go.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Protocol

from tests.kube.api import Object, Store
from tests.kube.ray_pods import short_name, uses_token

TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """The state of a Ray job."""

    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str = ""
    start_ms: int = 0
    end_ms: int = 0


class Dashboard(Protocol):
    """Ray's dashboard of a cluster; `OSError` where it does not answer."""

    def job(self, cluster: Object, job_id: str) -> JobInfo | None:
        """Return the state of a job, or None if the cluster knows none of this id."""

    def stop(self, cluster: Object, job_id: str) -> None:
        """Ask for the end of a job."""


class HttpDashboard:
    """The dashboard of the head pod, by its address."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def job(self, cluster: Object, job_id: str) -> JobInfo | None:
        """Return the state of a job, or None if the cluster knows none of this id."""
        try:
            answer = self._request(cluster, f"/api/jobs/{job_id}", "GET")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return JobInfo(
            status=answer["status"],
            message=answer.get("message") or "",
            start_ms=answer.get("start_time") or 0,
            end_ms=answer.get("end_time") or 0,
        )

    def stop(self, cluster: Object, job_id: str) -> None:
        """Ask for the end of a job."""
        self._request(cluster, f"/api/jobs/{job_id}/stop", "POST")

    def _request(self, cluster: Object, path: str, method: str) -> Any:
        address = (cluster.get("status") or {}).get("head", {}).get("podIP")
        if not address:
            raise ConnectionError("the head has no address")
        headers = {"Authorization": f"Bearer {self._token(cluster)}"} if uses_token(cluster) else {}
        url = f"http://{address}:8265{path}"
        request = urllib.request.Request(url, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            return json.load(reply)

    def _token(self, cluster: Object) -> str:
        metadata = cluster["metadata"]
        name = cluster["spec"]["authOptions"].get("secretName") or short_name(metadata["name"])
        secret = self._store.get("secrets", metadata["namespace"], name) or {"data": {}}
        return base64.b64decode(secret["data"].get("auth_token", "")).decode()
