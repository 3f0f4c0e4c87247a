"""From samples to training sequences: which answers are kept, masked or dropped, and exactly the tokens that were drawn.

`input_ids` is the prompt's ids followed by the output's as the engine reported them; nothing is decoded and encoded again,
and nothing is appended: an answer that stopped by itself ends with its end token, one cut at `max_tokens` does not.
A first pass judges every row, one shard in memory at a time (about 100 bytes a row stay); a second writes the rows that stay,
sorted by (prompt, sample), in shards of bounded size. Shards are a function of the samples and choices, so one that is there
already is left as it is. Reads Completion shards, and Verdict shards where only accepted ones are wanted; writes Example shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssd_ray.artifacts.shards import read_table, read_table_of, shard_paths, write_shard
from ssd_ray.config import PrepareConfig
from ssd_ray.errors import UserError
from ssd_ray.progress import Progress, counted
from ssd_ray.schema import Completion, Example, from_table
from ssd_ray.training.data import health
from ssd_ray.training.data.health import CLASSES, Answers, Bools, Ints, ParseOptions

if TYPE_CHECKING:
    import pyarrow as pa

REASONS = ("no_tokens", "not_accepted", *CLASSES, "shortest", "over_length")
KEPT = -1
KEY = ["prompt_id", "sample_index"]
BY_KEY = [(name, "ascending") for name in KEY]
SHARD_TOKENS = 2_000_000
NUM_EXAMPLES, EXCERPT = 2, 400


@dataclass(kw_only=True)
class Judged:
    """Every sample in the order of its key: where it lies, what it is like, and what becomes of it.

    `keys` holds the columns KEY; `dropped` is KEPT or the place of the reason in REASONS; `tokens` are the output tokens that are
    trained on or masked.
    """

    keys: pa.Table
    shards: Ints
    rows: Ints
    answers: Answers
    dropped: Ints
    masked: Bools
    truncated: Bools
    tokens: Ints

    @property
    def kept(self) -> Bools:
        """Rows that are written."""
        kept: Bools = self.dropped == KEPT
        return kept


def prepare(
    samples: Path,
    choices: PrepareConfig,
    reading: ParseOptions,
    *,
    verdicts: Path | None = None,
    out: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fill `out` with the training sequences of `samples` and return what was counted.

    Facts: rows, read, dropped by reason, masked (rows and response_tokens out of the loss), truncated, prompt_tokens,
    response_tokens, finish_reasons, token_share (of response tokens by finish reason), length_histogram (response tokens, four
    bins an octave) and health (`health.count`, and examples of each class). Finish reasons are those of the sequences as
    trained: an answer that `over_length=truncate` cut has lost its end token and counts as "length". Health is of the samples
    as they were drawn.

    Raises:
        UserError: nothing is left to train on, or a sample has no verdict where accepted ones are wanted.
    """
    judged = _judge(samples, reading, progress)
    _choose(judged, choices, _accepted(judged, verdicts) if choices.select == "accepted" else None)
    _drop_shortest(judged, choices.drop_shortest_percent)
    _limit_length(judged, choices)
    dropped = {reason: int((judged.dropped == place).sum()) for place, reason in enumerate(REASONS)}
    if not (judged.kept & ~judged.masked).any():
        raise UserError(_nothing_left(samples, judged, dropped))
    _write(samples, judged, out)
    found = health.count(judged.answers, judged.kept, judged.masked, choices.policies, reading)
    return {
        "rows": int(judged.kept.sum()),
        "read": len(judged.dropped),
        "dropped": dropped,
        **_count(judged),
        "health": {**found, "examples": _class_examples(samples, judged)},
    }


def _judge(samples: Path, reading: ParseOptions, progress: Progress | None) -> Judged:
    import pyarrow as pa
    import pyarrow.compute as pc

    keys, answers, shards = [], [], []
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
    every = health.take(health.together(answers), order)
    places = np.concatenate([np.full(rows, place) for place, rows in shards])[order]
    return Judged(
        keys=key.take(order),
        shards=places,
        rows=np.concatenate([np.arange(rows) for _, rows in shards])[order],
        answers=every,
        dropped=np.full(len(order), KEPT),
        masked=np.zeros(len(order), dtype=bool),
        truncated=np.zeros(len(order), dtype=bool),
        tokens=every.num_output_tokens.copy(),
    )


def _accepted(judged: Judged, verdicts: Path | None) -> Bools:
    """Which samples passed every test of their problem.

    The verdicts' keys are sorted as the samples' are and held beside them, in Arrow's columns: their text and 17 bytes a row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if verdicts is None:
        raise UserError(
            "prepare.select is 'accepted' and the samples were not graded: run ssd-ray grade first"
        )
    given = [judged.keys.slice(0, 0).append_column("accepted", pa.array([], pa.bool_()))]
    for path in shard_paths(verdicts):
        table = read_table(path, columns=[*KEY, "outcome"])
        given.append(
            table.select(KEY).append_column(
                "accepted", pc.equal(table.column("outcome"), "accepted")
            )
        )
    graded = pa.concat_tables(given).combine_chunks()
    graded = graded.take(pc.sort_indices(graded, sort_keys=BY_KEY))
    if unlike := _first_unlike(judged.keys, graded.select(KEY)):
        (prompt_id, index), what = unlike
        raise UserError(
            f"{verdicts}: sample {index} of {prompt_id!r} has {what}; delete that directory and run again"
        )
    accepted: Bools = graded.column("accepted").to_numpy()
    return accepted


def _first_unlike(samples: pa.Table, verdicts: pa.Table) -> tuple[tuple[str, int], str] | None:
    """The first key of two sorted tables that is not in both once, and what is wrong with it."""
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
    """Apply the policies; of several reasons to drop a row the first in REASONS is counted, and dropping outweighs masking."""
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
    """Drop the given share of what is left, rounded down; among equally short answers the first by key go first."""
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


def _nothing_left(samples: Path, judged: Judged, dropped: dict[str, int]) -> str:
    gone = [f"{count} {reason}" for reason, count in dropped.items() if count]
    gone += [f"{int(judged.masked.sum())} masked"] if judged.masked.any() else []
    mend = (
        "set prepare.select=all"
        if dropped["not_accepted"]
        else "set a policy of prepare.policies to keep"
    )
    return (
        f"prepare found nothing to train on among {len(judged.dropped)} samples of {samples} ({', '.join(gone)}): raise "
        f"sample.max_tokens or prepare.max_length, or {mend}"
    )


def _count(judged: Judged) -> dict[str, Any]:
    kept = judged.kept
    response = judged.tokens[kept]
    stopped = (judged.answers.stopped & ~judged.truncated)[kept]
    total, edges = int(response.sum()), health.length_edges(response)
    return {
        "masked": {
            "rows": int(judged.masked.sum()),
            "response_tokens": int(judged.tokens[judged.masked].sum()),
        },
        "truncated": int(judged.truncated[kept].sum()),
        "prompt_tokens": int(judged.answers.num_prompt_tokens[kept].sum()),
        "response_tokens": total,
        "finish_reasons": {"stop": int(stopped.sum()), "length": int((~stopped).sum())},
        "token_share": {
            "stop": int(response[stopped].sum()) / total,
            "length": int(response[~stopped].sum()) / total,
        },
        "length_histogram": {
            "edges": edges,
            "counts": np.histogram(response, bins=edges)[0].tolist(),
        },
    }


def _class_examples(samples: Path, judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """The first samples of each class by key, with the beginning and the end of their texts."""
    wanted = {
        name: np.flatnonzero(judged.answers.classes[:, place])[:NUM_EXAMPLES]
        for place, name in enumerate(CLASSES)
    }
    rows = dict(_completions(samples, judged, np.unique(np.concatenate(list(wanted.values())))))
    return {
        name: [_excerpt(rows[place]) for place in places.tolist()]
        for name, places in wanted.items()
    }


def _excerpt(row: Completion) -> dict[str, Any]:
    text = row.text
    if len(text) > 2 * EXCERPT:
        text = f"{text[:EXCERPT]}\n[… {len(text) - 2 * EXCERPT:,} characters …]\n{text[-EXCERPT:]}"
    tokens = len(row.output_token_ids)
    found = {
        "prompt_id": row.prompt_id,
        "sample_index": row.sample_index,
        "tokens": tokens,
        "finish_reason": row.finish_reason,
    }
    return {**found, "text": text}


def _write(samples: Path, judged: Judged, out: Path) -> None:
    for number, places in enumerate(_shards(judged)):
        name = f"part-{number:05}"
        if not (out / f"{name}.parquet").exists():
            write_shard(out, name, _examples(samples, judged, places), Example)


def _shards(judged: Judged) -> Iterator[Ints]:
    """Runs of kept rows with at most `SHARD_TOKENS` tokens, or a single longer row."""
    kept = np.flatnonzero(judged.kept)
    lengths = (judged.answers.num_prompt_tokens + judged.tokens)[kept]
    begin, tokens = 0, 0
    for end, length in enumerate(lengths.tolist()):
        if end > begin and tokens + length > SHARD_TOKENS:
            yield kept[begin:end]
            begin, tokens = end, 0
        tokens += length
    yield kept[begin:]


def _completions(samples: Path, judged: Judged, places: Ints) -> Iterator[tuple[int, Completion]]:
    """The samples at some places, in the order of the shards that hold them, one shard in memory at a time."""
    paths = shard_paths(samples)
    for shard in np.unique(judged.shards[places]).tolist():
        there = places[judged.shards[places] == shard]
        there = there[np.argsort(judged.rows[there])]
        table = read_table_of(paths[shard], Completion).take(judged.rows[there])
        yield from zip(there.tolist(), from_table(table, Completion), strict=True)


def _examples(samples: Path, judged: Judged, places: Ints) -> Iterator[Example]:
    made = {
        place: _example(row, judged, place) for place, row in _completions(samples, judged, places)
    }
    return (made[place] for place in places.tolist())


def _example(completion: Completion, judged: Judged, place: int) -> Example:
    return Example(
        prompt_id=completion.prompt_id,
        sample_index=completion.sample_index,
        input_ids=completion.prompt_token_ids
        + completion.output_token_ids[: int(judged.tokens[place])],
        num_prompt_tokens=len(completion.prompt_token_ids),
        masked=bool(judged.masked[place]),
    )
