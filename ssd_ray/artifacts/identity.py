"""Identity of an artifact: a fingerprint from the recipe, and a revision of the code.

A stage's revision separates its artifacts from those of earlier versions of ssd_ray:

- Raise it by one when the code makes other contents from the same recipe, or cannot read the
  earlier ones. Artifacts made before revisions existed have revision 0.
- It is part of the fingerprints of the stage's own artifacts alone. Later stages compare contents
  (`lineage.py`), so they stay valid if a new revision makes the same contents.

docs/design.md has the rules. `fingerprint.json` records an identity. Does no I/O.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ssd_ray.artifacts.files import Json

FORMAT = 1
"""Format of fingerprints; another one makes every artifact stale."""
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
    "forecast": 1,
    "states": 0,
    "probes": 0,
    "sweep": 0,
    "completions": 0,
}
"""Revisions by kind of artifact.

Verdicts of all profiles share one. A control arm has none of its own.
"""


def revision_of(stage: str) -> int:
    """Return the revision of a stage by its name, such as `samples-naive` or `verdicts-lcb`.

    Raises:
        KeyError: no such stage.
    """
    if "verdicts" in stage:
        return REVISIONS["verdicts"]
    # The artifacts of a control are named after the kind: `samples-bad-data`.
    kind = next((name for name in REVISIONS if stage.startswith(f"{name}-")), stage)
    return REVISIONS[stage if stage in REVISIONS else kind]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Stage, choices, inputs and revision of an artifact.

    `inputs` are recipe digests by name. `revisions` holds the revisions above 0 of the stage and of
    all its inputs. It is written to `fingerprint.json` and enters no digest.
    """

    stage: str
    choices: Mapping[str, object]
    inputs: Mapping[str, str] = field(default_factory=dict)
    revision: int = 0
    revisions: Mapping[str, int] = field(default_factory=dict)

    @property
    def recipe_digest(self) -> str:
        """Sixteen hex digits over stage, choices and inputs, equal in all versions of ssd_ray."""
        return _digest_of([FORMAT, self.stage, self.choices, self.inputs])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over the recipe and the revision; at revision 0, the recipe digest."""
        parts = [FORMAT, self.stage, self.choices, self.inputs]
        # Revision 0 adds nothing, so artifacts made before revisions existed stay valid.
        return _digest_of([*parts, self.revision] if self.revision else parts)

    def record(self) -> Json:
        """Return the contents of `fingerprint.json`."""
        names = ("fingerprint", "revision", "revisions", "stage", "choices", "inputs")
        return {name: getattr(self, name) for name in names}


def _digest_of(parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def has_recipe_digest_of(existing: Json, identity: Identity) -> bool:
    """Return True if a directory's record has the recipe digest of `identity`."""
    parts = {name: existing.get(name) for name in ("stage", "choices", "inputs")}
    return _digest_of([FORMAT, *parts.values()]) == identity.recipe_digest


def staleness(existing: Json, identity: Identity) -> str:
    """Describe how a directory's record differs from an identity, as `was made …`.

    `existing` is the contents of its `fingerprint.json`.
    """
    # Choices come first: they are the user's to change, inputs and revisions follow.
    if changes := own_changes(existing, identity):
        return f"was made with other choices ({changes})"
    before = existing.get("inputs", {})
    if others := [name for name, value in identity.inputs.items() if before.get(name) != value]:
        return f"was made from {' and '.join(others)} with other choices"
    revision = existing.get("revision", 0)
    if revision != identity.revision:
        version = "an earlier" if revision < identity.revision else "a later"
        return (
            f"was made by {version} version of ssd_ray "
            f"(revision {revision}, {identity.revision} here)"
        )
    return f"was made with other choices (stage {existing.get('stage')})"


def own_changes(existing: Json, identity: Identity) -> str:
    """Describe up to three differing choices of a directory's record and an identity."""
    return "; ".join(list(differences(existing.get("choices", {}), identity.choices))[:3])


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Yield the differing leaves of two nested values, as `path: old there, new here`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(
                old.get(key, _UNSET), new.get(key, _UNSET), f"{at}.{key}" if at else key
            )
    elif old != new:
        before, now = ("unset" if value is _UNSET else json.dumps(value) for value in (old, new))
        yield f"{at}: {before} there, {now} here"


_UNSET = object()
