"""Validate an object as the API server does: schema, defaults, CEL rules.

- Schemas are closed: an unknown field is refused, not dropped.
- CEL rules of custom resources are evaluated by cel-python.
- Rules about the former value (`oldSelf`) need the former object.
- `pod_security.py` has the Pod Security Standard.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from jsonschema import ValidationError

from tests.kube.core_defaults import fill_core_defaults
from tests.kube.definitions import RAY_KINDS, schema_of, validator

Object = dict[str, Any]
_RULES = "x-kubernetes-validations"


class Invalid(Exception):  # noqa: N818 - the word of the API's own answer
    """An object is refused: the path of the field, and the reason."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


def validate(obj: Object, old: Object | None = None) -> None:
    """Raise Invalid for the first wrong field of an object with its defaults filled.

    `old` is the object to be replaced; without it, rules about changes are left out.
    """
    for field in ("apiVersion", "kind", "metadata"):
        if not obj.get(field):
            raise Invalid(field, "is required")
    _check_name(obj["metadata"])
    version, kind = obj["apiVersion"], obj["kind"]
    try:
        errors = list(validator(version, kind).iter_errors(obj))
    except KeyError as error:
        raise Invalid("kind", str(error.args[0])) from None
    if errors:
        raise min(map(_invalid, errors), key=lambda each: each.field)
    for invalid in broken_rules(schema_of(version, kind), obj, old):
        raise invalid


def fill_defaults(obj: Object) -> Object:
    """Return a copy with the defaults of its schema and of Kubernetes' own code."""
    filled = copy.deepcopy(obj)
    if filled.get("kind") in RAY_KINDS:
        _fill(schema_of(filled["apiVersion"], filled["kind"]), filled)
    else:
        fill_core_defaults(filled)
    return filled


def broken_rules(schema: Object, value: Any, old: Any, path: str = "") -> Iterator[Invalid]:
    """Yield the CEL rules of a schema that a value breaks, with the path of the field."""
    for rule in schema.get(_RULES, ()):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        variables = {"self": json_to_cel(value), "oldSelf": json_to_cel(old)}
        if not _program(rule["rule"]).evaluate(variables):
            yield Invalid(path, rule.get("message", rule["rule"]))
    if isinstance(value, dict):
        former = old if isinstance(old, dict) else {}
        for key, inner in value.items():
            child = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(child, dict):
                yield from broken_rules(child, inner, former.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and "items" in schema:
        # Lists are atomic or keyed; rules about changes of their items are not in use.
        for index, item in enumerate(value):
            yield from broken_rules(schema["items"], item, None, f"{path}[{index}]")


@functools.cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _fill(schema: Object, value: Any) -> None:
    """Fill defaults in place: only below objects that exist."""
    if isinstance(value, dict):
        for key, child in schema.get("properties", {}).items():
            if key not in value and "default" in child:
                value[key] = copy.deepcopy(child["default"])
            if key in value:
                _fill(child, value[key])
        others = schema.get("additionalProperties")
        if isinstance(others, dict):
            for key, inner in value.items():
                if key not in schema.get("properties", {}):
                    _fill(others, inner)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            _fill(schema["items"], item)


def _check_name(metadata: Object) -> None:
    """Refuse names that no URL of the API can have."""
    name = metadata.get("name")
    if not name and not metadata.get("generateName"):
        raise Invalid("metadata.name", "name or generateName is required")
    if name and not re.fullmatch(r"[a-z0-9]([-a-z0-9.:]*[a-z0-9])?", name):
        raise Invalid("metadata.name", f"{name!r} is no lower-case DNS name")
    if name and len(name) > 253:
        raise Invalid("metadata.name", "has more than 253 characters")


def _invalid(error: ValidationError) -> Invalid:
    """Translate an error of jsonschema: the field includes an unknown or missing name."""
    while error.context:  # the alternatives of anyOf; the deepest one names the field best
        error = max(error.context, key=lambda each: len(each.absolute_path))
    field = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path
    ).lstrip(".")
    names: list[str] = []
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        names = sorted(set(error.instance) - set(known))
    elif error.validator == "required":
        names = [each for each in error.validator_value if each not in error.instance]
    if names:
        reason = "unknown field" if error.validator == "additionalProperties" else "is required"
        return Invalid(f"{field}.{names[0]}".lstrip("."), reason)
    return Invalid(field, error.message)
