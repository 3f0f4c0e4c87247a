"""Admission to the store: defaults, schema and CEL rules, and Pod Security of the namespace."""

from __future__ import annotations

from tests.kube.api import Object, Refused
from tests.kube.kinds import KINDS
from tests.kube.pod_security import restricted
from tests.kube.schemas import Invalid, fill_defaults, validate

ENFORCE = "pod-security.kubernetes.io/enforce"


def admit(plural: str, obj: Object, old: Object | None, namespace: Object | None) -> None:
    """Fill the defaults of an object in place. Raise `Refused` with the field's name."""
    obj.update(fill_defaults(obj))
    # The status comes from the double's own parts.
    status = obj.pop("status", None)
    try:
        validate(obj, old)
    except Invalid as invalid:
        kind, name = KINDS[plural], obj["metadata"]["name"]
        qualified = f"{kind.kind}.{kind.group}".rstrip(".")
        raise Refused(422, "Invalid", f'{qualified} "{name}" is invalid: {invalid}') from invalid
    finally:
        if status is not None:
            obj["status"] = status
    if plural == "pods" and old is None and namespace is not None:
        _admit_pod(obj, namespace)


def _admit_pod(pod: Object, namespace: Object) -> None:
    if namespace["metadata"].get("labels", {}).get(ENFORCE) != "restricted":
        return
    findings = restricted(pod["spec"])
    if findings:
        reasons = "; ".join(f"{field}: {reason}" for field, reason in findings)
        message = f'violates PodSecurity "restricted:latest": {reasons}'
        name = pod["metadata"]["name"]
        raise Refused(403, "Forbidden", f'pods "{name}" is forbidden: {message}')
