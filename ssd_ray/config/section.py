"""Base class of the sections of a recipe, and functions over their fields.

- Unknown keys are refused.
- The text under a field is its documentation.
- A field marked `tuning` does not change results. Fingerprints leave it out.

Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_NUMBERS = (int, float, int | None, float | None)
# Pydantic's errors by type, where its own message would talk about Python.
_REMEDIES = {
    **dict.fromkeys(("model_type", "dict_type"), "use a mapping of keys to values"),
    "bool_parsing": "use true or false",
    "too_short": "give at least one entry",
    **dict.fromkeys(("tuple_type", "list_type"), "use a list in brackets, such as [a, b]"),
}


def remedy(kind: str, message: str) -> str:
    """Return an error message of pydantic as advice."""
    expected = message.removeprefix("Value error, ").removeprefix("Input should be ")
    expected = expected.partition(", unable to parse")[0]
    if kind.startswith(("greater_than", "less_than")):
        return f"use a number {expected}"
    if kind in _REMEDIES:
        return _REMEDIES[kind]
    if kind == "literal_error":
        is_list = ", " in expected or " or " in expected
        return f"use {'one of ' if is_list else ''}{expected}"
    return f"use {expected}" if message.startswith("Input should be ") else expected


def tuning(default: Any, **constraints: Any) -> Any:
    """Return a field that does not change results, such as one for speed."""
    return Field(default, json_schema_extra={"tuning": True}, **constraints)


def omitted_at(default: Any, **constraints: Any) -> Any:
    """Return a field left out of a document at its default, so that it changes no fingerprint."""
    return Field(default, exclude_if=lambda value: bool(value == default), **constraints)


class Section(BaseModel):
    """Section of a recipe: frozen, without unknown keys, documented by the text under fields."""

    # YAML's `.inf` and `.nan` are floats, and make no sense in any field.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic would take `true` for 1.
        if (
            isinstance(value, bool)
            and cls.model_fields[str(info.field_name)].annotation in _NUMBERS
        ):
            raise ValueError(f"use a number, not {str(value).lower()}")
        return value


class Decoding(Section):
    """Choice of the next token: temperature first, then top-k, then top-p."""

    temperature: float = 1.0
    """Sampling temperature, applied to the logits before truncation. 0 is greedy, else 0.01 to 2,
    the range of vLLM.
    """
    top_k: int | None = None
    """Keep the k most likely tokens of the tempered distribution. `null` keeps all."""
    top_p: float = 1.0
    """Then keep the smallest set of tokens with this probability mass. 1.0 keeps all."""

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, value: float) -> float:
        if value != 0 and not 0.01 <= value <= 2:
            raise ValueError(
                "use 0 for greedy decoding, or 0.01 to 2 (vLLM raises smaller ones to 0.01 and "
                "refuses larger)"
            )
        return value

    @field_validator("top_k")
    @classmethod
    def _check_top_k(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("use 1 or more, or null to keep all tokens")
        return value

    @field_validator("top_p")
    @classmethod
    def _check_top_p(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise ValueError("use a mass above 0 and up to 1, where 1 keeps all tokens")
        return value


class AdaptiveDecoding(Decoding):
    """Decoding with a temperature of its own at every token, by the entropy of the model."""

    entropy_theta: float | None = omitted_at(None, gt=0)
    """Lower the temperature where the model is sure: temperature * 0.8 ** (theta / entropy), with
    the entropy of the next token in nats (arXiv 2403.14541). `null` keeps one temperature.
    """
    min_p: float = omitted_at(0.0, ge=0, lt=1)
    """Then keep tokens with at least this share of the largest probability (arXiv 2407.01082).
    Comes after the temperature and before top-k and top-p. 0 keeps all.
    """

    @property
    def is_adaptive(self) -> bool:
        """True if this package's processor shapes the logits."""
        return self.entropy_theta is not None or self.min_p > 0

    @model_validator(mode="after")
    def _check_adaptive(self) -> AdaptiveDecoding:
        if self.is_adaptive and self.temperature == 0:
            raise ValueError(
                "entropy_theta and min_p do not change greedy decoding: set temperature above 0"
            )
        return self


def fields(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield the leaves of a section as (dotted name, value, documentation)."""
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        path = f"{prefix}{name}"
        if isinstance(value, Section):
            yield from fields(value, f"{path}.")
        elif (
            isinstance(value, dict)
            and value
            and all(isinstance(item, Section) for item in value.values())
        ):
            for key, item in value.items():
                yield from fields(item, f"{path}.{key}.")
        else:
            yield path, value, " ".join((info.description or "").split())


@dataclass(frozen=True, kw_only=True)
class Default:
    """A field of a section's type, with the default of its class."""

    name: str
    """Dotted name. `NAME` is the key of a mapping, `[]` an item of a list."""
    value: Any
    """The default, or `REQUIRED` where there is none."""
    documentation: str


REQUIRED = "required"


def defaults(
    section: type[Section], prefix: str = "", instance: Section | None = None
) -> Iterator[Default]:
    """Yield every field of a section's type with its default, nested sections included.

    Args:
        section: The type. A field without a default is listed as `REQUIRED`.
        prefix: Start of every dotted name.
        instance: The section as its parent states it by default, if it does. Its values replace
            the defaults of the type.
    """
    for name, info in section.model_fields.items():
        path = f"{prefix}{name}"
        value = (
            info.get_default(call_default_factory=True)
            if instance is None
            else getattr(instance, name)
        )
        # The parent's default may differ from that of the section's own class.
        if isinstance(value, Section):
            yield from defaults(type(value), f"{path}.", value)
            continue
        nested, key = _nested(info.annotation)
        # A section without a default is listed by its fields alone, unless a mapping or list
        # holds it: the key is then a choice of its own.
        stated = value is not PydanticUndefined
        if stated or nested is None or key:
            documentation = " ".join((info.description or "").split())
            yield Default(
                name=path, value=value if stated else REQUIRED, documentation=documentation
            )
        if nested is not None:
            yield from defaults(nested, f"{path}{key}.")


def _nested(annotation: Any) -> tuple[type[Section] | None, str]:
    """Return the section within an annotation, and its key: `.NAME`, `[]` or nothing."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, ""
    key = {dict: ".NAME", tuple: "[]", list: "[]"}.get(get_origin(annotation), "")
    sections = (_nested(argument)[0] for argument in get_args(annotation))
    return next((section for section in sections if section is not None), None), key


def choices(section: Section) -> dict[str, object]:
    """Return the values of a section as plain JSON, without tuning fields at any depth."""
    dumped: dict[str, object] = section.model_dump(mode="json", exclude=_tuning_fields(section))
    return dumped


def _tuning_fields(value: Any) -> Any:
    """Return the tuning fields of a value, in the form of pydantic's `exclude`.

    The fields of nested sections are included.
    """
    if isinstance(value, Section):
        items: dict[Any, Any] = {name: getattr(value, name) for name in type(value).model_fields}
        tuned = {name for name, info in type(value).model_fields.items() if _is_tuning(info)}
    elif isinstance(value, dict | tuple | list):
        items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        tuned = set()
    else:
        return {}
    # `exclude` takes nested mappings, and True where a complete field is left out.
    within = {key: _tuning_fields(item) for key, item in items.items() if key not in tuned}
    return {key: inner for key, inner in within.items() if inner} | dict.fromkeys(tuned, True)


def _is_tuning(info: FieldInfo) -> bool:
    extra = info.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("tuning"))
