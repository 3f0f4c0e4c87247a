"""Drawn answers as one shard of completions and its line in the ledger.

Columns are put together directly, without a row object each, because at a million rows that is most of the time. Writes a
Completion shard.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import ledger, shards
from ssd_ray.artifacts.ledger import Failure, Record, Span
from ssd_ray.inference.vllm.engine import Answer
from ssd_ray.schema import Completion, Prompt, arrow_schema


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An answer with the key that it belongs to."""

    prompt: Prompt
    sample_index: int
    seed: int
    answer: Answer


def write_completions(
    out: Path,
    engine: str,
    unit: Span,
    drawn: list[Drawn],
    failed: tuple[Failure, ...],
    *,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Write the shard of a unit whole, then put it on record; `before` is called before each of the two.

    Raises:
        UserError: the directory is not writable or the disk is full.
    """
    import pyarrow as pa

    columns = {
        "prompt_id": [one.prompt.prompt_id for one in drawn],
        "sample_index": [one.sample_index for one in drawn],
        "seed": [one.seed for one in drawn],
        "source": [one.prompt.source for one in drawn],
        "difficulty": [one.prompt.difficulty for one in drawn],
        "prompt_token_ids": [one.prompt.token_ids for one in drawn],
        "output_token_ids": [one.answer.output_token_ids for one in drawn],
        "text": [one.answer.text for one in drawn],
        "finish_reason": [one.answer.finish_reason for one in drawn],
    }
    before()
    path, data = shards.write_table(
        out, unit.name, pa.table(columns, schema=arrow_schema(Completion))
    )
    record = Record(
        file=path.name,
        span=unit,
        rows=len(drawn),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        prompt_tokens=sum(len(one.prompt.token_ids) for one in drawn),
        output_tokens=sum(len(one.answer.output_token_ids) for one in drawn),
        finish_reasons=dict(Counter(one.answer.finish_reason for one in drawn)),
        failed=failed,
    )
    before()
    ledger.append(out, engine, record)
