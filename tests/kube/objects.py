"""Objects of the double: keys, versions of their metadata, refusals."""

from __future__ import annotations

import base64
import calendar
import copy
import secrets
import time
from typing import Any

from tests.kube.kinds import KINDS

Object = dict[str, Any]
"""A Kubernetes object."""
Key = tuple[str, str, str]
"""Plural name, namespace ("" for none), name."""

_KEPT = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")
_ENDED = ("Succeeded", "Failed")


class Refused(Exception):  # noqa: N818
    """A request was refused: HTTP code, Kubernetes' reason, one sentence."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message


def now(ahead_s: float = 0.0) -> str:
    """Return the time `ahead_s` seconds from now, as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ahead_s))


def seconds(stamp: str) -> float:
    """Return a time as Kubernetes writes it in seconds since the epoch."""
    return float(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))


def key_of(plural: str, obj: Object) -> Key:
    """Return the key of an object."""
    return key_for(plural, obj["metadata"].get("namespace", "default"), obj["metadata"]["name"])


def key_for(plural: str, namespace: str, name: str) -> Key:
    return plural, namespace if KINDS[plural].namespaced else "", name


def grace_of(plural: str, obj: Object, grace_s: int | None) -> int:
    """Return the seconds of notice: none for all but bound pods at work."""
    if plural != "pods" or "nodeName" not in obj["spec"]:
        return 0
    if obj.get("status", {}).get("phase") in _ENDED:
        return 0
    return int(obj["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s)


def keep(old: Object, new: Object) -> None:
    """Carry over from `old` the parts of `new` no ordinary write may change."""
    for part in ("apiVersion", "kind"):
        new[part] = old[part]
    metadata = {name: old["metadata"][name] for name in _KEPT if name in old["metadata"]}
    metadata |= {name: old["metadata"][name] for name in ("name", "generation", "resourceVersion")}
    new["metadata"] = {k: v for k, v in new["metadata"].items() if k not in _KEPT} | metadata
    if "namespace" in old["metadata"]:
        new["metadata"]["namespace"] = old["metadata"]["namespace"]
    new.pop("status", None)
    if "status" in old:
        new["status"] = copy.deepcopy(old["status"])


def encode_secret(obj: Object) -> None:
    """Move `stringData` of a secret to `data`, in base64."""
    if obj["kind"] == "Secret":
        for name, text in obj.pop("stringData", {}).items():
            obj.setdefault("data", {})[name] = base64.b64encode(text.encode()).decode()


def prepare(plural: str, obj: Object, uid: str) -> None:
    """Set what the API server itself sets in a new object."""
    kind = KINDS[plural]
    obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
    metadata = obj.setdefault("metadata", {})
    if "name" not in metadata and "generateName" in metadata:
        metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
    if not metadata.get("name"):
        raise Refused(422, "Invalid", f"{kind.kind}: metadata.name: Required value")
    if kind.namespaced:
        metadata.setdefault("namespace", "default")
    else:
        metadata.pop("namespace", None)
    for name in (*_KEPT, "resourceVersion", "selfLink"):
        metadata.pop(name, None)
    metadata |= {"uid": uid, "creationTimestamp": now(), "generation": 1}
    obj.pop("status", None)
    if plural == "pods":
        obj["status"] = {"phase": "Pending"}
    elif plural == "namespaces":
        # NetworkPolicies select namespaces by this label.
        label = {"kubernetes.io/metadata.name": metadata["name"]}
        metadata["labels"] = {**metadata.get("labels", {}), **label}
    elif plural == "jobs":
        # The selector by which `kubectl logs job/NAME` finds the pods.
        labels = {"batch.kubernetes.io/controller-uid": uid, "job-name": metadata["name"]}
        template = obj["spec"]["template"].setdefault("metadata", {})
        template["labels"] = {**template.get("labels", {}), **labels}
        obj["spec"].setdefault("selector", {"matchLabels": labels})
    encode_secret(obj)
