"""The part of a finished RayJob that is due to be deleted.

Source: KubeRay, rayjob_controller.go, `handleDeletionRules`, `handleLegacyDeletionPolicy` and
`handleShutdownAfterJobFinishes`.
"""

from __future__ import annotations

from tests.kube.api import Object

_IMPACT = ("DeleteNone", "DeleteWorkers", "DeleteCluster", "DeleteSelf")


def due_policy(spec: Object, status: Object, age_s: float) -> str | None:
    """Return the policy with the greatest impact among those due after `age_s`, or None."""
    if spec.get("clusterSelector"):
        return None
    limit = spec.get("ttlSecondsAfterFinished", 0)
    strategy = spec.get("deletionStrategy")
    policies: list[str] = []
    if strategy and strategy.get("deletionRules"):
        for rule in strategy["deletionRules"]:
            condition = dict(rule["condition"])
            if age_s >= condition.pop("ttlSeconds", 0) and condition.items() <= status.items():
                policies.append(rule["policy"])
    elif strategy:
        field = {"SUCCEEDED": "onSuccess", "FAILED": "onFailure"}.get(status["jobStatus"])
        policies += [strategy[field]["policy"]] if field and age_s >= limit else []
    elif spec.get("shutdownAfterJobFinishes") and age_s >= limit:
        policies.append("DeleteCluster")
    return max(policies, key=_IMPACT.index) if policies else None
