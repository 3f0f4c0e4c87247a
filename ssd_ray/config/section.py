"""A part of the recipe, and what is the same for all parts: refusal of unknown keys, documentation under each field, tuning.

Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def tuning(default: Any, **constraints: Any) -> Any:
    """A field that changes speed, not results."""
    return Field(default, json_schema_extra={"tuning": True}, **constraints)


class Section(BaseModel):
    """A part of the recipe: frozen, no unknown keys, field documentation taken from the text under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Decoding(Section):
    temperature: float = Field(1.0, ge=0)
    """Divides the logits, before truncation; 0 is greedy."""
    top_k: int | None = Field(None, ge=1)
    """Keep the k most likely tokens of the tempered distribution; `null` keeps all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Then keep the smallest set with this mass; 1.0 keeps all."""


def fields(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every leaf of a section as (dotted name, value, documentation)."""
    for name, info in type(section).model_fields.items():
        value, path = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, Section):
            yield from fields(value, f"{path}.")
        elif isinstance(value, dict) and value and all(isinstance(item, Section) for item in value.values()):
            for key, item in value.items():
                yield from fields(item, f"{path}.{key}.")
        else:
            yield path, value, " ".join((info.description or "").split())


def choices(section: Section) -> dict[str, Any]:
    """The values of a section that shape results (no `tuning` fields), as plain JSON."""
    dumped = section.model_dump(mode="json")
    for name, info in type(section).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("tuning"):
            del dumped[name]
    return dumped
