"""Label and field selectors of requests."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.kube.api import Object

_SET = re.compile(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)")
_EQUAL = re.compile(r"([^!=]+?)\s*(!=|==?)\s*(.*)")


def matches_labels(selector: str, labels: Mapping[str, str]) -> bool:
    """Return True if labels meet a selector such as `a=b,c!=d,e in (f,g),h,!i`."""
    terms = (term.strip() for term in re.split(r",(?![^(]*\))", selector))
    return all(_holds(term, labels) for term in terms if term)


def matches_fields(selector: str, obj: Object) -> bool:
    """Return True if an object meets a field selector such as `metadata.name=a`."""
    for term in filter(None, selector.split(",")):
        match = _EQUAL.fullmatch(term)
        if match is None:
            return False
        value: object = obj
        for part in match[1].split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if (str(value or "") == match[3]) == (match[2] == "!="):
            return False
    return True


def _holds(term: str, labels: Mapping[str, str]) -> bool:
    if match := _SET.fullmatch(term):
        values = {value.strip() for value in match[3].split(",")}
        return (labels.get(match[1]) in values) == (match[2] == "in")
    if match := _EQUAL.fullmatch(term):
        return (labels.get(match[1]) == match[3]) == (match[2] != "!=")
    return (term.removeprefix("!") in labels) != term.startswith("!")
