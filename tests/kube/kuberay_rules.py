"""KubeRay's own checks of RayClusters and RayJobs, beyond schema and CEL rules.

The API server admits these objects. The operator then makes nothing of them: a RayCluster gets an
event, a RayJob the status ValidationFailed.

Source: KubeRay, ray-operator/controllers/ray/utils/validation.go, with the feature gates' defaults
(pkg/features/features.go). Not here: RayService, mTLS, history server, network policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.kube.api import Object
from tests.kube.ray_pods import autoscales, is_v2

_RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def cluster_errors(cluster: Object) -> list[str]:
    """Return KubeRay's complaints about a RayCluster."""
    return [*_name_errors("RayCluster", cluster, 53), *_spec_errors(cluster["spec"])]


def job_errors(job: Object) -> list[str]:
    """Return KubeRay's complaints about a RayJob."""
    spec = job["spec"]
    errors = [*_name_errors("RayJob", job, 47), *_deletion_errors(spec)]
    selects = bool(spec.get("clusterSelector"))
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        errors.append(
            "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
        )
    if spec.get("suspend") and selects:
        errors.append("the ClusterSelector mode doesn't support the suspend operation")
    if selects and spec.get("backoffLimit"):
        errors.append("BackoffLimit is incompatible with ClusterSelector mode")
    if not selects and "rayClusterSpec" not in spec:
        errors.append("one of RayClusterSpec or ClusterSelector must be set")
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            errors.append(f"{field} must be a positive integer")
    if spec.get("backoffLimit", 0) < 0:
        errors.append("backoffLimit must be a positive integer")
    return [*errors, *_spec_errors(spec.get("rayClusterSpec", {}))]


def _name_errors(kind: str, obj: Object, longest: int) -> Iterator[str]:
    name = obj["metadata"]["name"]
    if len(name) > longest:
        yield f"{kind} name should be no more than {longest} characters"
    if not _NAME.fullmatch(name):
        yield f"{kind} name should be a valid DNS1035 label"


def _spec_errors(spec: Object) -> Iterator[str]:
    if not spec:
        return
    head = spec["headGroupSpec"]
    yield from _group_errors("Head", head)
    for group in spec.get("workerGroupSpecs") or ():
        name = group["groupName"]
        yield from _group_errors(name, group)
        yield from _worker_errors(spec, name, group)
    variables = {
        each["name"] for each in head["template"]["spec"]["containers"][0].get("env") or ()
    }
    yield from _store_errors(spec, head, variables)
    if autoscales(spec) and "RAY_enable_autoscaler_v2" in variables:
        yield "both .spec.autoscalerOptions.version and RAY_enable_autoscaler_v2 are set"
    policy = head["template"]["spec"].get("restartPolicy", "Never")
    if autoscales(spec) and is_v2(spec) and policy != "Never":
        yield "restartPolicy for head Pod should be Never or unset when using autoscaler V2"
    if (spec.get("authOptions") or {}).get("mode") == "token" and _version(spec) < (2, 52):
        yield "authOptions.mode is 'token' but minimum Ray version is 2.52.0"


def _group_errors(name: str, group: Object) -> Iterator[str]:
    parameters = group.get("rayStartParams") or {}
    if group.get("resources") and set(_RESOURCE_PARAMETERS) & set(parameters):
        yield f"resource fields should not be set in both rayStartParams and Resources for {name}"
    if "labels" in parameters:
        yield f"rayStartParams['labels'] is not supported for {name} group; use the Labels field"


def _worker_errors(spec: Object, name: str, group: Object) -> Iterator[str]:
    if group.get("minReplicas", 0) > group.get("maxReplicas", 2**31 - 1):
        yield f"worker group {name} has minReplicas greater than maxReplicas"
    if group.get("idleTimeoutSeconds") is not None and not is_v2(spec):
        yield f"worker group {name}: idleTimeoutSeconds is set, but autoscaler v2 is not enabled"
    if group.get("priority") and (_version(spec) < (2, 56) or not is_v2(spec)):
        yield f"worker group {name}: priority needs Ray 2.56.0 or later and autoscaler v2"
    if autoscales(spec) and group.get("suspend"):
        yield f"worker group {name} cannot be suspended with Autoscaler enabled"
    policy = group["template"]["spec"].get("restartPolicy", "Never")
    if autoscales(spec) and is_v2(spec) and policy != "Never":
        yield f"restartPolicy for worker group {name} should be Never or unset with autoscaler V2"


def _store_errors(spec: Object, head: Object, variables: set[str]) -> Iterator[str]:
    """Yield complaints about the store of a fault-tolerant head."""
    options = spec.get("gcsFaultToleranceOptions")
    if not options:
        if "RAY_REDIS_ADDRESS" in variables:
            yield "RAY_REDIS_ADDRESS is set, but GcsFaultToleranceOptions is not set"
        return
    for name in sorted(variables & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"}):
        yield f"cannot set `{name}` env var in head Pod when GcsFaultToleranceOptions is enabled"
    if (head.get("rayStartParams") or {}).get("redis-password"):
        yield "cannot set `redis-password` in rayStartParams with GcsFaultToleranceOptions"
    if options.get("backend") == "rocksdb":
        yield "the embedded RocksDB backend requires the feature gate of its own to be enabled"


def _deletion_errors(spec: Object) -> Iterator[str]:
    """Yield complaints about time to live and deletion strategy."""
    shuts_down = bool(spec.get("shutdownAfterJobFinishes"))
    if spec.get("ttlSecondsAfterFinished") and not shuts_down:
        yield (
            "a RayJob with shutdownAfterJobFinishes set to false cannot have "
            "TTLSecondsAfterFinished"
        )
    strategy = spec.get("deletionStrategy") or {}
    rules = strategy.get("deletionRules") or []
    legacy = [strategy[each] for each in ("onSuccess", "onFailure") if each in strategy]
    if rules and shuts_down:
        yield (
            "spec.shutdownAfterJobFinishes and spec.deletionStrategy.deletionRules are mutually "
            "exclusive"
        )
    policies = [each.get("policy") for each in (*rules, *legacy)]
    if "DeleteWorkers" in policies and autoscales(spec.get("rayClusterSpec") or {}):
        yield "DeletionPolicyType 'DeleteWorkers' not supported with autoscaling enabled"
    if spec.get("clusterSelector") and {"DeleteWorkers", "DeleteCluster"} & set(policies):
        yield "DeletionPolicyType not supported when ClusterSelector is set"
    yield from _rule_errors(rules)


def _rule_errors(rules: list[Object]) -> Iterator[str]:
    """Yield complaints about rules of one condition: doubles, and times out of order."""
    times: dict[tuple[str, str], dict[str, int]] = {}
    for index, rule in enumerate(rules):
        condition = rule["condition"]
        field = "jobStatus" if "jobStatus" in condition else "jobDeploymentStatus"
        group = times.setdefault((field, condition[field]), {})
        if rule["policy"] in group:
            yield f"deletionRules[{index}]: duplicate rule for DeletionPolicyType {rule['policy']}"
        group[rule["policy"]] = condition.get("ttlSeconds", 0)
    for (field, value), group in times.items():
        ordered = [group[policy] for policy in _DELETION_ORDER if policy in group]
        if ordered != sorted(ordered):
            yield f"for {field} {value}: TTLs must not fall from workers to cluster to the RayJob"


def _version(spec: Object) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", str(spec.get("rayVersion", "")))
    return tuple(int(number) for number in numbers[:2]) or (0,)
