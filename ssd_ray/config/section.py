"""A part of the recipe, and what is the same for all parts: refusal of unknown keys, documentation under each field, tuning.

Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

_NUMBERS = (int, float, int | None, float | None)


def tuning(default: Any, **constraints: Any) -> Any:
    """A field that changes speed, not results."""
    return Field(default, json_schema_extra={"tuning": True}, **constraints)


class Section(BaseModel):
    """A part of the recipe: frozen, no unknown keys, field documentation taken from the text under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in _NUMBERS:
            raise ValueError(f"use a number, not {str(value).lower()}")
        return value


class Decoding(Section):
    temperature: float = 1.0
    """Divides the logits, before truncation; 0 is greedy, else 0.01 to 2, which is what vLLM takes."""
    top_k: int | None = None
    """Keep the k most likely tokens of the tempered distribution; `null` keeps all."""
    top_p: float = 1.0
    """Then keep the smallest set with this mass; 1.0 keeps all."""

    @field_validator("temperature")
    @classmethod
    def _temperature_that_vllm_takes(cls, value: float) -> float:
        if value != 0 and not 0.01 <= value <= 2:
            raise ValueError("use 0 for greedy decoding, or 0.01 to 2 (vLLM raises smaller ones to 0.01 and refuses larger)")
        return value

    @field_validator("top_k")
    @classmethod
    def _top_k_that_keeps_something(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("use 1 or more, or null to keep all tokens")
        return value

    @field_validator("top_p")
    @classmethod
    def _top_p_that_is_a_mass(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise ValueError("use a mass above 0 and up to 1, where 1 keeps all tokens")
        return value


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
