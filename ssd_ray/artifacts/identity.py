"""Identities of artifacts: the fingerprint that follows from a recipe, and the revision of the code that makes them.

A stage's revision keeps artifacts of this version of ssd_ray apart from those of earlier ones:

- It goes up by one with a change of the code that makes other contents from the same recipe, or that can no longer read the
  contents of before. 0 is the revision of every artifact from before there were revisions.
- It is part of the fingerprint of the stage's own artifacts, and not of those that are made from them: they follow the
  contents (`lineage.py`), so they stay where the new revision comes out as the old one did.

docs/design.md says when to raise a revision. Reads and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
REVISIONS: Mapping[str, int] = {
    "benchmark": 1,
    "prompts": 1,
    "contamination": 1,
    "training-problems": 0,
    "samples": 0,
    "dataset": 1,
    "checkpoint": 0,
    "eval-prompts": 1,
    "generations": 0,
    "verdicts": 2,
    "report": 1,
    "completions": 0,
}
"""By kind of artifact; verdicts of all profiles, on samples too, share one, and so do the controls with what they control."""


def revision_of(stage: str) -> int:
    """Return the revision of a stage by its name, such as `samples-naive` or `verdicts-lcb`.

    Raises:
        KeyError: no such stage.
    """
    kind = (
        "verdicts"
        if "verdicts" in stage
        else stage.removesuffix("-naive").removesuffix("-accepted")
    )
    return REVISIONS[kind]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What an artifact is: its stage, the choices that shape it, the recipe digests of its inputs, the stage's revision.

    `revisions` are those above 0 of its stage and of all that it is made from, by stage; they are for the record.
    """

    stage: str
    choices: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    revision: int = 0
    revisions: Mapping[str, int] = field(default_factory=dict)

    @property
    def recipe_digest(self) -> str:
        """Sixteen hex digits over stage, choices and inputs: what the recipe asks for, whatever the version of ssd_ray."""
        return _digest_of([FORMAT, self.stage, self.choices, self.inputs])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over the recipe digest's parts and the revision; of revision 0, the recipe digest."""
        parts = [FORMAT, self.stage, self.choices, self.inputs]
        return _digest_of([*parts, self.revision] if self.revision else parts)

    def record(self) -> dict[str, Any]:
        """Return the contents of `fingerprint.json`."""
        names = ("fingerprint", "revision", "revisions", "stage", "choices", "inputs")
        return {name: getattr(self, name) for name in names}


def _digest_of(parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_asked_for(existing: Mapping[str, Any], identity: Identity) -> bool:
    """Return True if the record of a directory holds what the recipe asks for, by whatever version of ssd_ray."""
    parts = {name: existing.get(name) for name in ("stage", "choices", "inputs")}
    return _digest_of([FORMAT, *parts.values()]) == identity.recipe_digest


def staleness(existing: Mapping[str, Any], identity: Identity) -> str:
    """Say in what the record of a directory (its `fingerprint.json`) differs from an identity: `was made …`."""
    if changes := own_changes(existing, identity):
        return f"was made with other choices ({changes})"
    before = existing.get("inputs", {})
    if others := [name for name, value in identity.inputs.items() if before.get(name) != value]:
        return f"was made from {' and '.join(others)} of other choices"
    revision = existing.get("revision", 0)
    if revision != identity.revision:
        version = "an earlier" if revision < identity.revision else "a later"
        return f"was made by {version} version of ssd_ray (revision {revision}, {identity.revision} here)"
    return f"was made with other choices (stage {existing.get('stage')})"


def own_changes(existing: Mapping[str, Any], identity: Identity) -> str:
    """Name up to three choices in which the record of a directory differs from an identity, inputs apart."""
    return "; ".join(list(differences(existing.get("choices", {}), identity.choices))[:3])


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """The leaves where two nested values differ, as `path: old there, new here`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(
                old.get(key, _UNSET), new.get(key, _UNSET), f"{at}.{key}" if at else key
            )
    elif old != new:
        before, now = ("unset" if value is _UNSET else json.dumps(value) for value in (old, new))
        yield f"{at}: {before} there, {now} here"


_UNSET = object()
