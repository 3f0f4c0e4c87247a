"""From samples to training sequences: which answers are kept, and exactly the tokens that were drawn.

`input_ids` is the prompt's ids followed by the output's as the engine reported them; nothing is decoded and encoded again,
and nothing is appended: an answer that stopped by itself ends with its end token, one cut at `max_tokens` does not.
A first pass over the columns judges every row and counts; a second writes the kept rows, sorted by (prompt, sample), in
shards of bounded size. Shards are a function of the samples and choices, so one that is there already is left as it is.
Reads Completion shards, writes Example shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssd_ray.artifacts import shard_paths, write_shard
from ssd_ray.config import PrepareConfig
from ssd_ray.errors import UserError
from ssd_ray.schema import Completion, Example, FinishReason, from_table

Reason = Literal["no response tokens", "empty", "stub", "shortest", "over_length"]
REASONS: tuple[Reason, ...] = ("no response tokens", "empty", "stub", "shortest", "over_length")

SHARD_TOKENS = 2_000_000


@dataclass(kw_only=True)
class _Judged:
    """One sample as far as the choices need it: where it lies, how long it is, and why it is dropped (or None)."""

    key: tuple[str, int]
    shard: int
    row: int
    characters: int
    num_prompt_tokens: int
    num_output_tokens: int
    finish_reason: FinishReason
    dropped: Reason | None = None
    truncated: bool = False


def prepare(samples: Path, choices: PrepareConfig, *, out: Path) -> dict[str, Any]:
    """Fill `out` with the training sequences of `samples` and return what was counted.

    Facts: rows, read, dropped by reason, truncated, prompt_tokens, response_tokens, finish_reasons, token_share (of
    response tokens by finish reason) and length_histogram (response tokens, four bins an octave). Finish reasons are those
    of the sequences as trained: an answer that `over_length=truncate` cut has lost its end token and counts as "length".

    Raises:
        UserError: nothing is left to train on.
    """
    judged = sorted(_judge(samples, choices), key=lambda row: row.key)
    _drop_shortest(judged, choices.drop_shortest_percent)
    _limit_length(judged, choices)
    kept = [row for row in judged if row.dropped is None]
    dropped = {reason: sum(row.dropped == reason for row in judged) for reason in REASONS}
    if not kept:
        raise UserError(_nothing_left(samples, len(judged), dropped))
    _write(samples, kept, out)
    return {"rows": len(kept), "read": len(judged), "dropped": dropped, **_count(kept)}


def _judge(samples: Path, choices: PrepareConfig) -> Iterator[_Judged]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["prompt_id", "sample_index", "text", "finish_reason", "prompt_token_ids", "output_token_ids"]
    for shard, path in enumerate(shard_paths(samples)):
        table = pq.read_table(path, columns=columns)
        prompts, outputs = (pc.list_value_length(table.column(name)).to_pylist() for name in columns[-2:])
        rows = zip(*(table.column(name).to_pylist() for name in columns[:-2]), prompts, outputs, strict=True)
        for row, (prompt_id, sample_index, text, finish_reason, num_prompt, num_output) in enumerate(rows):
            yield _Judged(
                key=(prompt_id, sample_index),
                shard=shard,
                row=row,
                characters=len(text),
                num_prompt_tokens=num_prompt,
                num_output_tokens=num_output,
                finish_reason=finish_reason,
                dropped=_degenerate(text, num_output, choices),
            )


def _degenerate(text: str, num_output_tokens: int, choices: PrepareConfig) -> Reason | None:
    """The paper's minimal filter (section 3.1): empty answers and single-line stubs."""
    if num_output_tokens == 0:
        return "no response tokens"
    lines = sum(1 for line in text.splitlines() if line.strip())
    if lines == 0:
        return "empty" if choices.drop_empty else None
    return "stub" if lines == 1 and choices.drop_stubs else None


def _drop_shortest(judged: Iterable[_Judged], percent: float) -> None:
    """Drop the given share of what is left, rounded down; among equally short answers the first by key go first."""
    left = sorted((row for row in judged if row.dropped is None), key=lambda row: (row.characters, row.key))
    for row in left[: math.floor(len(left) * percent / 100)]:
        row.dropped = "shortest"


def _limit_length(judged: Iterable[_Judged], choices: PrepareConfig) -> None:
    for row in judged:
        room = choices.max_length - row.num_prompt_tokens
        if row.dropped is not None or row.num_output_tokens <= room:
            continue
        if choices.over_length == "drop" or room < 1:
            row.dropped = "over_length"
        else:
            row.num_output_tokens, row.truncated, row.finish_reason = room, True, "length"


def _nothing_left(samples: Path, read: int, dropped: dict[Reason, int]) -> str:
    if not read:
        return f"{samples} holds no samples to train on; run the stage that makes them first"
    told = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return (
        f"prepare kept none of {read} samples ({told}): raise sample.max_tokens or prepare.max_length, "
        "or set prepare.drop_stubs=false or prepare.drop_empty=false"
    )


def _count(kept: list[_Judged]) -> dict[str, Any]:
    response = np.array([row.num_output_tokens for row in kept])
    stopped = np.array([row.finish_reason == "stop" for row in kept])
    total = int(response.sum())
    edges = _edges(int(response.min()), int(response.max()))
    return {
        "truncated": sum(row.truncated for row in kept),
        "prompt_tokens": sum(row.num_prompt_tokens for row in kept),
        "response_tokens": total,
        "finish_reasons": {"stop": int(stopped.sum()), "length": int((~stopped).sum())},
        "token_share": {"stop": int(response[stopped].sum()) / total, "length": int(response[~stopped].sum()) / total},
        "length_histogram": {"edges": edges, "counts": np.histogram(response, bins=edges)[0].tolist()},
    }


def _edges(shortest: int, longest: int) -> list[int]:
    """Bin edges at quarter octaves, rounded to whole tokens, from at most `shortest` to above `longest`."""
    first, last = math.floor(4 * math.log2(shortest)), math.floor(4 * math.log2(longest)) + 1
    edges = sorted({round(2 ** (quarter / 4)) for quarter in range(first, last + 1)})
    edges[0] = min(edges[0], shortest)
    return edges if edges[-1] > longest else [*edges, longest + 1]


def _write(samples: Path, kept: list[_Judged], out: Path) -> None:
    for number, rows in enumerate(_shards(kept)):
        name = f"part-{number:05}"
        if not (out / f"{name}.parquet").exists():
            write_shard(out, name, _examples(samples, rows), Example)


def _shards(kept: list[_Judged]) -> Iterator[list[_Judged]]:
    """Runs of rows with at most `SHARD_TOKENS` tokens, or a single longer row."""
    rows: list[_Judged] = []
    tokens = 0
    for row in kept:
        length = row.num_prompt_tokens + row.num_output_tokens
        if rows and tokens + length > SHARD_TOKENS:
            yield rows
            rows, tokens = [], 0
        rows.append(row)
        tokens += length
    yield rows


def _examples(samples: Path, rows: list[_Judged]) -> Iterator[Example]:
    """The rows' sequences in their order, read from the sample shards that hold them, one shard at a time."""
    import pyarrow.parquet as pq

    paths = shard_paths(samples)
    made: dict[tuple[str, int], Example] = {}
    for shard in sorted({row.shard for row in rows}):
        wanted = {row.row: row for row in rows if row.shard == shard}
        table = pq.read_table(paths[shard]).take(sorted(wanted))
        for place, completion in zip(sorted(wanted), from_table(table, Completion), strict=True):
            made[wanted[place].key] = _example(completion, wanted[place].num_output_tokens)
    return (made[row.key] for row in rows)


def _example(completion: Completion, num_output_tokens: int) -> Example:
    return Example(
        prompt_id=completion.prompt_id,
        sample_index=completion.sample_index,
        input_ids=completion.prompt_token_ids + completion.output_token_ids[:num_output_tokens],
        num_prompt_tokens=len(completion.prompt_token_ids),
    )
