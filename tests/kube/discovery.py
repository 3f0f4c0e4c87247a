"""Discovery documents of the API: groups, kinds, and the part of OpenAPI read by kubectl.

kubectl reads OpenAPI v3 only to learn that the server checks fields itself
(`fieldValidation` of patches), so only that is here.
"""

from __future__ import annotations

from tests.kube.api import Object
from tests.kube.kinds import KINDS, Kind

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
GROUPS = sorted({(kind.group, kind.version) for kind in KINDS.values()})
_SUBRESOURCES = {"pods": ("log", "eviction")}


def document(path: str) -> Object | None:
    """Return the discovery document at a path, or None."""
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [_group(group, version) for group, version in GROUPS if group]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/openapi/v3":
        urls = {
            _root(*each)[1:]: {"serverRelativeURL": f"/openapi/v3{_root(*each)}"} for each in GROUPS
        }
        return {"paths": urls}
    for group, version in GROUPS:
        kinds = [kind for kind in KINDS.values() if (kind.group, kind.version) == (group, version)]
        if path == _root(group, version):
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": kinds[0].api_version,
                "resources": [each for kind in kinds for each in _resources(kind)],
            }
        if path == f"/openapi/v3{_root(group, version)}":
            return _openapi(kinds)
    return None


def _root(group: str, version: str) -> str:
    return f"/apis/{group}/{version}" if group else f"/api/{version}"


def _group(group: str, version: str) -> Object:
    entry = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [entry], "preferredVersion": entry}


def _resources(kind: Kind) -> list[Object]:
    resource = {
        "name": kind.plural,
        "singularName": kind.kind.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": VERBS,
        "shortNames": list(kind.short),
    }
    parts = ("status", *_SUBRESOURCES.get(kind.plural, ()))
    verbs = {"verbs": ["get", "patch", "update"], "shortNames": []}
    return [resource, *(resource | verbs | {"name": f"{kind.plural}/{part}"} for part in parts)]


def _openapi(kinds: list[Kind]) -> Object:
    """Return paths with the patch operation of every kind."""
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {}
    for kind in kinds:
        place = "/namespaces/{namespace}" if kind.namespaced else ""
        names = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        operation = {
            "parameters": [parameter],
            "responses": {},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": names,
        }
        path = f"{_root(kind.group, kind.version)}{place}/{kind.plural}/{{name}}"
        paths[path] = {"patch": operation}
    return {"openapi": "3.0.0", "info": {"title": "double", "version": "1"}, "paths": paths}
