"""Lineage: the contents of the inputs of an artifact, as it read them.

A fingerprint names choices. The same choices may lead to other contents: on other hardware, with
another version of ssd_ray, or after an input was resumed. So a stage records each input as it read
it, and a later run compares.

- A complete input is recorded by its contents.
- An input in progress is recorded by its claim, a random name.
- Contents are digests of columns if the manifest has them, else of the bytes of files. Another
  version of pyarrow may write other bytes, but the columns stay equal.

Reads manifests; writes `made-from.json` and new claims.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.files import digest, read_json, write_atomic
from ssd_ray.artifacts.manifests import MADE_FROM, new_claim, read_manifest
from ssd_ray.artifacts.shards import column_digests, shard_paths


@dataclass(frozen=True, kw_only=True)
class Source:
    """An input as an artifact read it.

    Digests are empty while the input is not complete. `claim`, `columns` and `facts` are also
    empty in records of earlier versions of ssd_ray.
    """

    claim: str
    """Claim of the input."""
    revisions: Mapping[str, int] = field(default_factory=dict)
    """Revisions above 0 of its stage and of all its inputs, by stage."""
    files: str = ""
    """Digest of the bytes of its shards."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Digest of each column over all shards."""
    facts: str = ""
    """Digest of its facts."""

    def holds(self, current: Source, *, facts: bool) -> bool:
        """Return True if the input is unchanged, compared by the digests of both records.

        Only shared columns are compared, because a missing one holds defaults.
        """
        if not self.files:
            return self.claim == current.claim
        if facts and self.facts and self.facts != current.facts:
            return False
        # Another version of pyarrow may write other bytes for the same values.
        shared = self.columns.keys() & current.columns.keys()
        if shared and self.files != current.files:
            return all(self.columns[name] == current.columns[name] for name in shared)
        return self.files == current.files

    def is_comparable(self, current: Source) -> bool:
        """Return True if both have the same revisions, and both or neither have columns."""
        has_other_kind = self.files and bool(self.columns) != bool(current.columns)
        return self.revisions == current.revisions and not has_other_kind


def claim_of(path: Path) -> str | None:
    """Return the claim of a directory, None if it is not claimed."""
    if not (path / "fingerprint.json").exists():
        return None
    return str(read_json(path / "fingerprint.json").get("claim", ""))


def source(path: Path) -> Source | None:
    """Return the current contents of a directory, None if it is not claimed."""
    if not (path / "fingerprint.json").exists():
        return None
    record = read_json(path / "fingerprint.json")
    known = Source(claim=record.get("claim", ""), revisions=record.get("revisions", {}))
    if not (path / "manifest.json").exists():
        return known
    manifest = read_manifest(path)
    # Manifests hold no digests of weights, only their sizes.
    held = sorted(
        [shard.name, shard.sha256 or _weights(path / shard.name, known.claim)]
        for shard in manifest.shards
    )
    return replace(
        known, files=_digest(held), columns=manifest.columns, facts=_digest(manifest.facts)
    )


@functools.lru_cache(maxsize=256)
def _weights(path: Path, _claim: str) -> str:
    """Digest a file of weights; cached by claim, because each arm of a checkpoint asks for it."""
    return digest([path] if path.exists() else [])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def recorded(out: Path) -> dict[str, Source]:
    """Return the recorded inputs of a directory by name."""
    if not (out / MADE_FROM).exists():
        return {}
    # Records of the first versions are a digest of the files alone.
    return {
        name: Source(claim="", files=value) if isinstance(value, str) else Source(**value)
        for name, value in read_json(out / MADE_FROM).items()
    }


def record(out: Path, inputs: Mapping[str, Path]) -> None:
    """Record the inputs of a directory by name, with contents once an input is complete."""
    known = recorded(out)
    current = {
        name: source(path)
        for name, path in inputs.items()
        if name not in known or not known[name].files
    }
    updates = {
        name: now
        for name, now in current.items()
        if now is not None and known.get(name, now).claim == now.claim
    }
    _write(out, known, updates)


def record_columns(out: Path, name: str, path: Path) -> None:
    """Add digests of columns to the record of a complete input before its removal.

    Nothing changes if the record has columns already, or if its contents differ.
    """
    known = recorded(out)
    current = source(path)
    before = known.get(name)
    if before is None or current is None or before.columns:
        return
    if before.files == current.files != "":
        columns = current.columns or column_digests(shard_paths(path))
        _write(out, known, {name: replace(before, columns=columns)})


def adopt(out: Path, inputs: Mapping[str, Path], revisions: Mapping[str, int]) -> None:
    """Record the current contents of the inputs of a directory, and `revisions` as its own.

    The caller has compared the inputs and found them unchanged.
    """
    known = recorded(out)
    current = {name: source(path) for name, path in inputs.items() if name in known}
    _write(out, known, {name: now for name, now in current.items() if now and now.files})
    existing = read_json(out / "fingerprint.json")
    if existing.get("revisions", {}) != revisions:
        write_atomic(
            out / "fingerprint.json", json.dumps({**existing, "revisions": revisions}, indent=1)
        )


def _write(out: Path, known: Mapping[str, Source], updates: Mapping[str, Source]) -> None:
    if any(known.get(name) != value for name, value in updates.items()):
        every = {name: asdict(value) for name, value in {**known, **updates}.items()}
        write_atomic(out / MADE_FROM, json.dumps(every, indent=1))


def changed(out: Path, inputs: Mapping[str, Path], *, facts: bool = False) -> dict[str, bool]:
    """Return the complete inputs with changed contents by name; a value is True if comparable.

    `Source.is_comparable` defines the value. With `facts`, facts are compared too.
    """
    # Inputs in progress are skipped: `can_follow` decides about them by their claim.
    differing = {}
    for name, known in recorded(out).items():
        current = source(inputs[name]) if name in inputs else None
        if current is not None and current.files and not known.holds(current, facts=facts):
            differing[name] = known.is_comparable(current)
    return differing


def can_follow(out: Path, name: str, followed: Path) -> bool:
    """Return True if a directory was made from its growing input `name` under the same claim."""
    current = source(followed)
    known = recorded(out).get(name)
    return current is not None and known is not None and known.claim == current.claim != ""


def renew_claim(out: Path) -> None:
    """Give a directory another claim because some of its shards were lost.

    Artifacts made as it grew may hold rows from lost shards, and must not resume.
    """
    existing = read_json(out / "fingerprint.json")
    write_atomic(out / "fingerprint.json", json.dumps({**existing, "claim": new_claim()}, indent=1))
