"""A double of Google's Compute service, behind Google's own client.

Bodies are held against the schemas of the service's discovery document, which comes with the
client.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

Body = dict[str, Any]


def schemas() -> dict[str, Any]:
    import googleapiclient.discovery_cache

    folder = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    document: Body = json.loads((folder / "compute.v1.json").read_text())
    kinds: Body = document["schemas"]
    return kinds


def faults(value: Any, schema: Body, kinds: Body, place: str) -> list[str]:
    """Return the fields of a value that its schema does not know, or that have another type."""
    if "$ref" in schema:
        schema = kinds[schema["$ref"]]
    kind = {"object": dict, "array": list, "boolean": bool, "string": str}.get(schema["type"])
    if schema["type"] == "integer" or schema.get("format") in ("int64", "uint64"):
        return [] if isinstance(value, int | str) else [f"{place} is no integer"]
    if kind is None or not isinstance(value, kind):
        return [f"{place} is no {schema['type']}"]
    if isinstance(value, list):
        return [
            fault
            for index, each in enumerate(value)
            for fault in faults(each, schema["items"], kinds, f"{place}[{index}]")
        ]
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        unknown = [
            f"{place}.{name} is unknown" for name in value if name not in known and not others
        ]
        for name, each in value.items():
            if inner := known.get(name, others):
                unknown += faults(each, inner, kinds, f"{place}.{name}")
        return unknown
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place} is {value}, not one of {', '.join(schema['enum'])}"]
    return []


class Service:
    """The HTTP side of the service, as `httplib2.Http` for Google's client."""

    def __init__(self) -> None:
        self.instances: dict[str, Body] = {}
        self.calls: list[tuple[str, str]] = []

    def request(
        self, uri: str, method: str = "GET", body: str | None = None, **_: Any
    ) -> tuple[Any, bytes]:
        import httplib2

        path = re.sub(
            r"^/compute/v1/projects/[^/]+/zones/[^/]+", "", urllib.parse.urlsplit(uri).path
        )
        self.calls.append((method, path))
        answer = self._answer(method, path, json.loads(body) if body else {})
        return httplib2.Response({"status": 200}), json.dumps(answer).encode()

    def _answer(self, method: str, path: str, body: Body) -> Body:
        if path.startswith("/operations/"):
            return {"name": path.rpartition("/")[2], "status": "DONE"}
        if path == "/instances" and method == "POST":
            kinds = schemas()
            assert faults(body, kinds["Instance"], kinds, "Instance") == []
            self.instances[body["name"]] = {**body, "status": "RUNNING", "labelFingerprint": "1"}
            return {"name": f"insert-{body['name']}"}
        if path == "/instances":
            return {"items": list(self.instances.values())}
        name = path.rpartition("/")[2]
        if method == "DELETE":
            del self.instances[name]
            return {"name": f"delete-{name}"}
        return self.instances[name]
