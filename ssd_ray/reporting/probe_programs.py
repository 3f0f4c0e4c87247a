"""Answers of a probe as text: every token with its type, its change, and the likely tokens.

Reads `heads.parquet`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_ray.analysis.token_kinds import Pieces
from ssd_ray.artifacts.shards import read_table
from ssd_ray.reporting.numbers.probe_groups import TYPES
from ssd_ray.reporting.numbers.probe_numbers import ProbeNumbers

NUM_TOP = 6
"""Likely tokens listed at a position."""
_FULL_CHANGE = 0.5
"""Change of the entropy in nats with the full color."""
_COLUMNS = ("position", "token_id", "support_size", "entropy", "log_probability")


@dataclass(frozen=True, kw_only=True)
class TopToken:
    """A likely token of a model at a position."""

    text: str
    probability: float
    is_kept: bool
    """True if the token is in S."""
    is_there: bool
    """True if it is the token of the answer."""


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A model at a position."""

    model: str
    entropy: float
    probability: float
    """Probability of the token of the answer."""
    top: tuple[TopToken, ...]


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """A token of an answer."""

    text: str
    type: str
    """A name of `TYPES`."""
    support_size: int
    change: float
    """Rise of the entropy, -1 to 1, where 1 is half a nat or more."""
    views: tuple[ModelView, ...]


@dataclass(frozen=True, kw_only=True)
class Program:
    """An answer as tokens."""

    name: str
    domain: str
    tokens: tuple[ShownToken, ...]

    @property
    def num_forks(self) -> int:
        """Number of positions with three or more tokens in S."""
        return sum(token.type == TYPES[2] for token in self.tokens)

    @property
    def num_locks(self) -> int:
        """Number of positions with one token in S."""
        return sum(token.type == TYPES[0] for token in self.tokens)


def programs(out: Path, numbers: ProbeNumbers, pieces: Pieces) -> list[Program]:
    """Return the answers to show, under the base and the last model."""
    table = read_table(out / "heads.parquet")
    table = table.filter(table.column("is_shown"))
    models = dict.fromkeys((numbers.base, numbers.models[-1]))
    answers: dict[tuple[str, str, int], dict[str, list[Any]]] = {}
    for row in _rows(table):
        key = (row["domain"], row["problem_id"], row["sample_index"])
        if row["model"] in models:
            answers.setdefault(key, {}).setdefault(row["model"], []).append(row)
    return [
        Program(
            name=f"{problem}, answer {sample}",
            domain=domain,
            tokens=tuple(_tokens([rows[model] for model in models], list(models), pieces)),
        )
        for (domain, problem, sample), rows in sorted(answers.items())
    ]


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    keys = ("domain", "problem_id", "sample_index", "model")
    heads = ("head_ids", "head_log_probabilities")
    for batch in table.select([*keys, *_COLUMNS, *heads]).to_batches(max_chunksize=512):
        yield from batch.to_pylist()


def _tokens(
    by_model: Sequence[Sequence[dict[str, Any]]], models: Sequence[str], pieces: Pieces
) -> Iterator[ShownToken]:
    ordered = [sorted(rows, key=lambda row: row["position"]) for rows in by_model]
    for rows in zip(*ordered, strict=True):
        base, last = rows[0], rows[-1]
        size = base["support_size"]
        # S is a prefix of the base's head, most likely tokens first.
        kept = set(base["head_ids"][:size])
        yield ShownToken(
            text=pieces.of([base["token_id"]])[0],
            type=TYPES[min(size, len(TYPES)) - 1],
            support_size=size,
            change=float(np.clip((last["entropy"] - base["entropy"]) / _FULL_CHANGE, -1, 1)),
            views=tuple(
                _view(row, model, kept, pieces) for row, model in zip(rows, models, strict=True)
            ),
        )


def _view(row: dict[str, Any], model: str, kept: set[int], pieces: Pieces) -> ModelView:
    ids = row["head_ids"][:NUM_TOP]
    texts = pieces.of(ids)
    return ModelView(
        model=model,
        entropy=row["entropy"],
        probability=math.exp(row["log_probability"]),
        top=tuple(
            TopToken(
                text=text,
                probability=math.exp(value),
                is_kept=token in kept,
                is_there=token == row["token_id"],
            )
            for token, text, value in zip(ids, texts, row["head_log_probabilities"], strict=False)
        ),
    )
