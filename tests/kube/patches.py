"""Patches of Kubernetes objects: JSON patch, JSON merge patch, strategic merge patch.

- JSON patch (RFC 6902) is used by Ray's autoscaler.
- JSON merge patch (RFC 7396) is used by `kubectl apply` for custom resources.
- Strategic merge patch is used by `kubectl apply` for built-in kinds: lists merge by a key.

Every function returns a new object and leaves its arguments alone.
"""

from __future__ import annotations

import copy
from typing import Any

Json = Any

_KEYS = {
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port"),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Merge keys of lists by the name of their field; all other lists are replaced."""
_PRIMITIVE_LISTS = {"finalizers"}
_DELETED = "$deleteFromPrimitiveList/"


class PatchError(ValueError):
    """A patch does not fit its object."""


def json_patch(obj: Json, operations: list[dict[str, Json]]) -> Json:
    """Apply operations of a JSON patch.

    As in Kubernetes, `replace` sets a missing key of an object without complaint
    (evanphx/json-patch v4, `partialDoc.get`).
    """
    result = copy.deepcopy(obj)
    for operation in operations:
        kind, path = operation.get("op"), str(operation.get("path", ""))
        value = copy.deepcopy(operation.get("value"))
        if kind in {"move", "copy"}:
            value = copy.deepcopy(_at(result, _parts(str(operation["from"]))))
            if kind == "move":
                _edit(result, "remove", str(operation["from"]), None)
            kind = "add"
        _edit(result, str(kind), path, value)
    return result


def merge_patch(obj: Json, patch: Json) -> Json:
    """Apply a JSON merge patch: objects merge, null removes, all else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(obj) if isinstance(obj, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_patch(obj: Json, patch: Json) -> Json:
    """Apply a strategic merge patch with the directives sent by `kubectl apply`."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    if patch.get("$patch") == "replace":
        return {key: copy.deepcopy(value) for key, value in patch.items() if key != "$patch"}
    result = dict(obj) if isinstance(obj, dict) else {}
    retained = patch.get("$retainKeys")
    if retained is not None:
        result = {key: value for key, value in result.items() if key in retained}
    for key, value in patch.items():
        if key.startswith(_DELETED):
            field = key.removeprefix(_DELETED)
            result[field] = [each for each in result.get(field, []) if each not in value]
        elif value is None:
            result.pop(key, None)
        elif not key.startswith("$"):
            result[key] = _merged(key, result.get(key), value)
    return result


def _merged(field: str, old: Json, new: Json) -> Json:
    """Merge one field: lists with a known key by element, all else by `strategic_patch`."""
    if not isinstance(new, list):
        return strategic_patch(old, new)
    if field in _PRIMITIVE_LISTS:
        return [*(old or []), *(each for each in new if each not in (old or []))]
    key = next((key for key in _KEYS.get(field, ()) if new and key in new[0]), None)
    if key is None:
        return copy.deepcopy(new)
    elements = {each.get(key): each for each in old or []}
    for each in new:
        if each.get("$patch") == "delete":
            elements.pop(each[key], None)
        else:
            elements[each[key]] = strategic_patch(elements.get(each[key]), each)
    return list(elements.values())


def _parts(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _at(obj: Json, parts: list[str]) -> Json:
    """Return the value at a path."""
    try:
        for part in parts:
            obj = obj[int(part)] if isinstance(obj, list) else obj[part]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PatchError(f"the path /{'/'.join(parts)} does not exist") from error
    return obj


def _edit(obj: Json, kind: str, path: str, value: Json) -> None:
    """Apply one operation in place."""
    *parents, key = _parts(path) or [""]
    parent = _at(obj, parents)
    if kind == "test":
        if _at(parent, [key]) != value:
            raise PatchError(f"the value at {path} is not {value!r}")
    elif isinstance(parent, list) and kind == "add":
        parent.insert(len(parent) if key == "-" else int(key), value)
    elif isinstance(parent, list) or kind == "remove":
        _at(parent, [key])
        index: Any = int(key) if isinstance(parent, list) else key
        if kind == "remove":
            del parent[index]
        else:
            parent[index] = value
    elif kind in {"add", "replace"} and isinstance(parent, dict):
        parent[key] = value
    else:
        raise PatchError(f"the operation {kind} at {path} is not possible")
