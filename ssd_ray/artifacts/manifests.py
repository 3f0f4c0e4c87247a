"""Claim, fill and seal the directory of an artifact.

- A stage claims its directory by writing `fingerprint.json` first.
- It seals the directory by writing `manifest.json` last.
- No manifest: the stage was interrupted, and resumes.
- A manifest: the artifact is complete, and is left alone.
- Another fingerprint: refused, with the difference.

Every file appears by rename, so after a crash at any instant no directory looks complete.
A stale directory is removed by one rename, or file by file, manifest first and fingerprint last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssd_ray.artifacts import versions
from ssd_ray.artifacts.facts import Facts, FactsT
from ssd_ray.artifacts.files import Json, read_json, write_atomic
from ssd_ray.artifacts.identity import Identity, staleness
from ssd_ray.artifacts.shards import ShardFile, column_digests, shard_paths
from ssd_ray.errors import InfrastructureError, UserError

FORMAT = 1
"""Format of manifests.

Raise it when their layout changes, other than by keys that an earlier reader may ignore.
"""
MADE_FROM = "made-from.json"
"""File with the contents of an artifact's inputs (`lineage.py`)."""
_NOTHING_MADE = frozenset(
    {"fingerprint.json", "timing.json", MADE_FROM, "tests", ".engines", ".returned", ".lock"}
)
"""Names left by an attempt that failed before it made a row.

Stored tests are among them: they are named by content, so they serve any choices.
"""
State = Literal["missing", "partial", "complete", "stale"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A complete artifact: its directory and its fingerprint."""

    path: Path
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a `manifest.json`."""

    fingerprint: str
    choices: Json
    """Choices of the recipe behind the artifact."""
    facts: Json
    """Facts as written; `load_facts` reads them."""
    shards: tuple[ShardFile, ...]
    columns: Mapping[str, str]
    """Digest of each column over all shards; empty with a ledger."""
    versions: Mapping[str, str]
    """Version of each package at the end of the stage."""
    finished_at: str | None


def state_of(out: Path, identity: Identity) -> State:
    """Return the state of an artifact without touching it.

    An attempt with other choices counts as missing if it made nothing.
    """
    if not (out / "fingerprint.json").exists():
        return "missing"
    # Files of an attempt without rows are not a reason to refuse other choices.
    if read_json(out / "fingerprint.json").get("fingerprint") != identity.fingerprint:
        return "missing" if _names(out) <= _NOTHING_MADE else "stale"
    return "complete" if (out / "manifest.json").exists() else "partial"


def load(out: Path) -> Artifact:
    """Load a complete artifact from its manifest.

    Raises:
        UserError: as for `read_manifest`, or its shards differ from the manifest.
    """
    return Artifact(path=out, fingerprint=_undamaged(out).fingerprint)


def load_facts(out: Path, kind: type[FactsT]) -> FactsT:
    """Load the facts of a complete artifact.

    Args:
        out: its directory.
        kind: the class of its stage, or a smaller one with some of its facts.

    Raises:
        UserError: as for `load`, or a fact is missing.
    """
    return kind.parse(_undamaged(out).facts, str(out / "manifest.json"))


def read_manifest(out: Path) -> Manifest:
    """Read the manifest of a complete artifact without checking its shards.

    Raises:
        UserError: the directory holds no manifest, or one that this version cannot read.
    """
    path = out / "manifest.json"
    if not path.exists():
        raise UserError(
            f"{out} is not complete: it has no manifest.json; run the stage that makes it first"
        )
    document = read_json(path)
    # The format comes first: in another one, the other keys mean nothing.
    if (form := document.get("format", FORMAT)) != FORMAT:
        version = document.get("versions", {}).get("ssd-ray")
        maker = f"ssd_ray {version}" if version else "the version that wrote it"
        raise UserError(
            f"{path} has format {form}, and this version of ssd_ray reads format {FORMAT}: "
            f"use {maker}, or choose another --out"
        )
    if not {"fingerprint", "facts", "shards"} <= document.keys():
        raise UserError(
            f"{path} is not a manifest of this program; "
            f"delete {out} and run again, which makes it again"
        )
    return Manifest(
        fingerprint=document["fingerprint"],
        choices=document.get("choices", {}),
        facts=document["facts"],
        shards=tuple(
            ShardFile(name=entry["name"], bytes=entry["bytes"], sha256=entry.get("sha256"))
            for entry in document["shards"]
        ),
        columns=document.get("columns", {}),
        versions=document.get("versions", {}),
        finished_at=document.get("finished_at"),
    )


def _undamaged(out: Path) -> Manifest:
    """Read the manifest of a complete artifact, and compare its shards with it."""
    manifest = read_manifest(out)
    if complaint := _damage(out, manifest.shards):
        raise UserError(complaint)
    return manifest


def damage(out: Path) -> str:
    """Return the damage to a complete artifact's files and its remedy, "" if there is none.

    Only names and sizes are compared.
    """
    return _damage(out, read_manifest(out).shards)


def _damage(out: Path, shards: Sequence[ShardFile]) -> str:
    if lost := _lost(out, shards):
        return (
            f"{out / lost[0]} is missing or was changed since it was made; "
            f"delete {out} and run again, which makes it again"
        )
    known = {shard.name for shard in shards}
    if unknown := [path for path in shard_paths(out) if path.name not in known]:
        return (
            f"{unknown[0]} is not in the manifest: it was added after {out.name} was complete; "
            "move it away"
        )
    return ""


def lost_shards(out: Path) -> list[str]:
    """Return the names of a complete artifact's missing files, and those of another size."""
    return _lost(out, read_manifest(out).shards)


def _lost(out: Path, shards: Sequence[ShardFile]) -> list[str]:
    return [
        shard.name
        for shard in shards
        if not (path := out / shard.name).exists() or path.stat().st_size != shard.bytes
    ]


def claim(out: Path, identity: Identity) -> Artifact | None:
    """Claim a directory for an artifact; return the artifact if it is already complete.

    If None is returned, the caller has to make it.

    Raises:
        UserError: the directory has another fingerprint or foreign files, or cannot be written.
    """
    state = state_of(out, identity)
    if state == "stale":
        change = staleness(read_json(out / "fingerprint.json"), identity)
        raise UserError(f"{out} {change}: choose another --out, or delete that directory")
    if state == "complete":
        return load(out)
    if state == "missing":
        if (out / "fingerprint.json").exists():
            # An attempt with other choices that made nothing.
            remove(out)
        if _names(out):
            raise UserError(
                f"{out} is not empty and was not made by this program: choose another --out"
            )
        write_atomic(
            out / "fingerprint.json",
            json.dumps({**identity.record(), "claim": new_claim()}, indent=1),
        )
    return None


def new_claim() -> str:
    """Return a random name for an artifact in progress.

    Resuming keeps it; an artifact made again from the beginning, or with lost shards, gets another.
    """
    return uuid.uuid4().hex[:16]


def _names(out: Path) -> set[str]:
    """Return the names in a directory, without temporary files of killed writes."""
    if not out.is_dir():
        return set()
    return {path.name for path in out.iterdir() if path.suffix != ".partial"}


def seal(out: Path, identity: Identity, facts: Facts) -> Artifact:
    """Declare an artifact complete: write its manifest, the last file, and return it.

    The manifest lists names, sizes and digests of all shards. A stage with a ledger gives its own
    list as `facts.shards`. Without a ledger, columns are digested too: another version of pyarrow
    may write the same rows in other bytes.

    Raises:
        InfrastructureError: a shard is not in the stage's list.
    """
    shards: Sequence[ShardFile]
    columns: dict[str, str] = {}
    if facts.shards is None:
        shards = [_described(path) for path in shard_paths(out)]
        columns = column_digests(shard_paths(out))
    else:
        shards = facts.shards
    listed = {shard.name for shard in shards}
    if unknown := {path.name for path in shard_paths(out)} - listed:
        raise InfrastructureError(
            f"{min(unknown)} appeared in {out} while it was sealed; run again, which moves it away"
        )
    # Weights are many GiB: their sizes are recorded, their bytes are not read again.
    weights = [
        ShardFile(name=path.name, bytes=path.stat().st_size)
        for path in sorted(out.glob("*.safetensors"))
    ]
    manifest = {
        "format": FORMAT,
        "stage": identity.stage,
        "fingerprint": identity.fingerprint,
        "choices": identity.choices,
        "inputs": identity.inputs,
        "facts": facts.document(),
        "shards": [_entry(shard) for shard in (*shards, *weights)],
        "columns": columns,
        "versions": versions.installed(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomic(out / "manifest.json", json.dumps(manifest, indent=1))
    return Artifact(path=out, fingerprint=identity.fingerprint)


def _described(path: Path) -> ShardFile:
    return ShardFile(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _entry(shard: ShardFile) -> Json:
    """Return the entry of a shard in a manifest; weights have no digest."""
    digest = {} if shard.sha256 is None else {"sha256": shard.sha256}
    return {"name": shard.name, "bytes": shard.bytes, **digest}


def reopen(out: Path) -> None:
    """Delete the manifest of an artifact; its stage then resumes it and adds missing rows."""
    (out / "manifest.json").unlink()


def remove(out: Path) -> None:
    """Delete an artifact, its manifest first and its fingerprint last.

    In that order, a killed deletion leaves a partial artifact, never a complete one.
    """
    (out / "manifest.json").unlink(missing_ok=True)
    last = (MADE_FROM, "fingerprint.json")
    for path in out.iterdir():
        if path.name in last:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for name in last:
        (out / name).unlink(missing_ok=True)


def make(out: Path, identity: Identity, act: Callable[[Path], Facts]) -> Artifact:
    """Claim `out`, fill it by `act(out)`, and seal it with the facts returned.

    A complete artifact is returned untouched.
    """
    complete = claim(out, identity)
    return seal(out, identity, act(out)) if complete is None else complete
