"""What an artifact was made from: the contents of its inputs, where a fingerprint says only their choices.

The same choices may come to other bytes, on other hardware or with another engine. Reads manifests; writes `made-from.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import MADE_FROM, digest, read_json, write_atomic


def record(out: Path, inputs: Mapping[str, Path]) -> None:
    """Write down of which contents an artifact is being made, of those inputs, by name, that are whole by now."""
    known = _made_from(out)
    now = {name: _contents(path) for name, path in _whole(inputs) if name not in known}
    if now:
        write_atomic(out / MADE_FROM, json.dumps(known | now, indent=1))


def changed(out: Path, inputs: Mapping[str, Path]) -> list[str]:
    """The names of the whole inputs that hold something else than what an artifact was made from."""
    known = _made_from(out)
    return [name for name, path in _whole(inputs) if name in known and known[name] != _contents(path)]


def _whole(inputs: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    return ((name, path) for name, path in inputs.items() if (path / "manifest.json").exists())


def _made_from(out: Path) -> dict[str, Any]:
    return read_json(out / MADE_FROM) if (out / MADE_FROM).exists() else {}


def _contents(out: Path) -> str:
    """Sixteen hex digits over the names and digests of what a whole artifact holds, as its manifest has them."""
    shards = read_json(out / "manifest.json")["shards"]
    held = [[shard["name"], shard.get("sha256") or digest(out.glob(shard["name"]))] for shard in shards]
    return hashlib.sha256(json.dumps(sorted(held)).encode()).hexdigest()[:16]
