"""Find the schemas of objects: KubeRay's definitions, and Kubernetes' own.

- KubeRay's definitions lie in the folder of `KUBERAY_CRDS`, else in `../shared/k8s`.
- Where neither exists, `kuberay.yaml` here has their fields without the embedded pods.
- Kubernetes' schemas come with kubernetes-validate.
- `other_kinds.yaml` has the fields in use of Kueue's and Prometheus' kinds.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

Schema = dict[str, Any]
HERE = Path(__file__).parent
TOP = HERE.parents[1]
SUMMARY = HERE / "kuberay.yaml"
RAY_KINDS = ("RayCluster", "RayJob")
VERSION = kubernetes_validate.latest_version()
_FOLDER = f"kubernetes-json-schema/v{VERSION}-local-strict"
_DEFINITIONS = "https://kubernetes.io/api/_definitions.json#/$defs/"
_CORE = f"{_DEFINITIONS}io.k8s.api.core.v1."
_ANY = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
METADATA = {"$ref": f"{_DEFINITIONS}io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
_EMBEDDED = {
    "template": "PodTemplateSpec",
    "submitterPodTemplate": "PodTemplateSpec",
    "headService": "Service",
    "resources": "ResourceRequirements",
    "securityContext": "SecurityContext",
    "env": "EnvVar",
    "envFrom": "EnvFromSource",
    "volumeMounts": "VolumeMount",
    "valueFrom": "EnvVarSource",
}
"""Fields of KubeRay's kinds with an object, or a list of objects, of Kubernetes inside."""


def folder() -> Path | None:
    """Return the folder with KubeRay's definitions, or None."""
    named = os.environ.get("KUBERAY_CRDS")
    place = Path(named) if named else TOP.parent / "shared" / "k8s"
    return place if (place / "ray.io_rayclusters.yaml").is_file() else None


def full_schema(kind: str, place: Path) -> Schema:
    """Read the schema of a KubeRay kind, version v1, from a folder of definitions."""
    text = (place / f"ray.io_{kind.lower()}s.yaml").read_text()
    definition = yaml.load(text, Loader=_LOADER)
    served = {each["name"]: each["schema"] for each in definition["spec"]["versions"]}
    return dict(served["v1"]["openAPIV3Schema"])


@functools.cache
def ray_schema(kind: str) -> Schema:
    """Return the closed schema of a KubeRay kind: of the definitions, else of the summary."""
    place = folder()
    if place is not None:
        schema = full_schema(kind, place)
    else:
        summaries = yaml.load(SUMMARY.read_text(), Loader=_LOADER)
        schema = summaries[kind]
        if kind == "RayJob":
            cluster = summaries["RayCluster"]["properties"]["spec"]
            schema["properties"]["spec"]["properties"]["rayClusterSpec"] = cluster
    schema = dict(closed(schema))
    schema["properties"]["metadata"] = METADATA
    return schema


def summarize(schema: Any) -> Any:
    """Return a definition without descriptions, and with references to Kubernetes' schemas.

    The status is left open: only the operator writes it.
    """
    if isinstance(schema, list):
        return [summarize(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: summarize(value) for key, value in schema.items() if key != "description"}
    properties = copy.get("properties")
    if isinstance(properties, dict):
        for name, inner in schema["properties"].items():
            properties[name] = _embedded(name, inner) or properties[name]
    return copy


def summarized(kind: str, place: Path) -> Schema:
    """Return the summary of a kind, as `kuberay.yaml` has it."""
    schema: Schema = summarize(full_schema(kind, place))
    schema["properties"]["status"] = _ANY
    schema["properties"]["metadata"] = {"type": "object"}
    if kind == "RayJob":
        schema["properties"]["spec"]["properties"]["rayClusterSpec"] = _ANY
    return schema


def _embedded(name: str, schema: Schema) -> Schema | None:
    """Return a reference in the place of an object of Kubernetes, None for other fields."""
    if name in ("ingressRules", "egressRules", "ingressOptions"):
        return dict(_ANY) if name == "ingressOptions" else {"type": "array"}
    # The groups' own `resources` are a map of Ray's resources.
    if name not in _EMBEDDED or (name == "resources" and "properties" not in schema):
        return None
    reference = {"$ref": f"{_CORE}{_EMBEDDED[name]}"}
    return {"type": "array", "items": reference} if schema["type"] == "array" else reference


@functools.cache
def other_schemas() -> dict[tuple[str, str], Schema]:
    """Return the closed schemas of `other_kinds.yaml` by version and kind."""
    path = HERE / "other_kinds.yaml"
    if not path.exists():
        return {}
    schemas = {}
    for each in yaml.load(path.read_text(), Loader=_LOADER):
        head = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
        properties = {**head, "metadata": METADATA, **each["properties"]}
        schema = closed({"type": "object", "required": ["metadata"], "properties": properties})
        schemas[(each["apiVersion"], each["kind"])] = schema
    return schemas


def core_schema(api_version: str, kind: str) -> Schema:
    """Return the strict schema of a kind of Kubernetes; raise FileNotFoundError if unknown."""
    group, _, version = api_version.rpartition("/")
    stem = f"{group.split('.')[0]}-{version}" if group else version
    schema: Schema = schema_contents(f"{_FOLDER}/{kind.lower()}-{stem}.json", VERSION)
    return schema


@functools.cache
def core_definitions() -> Schema:
    """Return the definitions that all schemas of Kubernetes refer to."""
    document: Schema = schema_contents(f"{_FOLDER}/_definitions.json", VERSION)
    return document


@functools.cache
def schema_of(api_version: str, kind: str) -> Schema:
    """Return the schema of a kind; raise KeyError if it has none."""
    if kind in RAY_KINDS and api_version == "ray.io/v1":
        return ray_schema(kind)
    if (api_version, kind) in other_schemas():
        return other_schemas()[api_version, kind]
    try:
        return core_schema(api_version, kind)
    except FileNotFoundError:
        raise KeyError(f"no schema of {kind} in {api_version}") from None


@functools.cache
def validator(api_version: str, kind: str) -> Draft202012Validator:
    """Return the validator of a kind, made once."""
    return Draft202012Validator(schema_of(api_version, kind), registry=_registry())


@functools.cache
def _registry() -> Registry[Any]:
    return Resource.from_contents(core_definitions()) @ Registry()


def closed(schema: Any) -> Any:
    """Return a schema with unknown fields refused; a cluster would drop them silently."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: closed(value) for key, value in schema.items()}
    keeps = copy.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(copy.get("properties"), dict) and not keeps:
        copy.setdefault("additionalProperties", False)
    return copy


def main(place: Path) -> None:
    """Write the summary of the definitions in a folder, below its opening comment."""
    opening = [line for line in SUMMARY.read_text().splitlines() if line.startswith("#")]
    summaries = {kind: summarized(kind, place) for kind in RAY_KINDS}
    text = yaml.dump(summaries, sort_keys=True, default_flow_style=None, width=100)
    SUMMARY.write_text("\n".join([*opening, text]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
