"""Write the answers of a unit as one shard of completions, and its line in the ledger.

Columns are built directly. At a million rows, an object for each row would take most of the time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ssd_ray.artifacts import shards
from ssd_ray.artifacts.ledger import Failure, Ledger, Record, Span
from ssd_ray.inference.vllm.engine import Answer
from ssd_ray.schema import Completion, Prompt, arrow_schema


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An answer with its key."""

    prompt: Prompt
    sample_index: int
    seed: int
    answer: Answer


def write_completions(
    ledger: Ledger,
    unit: Span,
    drawn: list[Drawn],
    failed: tuple[Failure, ...],
    *,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Write the shard of a unit, then put it on record.

    `before` is called before each of the two writes.

    Raises:
        UserError: the directory is not writable or the disk is full.
    """
    import pyarrow as pa

    columns = {
        "prompt_id": [row.prompt.prompt_id for row in drawn],
        "sample_index": [row.sample_index for row in drawn],
        "seed": [row.seed for row in drawn],
        "source": [row.prompt.source for row in drawn],
        "difficulty": [row.prompt.difficulty for row in drawn],
        "prompt_token_ids": [row.prompt.token_ids for row in drawn],
        "output_token_ids": [row.answer.output_token_ids for row in drawn],
        "text": [row.answer.text for row in drawn],
        "finish_reason": [row.answer.finish_reason for row in drawn],
    }
    # `before` ends the process if another attempt has taken over.
    before()
    path, data = shards.write_table(
        ledger.out, unit.name, pa.table(columns, schema=arrow_schema(Completion))
    )
    record = Record(
        file=path.name,
        span=unit,
        rows=len(drawn),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        prompt_tokens=sum(len(row.prompt.token_ids) for row in drawn),
        output_tokens=sum(len(row.answer.output_token_ids) for row in drawn),
        finish_reasons=dict(Counter(row.answer.finish_reason for row in drawn)),
        failed=failed,
    )
    before()
    ledger.append(record)
