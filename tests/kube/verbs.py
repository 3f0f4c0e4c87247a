"""Requests to the API, without HTTP: a `Call` in, a `Reply` out.

- Verbs: get, list, watch, create, update, patch, delete; status, log and eviction of pods.
- Refusals are raised as `Refused`; `server.py` writes them as Status objects.
- Not here: server-side apply, dry runs, exec, port-forward.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kube.api import Object, Refused, Store
from tests.kube.kinds import KINDS, Kind
from tests.kube.selectors import matches_fields, matches_labels
from tests.kube.tables import as_table

WATCH_S = 300.0
"""Length of a watch without a limit of its own."""
LogFile = Callable[[str, str, str], Path]
"""The file with the log of a container, by namespace, pod and container."""
_BY_GROUP = {(kind.group, kind.version, kind.plural): kind for kind in KINDS.values()}
_ENDED = ("Succeeded", "Failed")
_PREFIX = re.compile(rb"^[0-9]{4}-[0-9-]+T\S+ (stdout|stderr) [FP] ")
_SUCCESS: Object = {"kind": "Status", "apiVersion": "v1", "status": "Success"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The part of the API named by a path."""

    kind: Kind
    namespace: str
    """Empty for all namespaces."""
    name: str
    part: str
    """Subresource."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Arguments for the store."""
        return self.kind.plural, self.namespace, self.name

    @property
    def resource(self) -> str:
        """Plural name with the subresource, as in the rules of a role."""
        return f"{self.kind.plural}/{self.part}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request."""

    target: Target
    query: Mapping[str, str]
    body: Any
    content_type: str
    accept: str

    def is_selected(self, obj: Object) -> bool:
        """Return True if an object meets the selectors of the request."""
        labels = obj["metadata"].get("labels", {})
        return matches_labels(self.query.get("labelSelector", ""), labels) and matches_fields(
            self.query.get("fieldSelector", ""), obj
        )

    def shown(self, items: list[Object], otherwise: Object) -> Object:
        """Return a table where kubectl asks for one, else the objects as they are."""
        if "as=Table" in self.accept:
            return as_table(self.target.kind, items)
        return otherwise


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer: a document, or parts to be sent as they come."""

    code: int = 200
    document: Object | None = None
    parts: Iterator[bytes] | None = None
    content_type: str = "application/json"


def target_of(path: str) -> Target | None:
    """Return the target of a path, or None if it names no known kind."""
    match [part for part in path.split("/") if part]:
        case ["api", version, *rest]:
            group = ""
        case ["apis", group, version, *rest]:
            pass
        case _:
            return None
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    plural, name, part, *_ = [*rest, "", "", ""]
    kind = _BY_GROUP.get((group, version, plural))
    if kind is None:
        return None
    return Target(kind=kind, namespace=namespace, name=name, part=part)


def verb_of(method: str, target: Target, query: Mapping[str, str]) -> str:
    """Return the verb of a request, as in the rules of a role."""
    if method == "GET" and not target.name:
        return "watch" if query.get("watch") in ("1", "true") else "list"
    if method == "DELETE" and not target.name:
        return "deletecollection"
    names = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    return names[method]


def status_of(refused: Refused) -> Object:
    """Return the Status object of a refusal."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": refused.code,
        "reason": refused.reason,
        "message": refused.message,
    }


class Verbs:
    """The verbs over one store."""

    def __init__(self, store: Store, log_file: LogFile) -> None:
        self._store = store
        self._log_file = log_file
        self._verbs: dict[str, Callable[[Call], Reply]] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_all,
        }

    def answer(self, verb: str, call: Call) -> Reply:
        """Return the answer to a call, or raise `Refused`."""
        return self._verbs[verb](call)

    def _get(self, call: Call) -> Reply:
        obj = self._existing(call.target)
        if call.target.part == "log":
            return Reply(parts=self._log(call, obj), content_type="text/plain")
        return Reply(document=call.shown([obj], obj))

    def _list(self, call: Call) -> Reply:
        version = self._store.version
        items = list(filter(call.is_selected, self._items(call)))
        kind = call.target.kind
        listing = {
            "kind": f"{kind.kind}List",
            "apiVersion": kind.api_version,
            "metadata": {"resourceVersion": str(version)},
            "items": items,
        }
        return Reply(document=call.shown(items, listing))

    def _watch(self, call: Call) -> Reply:
        if "sendInitialEvents" in call.query:
            # Clients fall back to a list and a watch.
            raise Refused(422, "Invalid", "sendInitialEvents: Forbidden: not served")
        return Reply(parts=self._changes(call))

    def _changes(self, call: Call) -> Iterator[bytes]:
        """Yield lines of a watch; an object no longer selected is reported as deleted."""
        since = int(call.query.get("resourceVersion") or 0)
        length_s = float(call.query.get("timeoutSeconds") or WATCH_S)
        seen: set[str] = set()
        try:
            for _, event, obj in self._store.watch(call.target.kind.plural, since, length_s):
                if call.target.namespace not in ("", obj["metadata"].get("namespace")):
                    continue
                uid = obj["metadata"]["uid"]
                if call.is_selected(obj):
                    seen.add(uid)
                elif uid in seen:
                    event = "DELETED"
                    seen.remove(uid)
                else:
                    continue
                line = {"type": event, "object": call.shown([obj], obj)}
                yield json.dumps(line).encode() + b"\n"
        except Refused as refused:
            yield json.dumps({"type": "ERROR", "object": status_of(refused)}).encode() + b"\n"

    def _create(self, call: Call) -> Reply:
        if call.target.part == "eviction":
            return self._evict(call)
        body = call.body
        body.setdefault("metadata", {})
        if call.target.kind.namespaced:
            body["metadata"]["namespace"] = call.target.namespace
        return Reply(code=201, document=self._store.create(call.target.kind.plural, body))

    def _update(self, call: Call) -> Reply:
        if call.target.part == "status":
            status = call.body.get("status", {})
            return Reply(document=self._store.set_status(*call.target.key, status))
        return Reply(document=self._store.replace(call.target.kind.plural, call.body))

    def _patch(self, call: Call) -> Reply:
        patched = self._store.patch(
            *call.target.key,
            call.body,
            content_type=call.content_type,
            status=call.target.part == "status",
        )
        return Reply(document=patched)

    def _delete(self, call: Call) -> Reply:
        target, options = call.target, call.body or {}
        grace = call.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        self._store.delete(*target.key, None if grace is None else int(grace))
        details = {"name": target.name, "kind": target.kind.plural, "group": target.kind.group}
        return Reply(document=self._store.get(*target.key) or _SUCCESS | {"details": details})

    def _delete_all(self, call: Call) -> Reply:
        for obj in filter(call.is_selected, self._items(call)):
            metadata = obj["metadata"]
            place = metadata.get("namespace", "")
            self._store.delete(call.target.kind.plural, place, metadata["name"])
        return Reply(document=_SUCCESS)

    def _evict(self, call: Call) -> Reply:
        """Delete a pod unless a disruption budget holds it."""
        labels = self._existing(call.target)["metadata"].get("labels", {})
        namespace = call.target.namespace
        for budget in self._store.list("poddisruptionbudgets", namespace):
            selected = budget["spec"].get("selector", {}).get("matchLabels", {})
            pods = self._store.list("pods", namespace, selected)
            healthy = sum(
                pod["status"].get("phase") == "Running"
                and "deletionTimestamp" not in pod["metadata"]
                for pod in pods
            )
            minimum = int(budget["spec"].get("minAvailable", 0))
            spare = int(budget["spec"].get("maxUnavailable", healthy - minimum))
            if selected.items() <= labels.items() and spare < 1:
                message = "Cannot evict pod as it would violate the pod's disruption budget."
                raise Refused(429, "TooManyRequests", message)
        grace = ((call.body or {}).get("deleteOptions") or {}).get("gracePeriodSeconds")
        self._store.delete(*call.target.key, grace)
        return Reply(code=201, document=_SUCCESS)

    def _existing(self, target: Target) -> Object:
        obj = self._store.get(*target.key)
        if obj is None:
            kind = target.kind
            name = f"{kind.plural}.{kind.group}" if kind.group else kind.plural
            raise Refused(404, "NotFound", f'{name} "{target.name}" not found')
        return obj

    def _items(self, call: Call) -> list[Object]:
        return self._store.list(call.target.kind.plural, call.target.namespace)

    def _log(self, call: Call, pod: Object) -> Iterator[bytes]:
        """Yield the log of a container, and go on with it while the pod runs."""
        container = call.query.get("container", pod["spec"]["containers"][0]["name"])
        path = self._log_file(call.target.namespace, call.target.name, container)
        lines, position = _read(path, 0)
        if "tailLines" in call.query:
            count = int(call.query["tailLines"])
            lines = lines[-count:] if count else []
        yield b"".join(lines)
        while call.query.get("follow") in ("1", "true"):
            current = self._store.get(*call.target.key) or {"status": {"phase": "Failed"}}
            lines, position = _read(path, position)
            yield b"".join(lines)
            if current.get("status", {}).get("phase") in _ENDED:
                return
            time.sleep(0.2)


def _read(path: Path, position: int) -> tuple[list[bytes], int]:
    """Return the complete lines of a log from a position on, and the position after them.

    Podman's files have a prefix in each line, as those of a real node; it is left out.
    """
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    lines = data.splitlines(keepends=True)
    return [_PREFIX.sub(b"", line, count=1) for line in lines], position + len(data)
