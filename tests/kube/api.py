"""The API server's state: objects by kind, namespace and name, with versions and watches.

- Objects are copied in and out, so no caller shares one with the store.
- Every write has a resource version of its own; a write without a change has none.
- `status` is a subresource: only `set_status` writes it.
- An object goes with the last of its owners, as under Kubernetes' garbage collector.
- A bound pod is deleted in two steps: `delete` gives notice, `finalize` removes it.

`server.py` serves a store over HTTPS. The operator, the scheduler and the kubelet use it directly.
"""

from __future__ import annotations

import copy
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.kube.kinds import KINDS
from tests.kube.objects import (
    Key,
    Object,
    Refused,
    encode_secret,
    grace_of,
    keep,
    key_for,
    key_of,
    now,
    prepare,
)
from tests.kube.patches import PatchError, json_patch, merge_patch, strategic_patch

__all__ = ["Object", "Refused", "Store"]

Change = tuple[int, str, Object]
"""Resource version; ADDED, MODIFIED or DELETED; the object."""
Admit = Callable[[str, Object, "Object | None", "Object | None"], None]
"""Admission by plural name, new object, old object, namespace: defaults in place, or `Refused`."""

Entries = list[tuple[int, str, str, Object]]
"""Changes with the plural name before the object."""

HISTORY = 4096
"""Changes kept for watches; an older version is refused with 410."""
PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "application/json-patch+json": json_patch,
    "application/merge-patch+json": merge_patch,
    "application/strategic-merge-patch+json": strategic_patch,
}


class Store:
    """All objects of the cluster; safe to use from several threads."""

    def __init__(self, admit: Admit = lambda plural, obj, old, namespace: None) -> None:
        self._admit = admit
        self._objects: dict[Key, Object] = {}
        self._uids: set[str] = set()
        self._history: deque[tuple[int, str, str, Object]] = deque(maxlen=HISTORY)
        self._version = 0
        self._changed = threading.Condition(threading.RLock())
        for name in ("default", "kube-system"):
            self.create("namespaces", {"metadata": {"name": name}})

    @property
    def version(self) -> int:
        """The resource version of the last write."""
        return self._version

    def create(self, plural: str, obj: Object) -> Object:
        """Add an object. Return it with defaults, uid and resource version."""
        obj = copy.deepcopy(obj)
        prepare(plural, obj, str(uuid.uuid4()))
        key = key_of(plural, obj)
        namespace = self._namespace_of(key)
        self._admit(plural, obj, None, namespace)
        with self._changed:
            if key in self._objects:
                raise Refused(409, "AlreadyExists", f'{plural} "{key[2]}" already exists')
            created = self._write("ADDED", key, obj)
            if self._is_orphan(obj):
                self.delete(*key)
            elif plural == "namespaces":
                self.create(
                    "serviceaccounts", {"metadata": {"name": "default", "namespace": key[2]}}
                )
            return created

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        """Return a copy of an object, or None."""
        return copy.deepcopy(self._objects.get(key_for(plural, namespace, name)))

    def list(
        self, plural: str, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """Return copies of the objects of a kind, sorted by namespace and name.

        An empty `namespace` means all of them. An object matches if it has all of `labels`.
        """
        with self._changed:
            matches = [
                (key, obj)
                for key, obj in self._objects.items()
                if key[0] == plural
                and namespace in ("", key[1])
                and (labels or {}).items() <= obj["metadata"].get("labels", {}).items()
            ]
        return [copy.deepcopy(obj) for _, obj in sorted(matches, key=lambda pair: pair[0])]

    def replace(self, plural: str, obj: Object) -> Object:
        """Write an object, its status left out. A stale `resourceVersion` is a conflict."""
        new = copy.deepcopy(obj)
        new["metadata"].setdefault("namespace", "default")
        return self._update(key_of(plural, new), lambda old: copy.deepcopy(new))

    def patch(
        self,
        plural: str,
        namespace: str,
        name: str,
        patch: Any,
        *,
        content_type: str,
        status: bool = False,
    ) -> Object:
        """Patch an object, its status left out; or with `status` its status and nothing else."""
        apply = PATCHES.get(content_type)
        if apply is None:
            raise Refused(
                415, "UnsupportedMediaType", f"patches of type {content_type} are unknown"
            )

        def change(old: Object) -> Object:
            try:
                new: Object = apply(old, patch)
            except PatchError as error:
                raise Refused(422, "Invalid", f"{plural} {name}: {error}") from error
            return new

        key = key_for(plural, namespace, name)
        if status:
            new = change(self._existing(key))
            return self.set_status(*key, new.get("status", {}))
        return self._update(key, change)

    def set_status(self, plural: str, namespace: str, name: str, status: Object) -> Object:
        """Write the status of an object and nothing else."""
        key = key_for(plural, namespace, name)
        with self._changed:
            old = self._existing(key)
            if old.get("status") == status:
                return copy.deepcopy(old)
            return self._write("MODIFIED", key, old | {"status": copy.deepcopy(status)})

    def delete(self, plural: str, namespace: str, name: str, grace_s: int | None = None) -> None:
        """Delete an object; a bound pod gets notice, and `finalize` removes it.

        Without `grace_s` the pod's `terminationGracePeriodSeconds` counts. A second call can
        only shorten the notice. Finalizers keep an object until they are removed.
        """
        key = key_for(plural, namespace, name)
        with self._changed:
            obj = self._existing(key)
            grace = grace_of(plural, obj, grace_s)
            if grace == 0 and not obj["metadata"].get("finalizers"):
                self._remove(key)
                return
            before = obj["metadata"].get("deletionGracePeriodSeconds", grace)
            if "deletionTimestamp" in obj["metadata"] and grace >= before:
                return
            metadata = obj["metadata"] | {"deletionTimestamp": now(grace)}
            metadata["deletionGracePeriodSeconds"] = grace
            self._write("MODIFIED", key, obj | {"metadata": metadata})

    def finalize(self, plural: str, namespace: str, name: str) -> None:
        """Remove a deleted object at once: its containers are gone."""
        with self._changed:
            key = key_for(plural, namespace, name)
            if key in self._objects:
                self._remove(key)

    def watch(self, plural: str, since: int = 0, timeout_s: float = 60.0) -> Iterator[Change]:
        """Yield the changes of a kind after a version, until the time is over.

        From version 0 on, existing objects come first, as ADDED.
        """
        deadline = time.monotonic() + timeout_s
        if since == 0:
            with self._changed:
                existing = self.list(plural)
                since = self._version
            yield from ((int(obj["metadata"]["resourceVersion"]), "ADDED", obj) for obj in existing)
        while True:
            for version, event, name, obj in self._after(since):
                since = version
                if name == plural:
                    yield version, event, copy.deepcopy(obj)
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.wait(since, left)

    def wait(self, since: int, timeout_s: float) -> int:
        """Wait for a write after version `since`, or for the time. Return the version."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > since, timeout_s)
            return self._version

    def _after(self, since: int) -> Entries:
        with self._changed:
            if self._history and len(self._history) == HISTORY and self._history[0][0] > since + 1:
                raise Refused(410, "Expired", f"the version {since} is too old")
            return [entry for entry in self._history if entry[0] > since]

    def _update(self, key: Key, change: Callable[[Object], Object]) -> Object:
        """Write `change` of an object; repeat it after another write in between."""
        while True:
            old = self._existing(key)
            new = change(copy.deepcopy(old))
            version = new["metadata"].get("resourceVersion", old["metadata"]["resourceVersion"])
            if version != old["metadata"]["resourceVersion"]:
                message = f'{key[0]} "{key[2]}" has been modified; apply the change to the latest'
                raise Refused(409, "Conflict", message)
            keep(old, new)
            encode_secret(new)
            self._admit(key[0], new, old, self._namespace_of(key))
            with self._changed:
                if self._objects.get(key) is not old:
                    continue
                if new == old:
                    return copy.deepcopy(old)
                if new.get("spec") != old.get("spec"):
                    new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
                written = self._write("MODIFIED", key, new)
                if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
                    self.delete(*key)
                return written

    def _existing(self, key: Key) -> Object:
        obj = self._objects.get(key)
        if obj is None:
            raise Refused(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return obj

    def _namespace_of(self, key: Key) -> Object | None:
        if not KINDS[key[0]].namespaced:
            return None
        return copy.deepcopy(self._existing(("namespaces", "", key[1])))

    def _write(self, event: str, key: Key, obj: Object) -> Object:
        """Store an object under a new version. Call with the lock held."""
        self._version += 1
        obj = obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self._version)}}
        self._objects[key] = obj
        self._uids.add(obj["metadata"]["uid"])
        self._history.append((self._version, event, key[0], obj))
        self._changed.notify_all()
        return copy.deepcopy(obj)

    def _remove(self, key: Key) -> None:
        """Remove an object, and all objects without another owner. Call with the lock held."""
        self._write("DELETED", key, self._objects[key])
        self._uids.discard(self._objects.pop(key)["metadata"]["uid"])
        for dependent in list(self._objects):
            obj = self._objects.get(dependent)
            if obj is None or "deletionTimestamp" in obj["metadata"]:
                continue
            if self._is_orphan(obj) or (key[0] == "namespaces" and dependent[1] == key[2]):
                self.delete(*dependent)

    def _is_orphan(self, obj: Object) -> bool:
        owners = {owner["uid"] for owner in obj["metadata"].get("ownerReferences", [])}
        return bool(owners) and owners.isdisjoint(self._uids)
