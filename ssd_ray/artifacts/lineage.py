"""What an artifact was made from, by content, where a fingerprint says only by which choices.

The same choices may come to other contents: on other hardware, with another version of ssd_ray, or because an input was
resumed after a failing machine. So a stage writes down every input as it read it, and a later run compares.

- A complete input is known by its contents. One that was still growing is known by its claim, a random name that its
  directory got when it was claimed; a directory that is made again gets another.
- Contents are the columns of Parquet shards where their manifest has digests of them, so that rows are known again in files
  of another version of Parquet; else the bytes of files.

Reads manifests; writes `made-from.json`, and new claims.
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
from ssd_ray.artifacts.manifests import MADE_FROM, new_claim
from ssd_ray.artifacts.shards import column_digests, shard_paths


@dataclass(frozen=True, kw_only=True)
class Source:
    """An input as an artifact read it.

    `files` is a digest of its shards' bytes, `columns` one of each column of them, `facts` one of its facts; all are empty
    while it is not complete, and the last two where an earlier version of ssd_ray wrote down neither. So is `claim`.
    `revisions` are those above 0 of its stage and of all that it was made from.
    """

    claim: str
    revisions: Mapping[str, int] = field(default_factory=dict)
    files: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    facts: str = ""

    def holds(self, current: Source, *, facts: bool) -> bool:
        """Return True if the input is as it was, compared as far as both are known; columns that one lacks are defaults."""
        if not self.files:
            return self.claim == current.claim
        if facts and self.facts and self.facts != current.facts:
            return False
        shared = self.columns.keys() & current.columns.keys()
        if shared and self.files != current.files:
            return all(self.columns[name] == current.columns[name] for name in shared)
        return self.files == current.files

    def is_comparable(self, current: Source) -> bool:
        """Return True if both come from the same revisions, and neither is known by bytes alone where the other has columns."""
        return self.revisions == current.revisions and not (
            self.files and bool(self.columns) != bool(current.columns)
        )


def source(path: Path) -> Source | None:
    """Return what a directory holds now; None where it is not claimed."""
    if not (path / "fingerprint.json").exists():
        return None
    record = read_json(path / "fingerprint.json")
    known = Source(claim=record.get("claim", ""), revisions=record.get("revisions", {}))
    if not (path / "manifest.json").exists():
        return known
    manifest = read_json(path / "manifest.json")
    held = sorted(
        [shard["name"], shard.get("sha256") or _weights(path / shard["name"], known.claim)]
        for shard in manifest["shards"]
    )
    return replace(
        known,
        files=_digest(held),
        columns=manifest.get("columns", {}),
        facts=_digest(manifest["facts"]),
    )


@functools.lru_cache(maxsize=256)
def _weights(path: Path, _claim: str) -> str:
    """Digest a file of weights; once, however many arms are made from it."""
    return digest([path] if path.exists() else [])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def recorded(out: Path) -> dict[str, Source]:
    """Return the inputs that a directory has on record, by name."""
    if not (out / MADE_FROM).exists():
        return {}
    found = read_json(out / MADE_FROM)
    return {
        name: Source(claim="", files=value) if isinstance(value, str) else Source(**value)
        for name, value in found.items()
    }


def record(out: Path, inputs: Mapping[str, Path]) -> None:
    """Put the inputs that a directory is being made from on record, by name; one that has become complete gets its contents."""
    known = recorded(out)
    current = {
        name: source(path)
        for name, path in inputs.items()
        if name not in known or not known[name].files
    }
    news = {
        name: now
        for name, now in current.items()
        if now is not None and known.get(name, now).claim == now.claim
    }
    _write(out, known, news)


def record_columns(out: Path, name: str, path: Path) -> None:
    """Add the columns of a complete input to its record, if that has none of the same contents: they are about to go."""
    known, current = recorded(out), source(path)
    before = known.get(name)
    if (
        before is not None
        and current is not None
        and before.files == current.files != ""
        and not before.columns
    ):
        _write(
            out,
            known,
            {name: replace(before, columns=current.columns or column_digests(shard_paths(path)))},
        )


def adopt(out: Path, inputs: Mapping[str, Path], revisions: Mapping[str, int]) -> None:
    """Put on record that a directory is as these revisions make it, once its inputs are known to hold what they held."""
    known = recorded(out)
    current = {name: source(path) for name, path in inputs.items() if name in known}
    _write(out, known, {name: now for name, now in current.items() if now and now.files})
    existing = read_json(out / "fingerprint.json")
    if existing.get("revisions", {}) != revisions:
        write_atomic(
            out / "fingerprint.json", json.dumps({**existing, "revisions": revisions}, indent=1)
        )


def _write(out: Path, known: Mapping[str, Source], news: Mapping[str, Source]) -> None:
    if any(known.get(name) != value for name, value in news.items()):
        every = {name: asdict(value) for name, value in {**known, **news}.items()}
        write_atomic(out / MADE_FROM, json.dumps(every, indent=1))


def changed(out: Path, inputs: Mapping[str, Path], *, facts: bool = False) -> dict[str, bool]:
    """Return the complete inputs that are no longer as recorded, by name, and for each whether the two are comparable.

    Those that are not were made by different versions of ssd_ray. With `facts`, the inputs' facts count too.
    """
    differing = {}
    for name, known in recorded(out).items():
        current = source(inputs[name]) if name in inputs else None
        if current is not None and current.files and not known.holds(current, facts=facts):
            differing[name] = known.is_comparable(current)
    return differing


def can_follow(out: Path, name: str, followed: Path) -> bool:
    """Return True if what a directory holds was made from the input `name` as it grows there now: by its claim."""
    current, known = source(followed), recorded(out).get(name)
    return current is not None and known is not None and known.claim == current.claim != ""


def renew_claim(out: Path) -> None:
    """Give a directory another claim because shards of it were lost: what follows it may hold rows that came from them."""
    existing = read_json(out / "fingerprint.json")
    write_atomic(out / "fingerprint.json", json.dumps({**existing, "claim": new_claim()}, indent=1))
