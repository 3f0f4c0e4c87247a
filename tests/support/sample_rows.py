"""Samples written by hand, as an engine would have drawn them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.ledger import Failure, Ledger, Span
from ssd_ray.artifacts.shards import write_shard
from ssd_ray.inference.vllm.engine import Answer
from ssd_ray.inference.work.shards import Drawn, write_completions
from ssd_ray.schema import Completion, Example, Prompt

PROGRAM = "```python\nprint(1)\n```"


def completion(prompt_id: str, **values: Any) -> Completion:
    row: dict[str, Any] = {
        "sample_index": 0,
        "seed": 1,
        "source": "test",
        "difficulty": "easy",
        "prompt_token_ids": (1, 2, 3),
        "output_token_ids": (10, 11, 2),
        "text": PROGRAM,
        "finish_reason": "stop",
    }
    return Completion(prompt_id=prompt_id, **{**row, **values})


def write_samples(out: Path, rows: list[Completion], shard_rows: int = 2) -> Path:
    for start in range(0, len(rows), shard_rows):
        write_shard(out, f"part-{start:05}", rows[start : start + shard_rows], Completion)
    return out


def write_sequences(out: Path, *, samples: int = 1) -> Path:
    """Write thirty random training sequences, `samples` of each prompt, in two shards."""
    draw = random.Random(0)
    rows = []
    for index in range(30):
        length, num_prompt = draw.randint(8, 40), draw.randint(2, 6)
        ids = tuple(draw.randrange(3, 260) for _ in range(length))
        rows.append(
            Example(
                prompt_id=f"p{index // samples:02}",
                sample_index=index % samples,
                input_ids=ids,
                num_prompt_tokens=num_prompt,
            )
        )
    write_shard(out, "part-00000", rows[:19], Example)
    write_shard(out, "part-00001", rows[19:], Example)
    return out


def write_unit(
    out: Path, span: Span, writer: str = "w", failed: tuple[Failure, ...] = (), text: str = "x"
) -> None:
    prompt = Prompt(prompt_id="p", source="s", difficulty="d", text="t", token_ids=(1, 2))
    answer = Answer(output_token_ids=(3,), text=text, finish_reason="stop")
    drawn = [
        Drawn(prompt=prompt, sample_index=at, seed=at, answer=answer)
        for at in range(span.start, span.stop - len(failed))
    ]
    ledger = Ledger(out, writer)
    write_completions(ledger, span, drawn, failed)
    ledger.close()
