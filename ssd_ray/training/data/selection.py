"""Selection of samples to train on: each row is kept, masked, cut or dropped for a reason.

- One shard is in memory at a time. About 100 bytes a row remain.
- Reads Completion shards, and Verdict shards for `prepare.select` "accepted". Writes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssd_ray.artifacts.shards import read_table, shard_paths
from ssd_ray.config import PrepareConfig
from ssd_ray.errors import UserError
from ssd_ray.progress import Progress, counted
from ssd_ray.training.data import health
from ssd_ray.training.data.health import CLASSES, Answers, Bools, Ints, ParseOptions

if TYPE_CHECKING:
    import pyarrow as pa

REASONS = ("no_tokens", "not_accepted", *CLASSES, "shortest", "over_length")
KEPT = -1
KEY = ["prompt_id", "sample_index"]
BY_KEY = [(name, "ascending") for name in KEY]


@dataclass(kw_only=True)
class Judged:
    """All samples in the order of their keys: address, measures and decision; arrays are [rows]."""

    keys: pa.Table
    """The columns KEY."""
    shards: Ints
    """Shard of each sample."""
    rows: Ints
    """Row of each sample in its shard."""
    answers: Answers
    dropped: Ints
    """KEPT, or the place of the reason in REASONS."""
    masked: Bools
    truncated: Bools
    tokens: Ints
    """Output tokens after cutting, trained on or masked."""

    @property
    def kept(self) -> Bools:
        """Rows to write."""
        kept: Bools = self.dropped == KEPT
        return kept

    @property
    def num_dropped(self) -> dict[str, int]:
        """Number of dropped rows by reason."""
        return {reason: int((self.dropped == place).sum()) for place, reason in enumerate(REASONS)}


def select(
    samples: Path,
    choices: PrepareConfig,
    reading: ParseOptions,
    *,
    verdicts: Path | None = None,
    progress: Progress | None = None,
) -> Judged:
    """Judge every sample, and decide by `choices` which are trained on.

    Raises:
        UserError: nothing is left to train on, or `choices.select` is "accepted" and a sample has
            no verdict.
    """
    judged = _judge(samples, reading, progress)
    accepted = None
    if choices.select == "accepted":
        accepted = _accepted(judged, verdicts)
    _choose(judged, choices, accepted)
    _drop_shortest(judged, choices.drop_shortest_percent)
    _limit_length(judged, choices)
    if not (judged.kept & ~judged.masked).any():
        raise UserError(_nothing_left(samples, judged))
    return judged


def _judge(samples: Path, reading: ParseOptions, progress: Progress | None) -> Judged:
    """Measure all samples, shard by shard, and sort them by key."""
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = []
    answers = []
    shards = []
    paths = shard_paths(samples)
    for place, path in enumerate(counted(paths, progress, "dataset", "shards", len(paths))):
        table = read_table(path)
        if table.num_rows:
            keys.append(table.select(KEY))
            answers.append(health.judge(table, reading))
            shards.append((place, table.num_rows))
    if not keys:
        raise UserError(
            f"{samples} holds no samples to train on; run the stage that makes them first"
        )
    key = pa.concat_tables(keys).combine_chunks()
    order = pc.sort_indices(key, sort_keys=BY_KEY).to_numpy()
    ordered = health.take(health.concatenate(answers), order)
    places = np.concatenate([np.full(rows, place) for place, rows in shards])[order]
    return Judged(
        keys=key.take(order),
        shards=places,
        rows=np.concatenate([np.arange(rows) for _, rows in shards])[order],
        answers=ordered,
        dropped=np.full(len(order), KEPT),
        masked=np.zeros(len(order), dtype=bool),
        truncated=np.zeros(len(order), dtype=bool),
        tokens=ordered.num_output_tokens.copy(),
    )


def _accepted(judged: Judged, verdicts: Path | None) -> Bools:
    """Return, for each sample, True if it passed every test of its problem.

    Verdicts are sorted by key like the samples, and compared as columns of Arrow. In memory they
    take the text of their keys, and 17 bytes a row beyond it.

    Raises:
        UserError: a sample has no verdict or two, or a verdict has no sample.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if verdicts is None:
        raise UserError(
            "prepare.select is 'accepted' and the samples were not graded: run ssd-ray grade first"
        )
    # The empty first table gives a schema to a directory without shards.
    tables = [judged.keys.slice(0, 0).append_column("accepted", pa.array([], pa.bool_()))]
    for path in shard_paths(verdicts):
        table = read_table(path, columns=[*KEY, "outcome"])
        tables.append(
            table.select(KEY).append_column(
                "accepted", pc.equal(table.column("outcome"), "accepted")
            )
        )
    graded = pa.concat_tables(tables).combine_chunks()
    graded = graded.take(pc.sort_indices(graded, sort_keys=BY_KEY))
    if mismatch := _first_mismatch(judged.keys, graded.select(KEY)):
        (prompt_id, index), problem = mismatch
        raise UserError(
            f"{verdicts}: sample {index} of {prompt_id!r} has {problem}; "
            "delete that directory and run again"
        )
    accepted: Bools = graded.column("accepted").to_numpy()
    return accepted


def _first_mismatch(samples: pa.Table, verdicts: pa.Table) -> tuple[tuple[str, int], str] | None:
    """Return the first key missing or repeated in one of two sorted tables, and the problem."""
    import pyarrow.compute as pc

    both = min(samples.num_rows, verdicts.num_rows)
    same = [
        pc.equal(samples.column(name)[:both], verdicts.column(name)[:both]).to_numpy()
        for name in KEY
    ]
    place = int(np.argmin(np.append(same[0] & same[1], False)))
    sample, verdict = (
        [tuple(row.values()) for row in table.slice(place, 1).to_pylist()]
        for table in (samples, verdicts)
    )
    if not sample and not verdict:
        return None
    if sample and (not verdict or sample < verdict):
        return sample[0], "no verdict"
    return verdict[0], "two verdicts, or was not drawn"


def _choose(judged: Judged, choices: PrepareConfig, accepted: Bools | None) -> None:
    """Apply the policies.

    Of several reasons to drop a row, the first in REASONS counts. Dropping outweighs masking.
    """
    reasons = {"no_tokens": judged.answers.num_output_tokens == 0}
    if accepted is not None:
        reasons["not_accepted"] = ~accepted
    for place, name in enumerate(CLASSES):
        policy, members = getattr(choices.policies, name), judged.answers.classes[:, place]
        if policy == "drop":
            reasons[name] = members
        elif policy == "mask":
            judged.masked |= members
    for reason, members in reasons.items():
        judged.dropped[judged.kept & members] = REASONS.index(reason)
    judged.masked &= judged.kept


def _drop_shortest(judged: Judged, percent: float) -> None:
    """Drop the shortest `percent` of the kept rows, rounded down; ties by key."""
    left = np.flatnonzero(judged.kept)
    shortest = left[np.argsort(judged.answers.characters[left], kind="stable")]
    judged.dropped[shortest[: math.floor(len(left) * percent / 100)]] = REASONS.index("shortest")
    judged.masked &= judged.kept


def _limit_length(judged: Judged, choices: PrepareConfig) -> None:
    room = choices.max_length - judged.answers.num_prompt_tokens
    over = judged.kept & (judged.tokens > room)
    cut = over & (room >= 1) & (choices.over_length == "truncate")
    judged.dropped[over & ~cut] = REASONS.index("over_length")
    judged.tokens[cut], judged.truncated[cut] = room[cut], True
    judged.masked &= judged.kept


def _nothing_left(samples: Path, judged: Judged) -> str:
    dropped = judged.num_dropped
    reasons = [f"{count} {reason}" for reason, count in dropped.items() if count]
    if judged.masked.any():
        reasons.append(f"{int(judged.masked.sum())} masked")
    remedy = "set a policy of prepare.policies to keep"
    if dropped["not_accepted"]:
        remedy = "set prepare.select=all"
    return (
        f"prepare found nothing to train on among {len(judged.dropped)} samples of {samples} "
        f"({', '.join(reasons)}): raise sample.max_tokens or prepare.max_length, or {remedy}"
    )
