"""Checks of a run's answers before graders apart from it read them.

- Every entry of the artifact is a regular file or a directory: no link is followed.
- A shard named in a ledger holds rows of the prompts in its name, each at most once.
- Any other shard holds rows of known prompts.

Reads the names in an artifact of completions, and ids of Prompt and Completion shards.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from ssd_ray.artifacts import files, slices
from ssd_ray.artifacts.ledger import Span
from ssd_ray.artifacts.shards import read_table, shard_paths
from ssd_ray.errors import UserError
from ssd_ray.evaluation.orders import Order

_SPAN = re.compile(r"(?P<source>.+)\.(?P<start>\d{8,})-(?P<stop>\d{8,})")
_REMEDY = "delete that file and start the run again, which draws its answers again"


class AnswerChecks:
    """The checks of one order.

    The ids of one shard of prompts are in memory, or those of all prompts without a ledger.
    """

    def __init__(self, run: Path, order: Order) -> None:
        self._answers = run / order.answers
        self._prompts = run / order.prompts
        self._parents = [run / parent for parent in Path(order.answers).parents][:-1]
        self._samples = order.samples_per_prompt
        self._shard: tuple[str, list[str]] = ("", [])
        self._all: set[str] = set()

    def require_regular_files(self) -> None:
        """Refuse an artifact with a link, a pipe or a device in it, or on its path.

        Raises:
            UserError: names the entry.
        """
        for place in (*self._parents, self._answers):
            if place.is_symlink():
                raise UserError(
                    f"{place} is a symbolic link, and graders apart follow none: "
                    "move the directory itself there"
                )
        for place in (self._answers, self._answers / "ledger"):
            if place.is_symlink():
                files.require_regular(place)
            for name in files.names(place):
                path = place / name
                if not name.startswith(".") and (path.is_symlink() or not path.is_dir()):
                    files.require_regular(path)

    def require_own_rows(self, shard: Path) -> None:
        """Refuse a shard with rows of other prompts than it should have.

        Raises:
            UserError: names the shard and the first such row.
        """
        files.require_regular(shard)
        table = read_table(shard, ["prompt_id", "sample_index"])
        keys = list(
            zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
        )
        if twice := [key for key, count in Counter(keys).items() if count > 1]:
            raise UserError(f"{shard} holds two rows of {_named(twice[0])}: {_REMEDY}")
        own = self._keys_of(shard)
        for key in keys:
            if (key not in own) if own is not None else not self._is_known(key):
                raise UserError(
                    f"{shard} holds a row of {_named(key)}, which is none of its own: {_REMEDY}"
                )

    def _keys_of(self, shard: Path) -> set[slices.Key] | None:
        """Return the keys that a shard may hold by its name, None if the name has no span."""
        match = _SPAN.fullmatch(shard.stem)
        if match is None:
            return None
        span = Span(match["source"], int(match["start"]), int(match["stop"]))
        ids = self._ids(span.source)
        last = min(span.stop, len(ids) * self._samples)
        return {
            (ids[position // self._samples], position % self._samples)
            for position in range(span.start, last)
        }

    def _ids(self, name: str) -> list[str]:
        """Return the ids of one shard of prompts in their order, none if there is no such shard."""
        if self._shard[0] != name:
            path = self._prompts / f"{name}.parquet"
            ids = read_table(path, ["prompt_id"])["prompt_id"].to_pylist() if path.exists() else []
            self._shard = name, ids
        return self._shard[1]

    def _is_known(self, key: slices.Key) -> bool:
        if not self._all:
            for path in shard_paths(self._prompts):
                self._all.update(read_table(path, ["prompt_id"])["prompt_id"].to_pylist())
        return key[0] in self._all and 0 <= key[1] < self._samples


def _named(key: slices.Key) -> str:
    return f"prompt {key[0]!r:.80}, sample {key[1]}"
