"""A work unit in progress: its prompts, answers, missing positions, failures.

Reads Prompt shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isqrt
from pathlib import Path

from ssd_ray.artifacts.ledger import Failure, Span
from ssd_ray.artifacts.shards import read_table_of
from ssd_ray.inference.crashes.attribution import ALONE_CRASHES, SUSPECT_CRASHES
from ssd_ray.inference.vllm.engine import Answer, sample_seed
from ssd_ray.inference.work.shards import Drawn
from ssd_ray.schema import Prompt, from_table


class WorkUnit:
    """Answers of one unit by position, while they are drawn."""

    def __init__(
        self, span: Span, prompts: Mapping[int, Prompt], samples: int, answers: dict[int, Answer]
    ) -> None:
        self.span = span
        self.prompts = prompts
        self.answers = answers
        self.reasons: dict[int, str] = {}
        self._samples = samples

    def missing(self) -> Iterator[Span]:
        """Yield the runs of unanswered positions, each within the answers to one prompt."""
        position = self.span.start
        while position < self.span.stop:
            end = min(self.span.stop, position - position % self._samples + self._samples)
            open_positions = [
                at
                for at in range(position, end)
                if at not in self.answers and at not in self.reasons
            ]
            for start, stop in _runs(open_positions):
                yield Span(self.span.source, start, stop)
            position = end

    def quarantine(self, prompt_ids: frozenset[str]) -> None:
        """Fail the open positions of prompts crashing engines."""
        for position, prompt in self.prompts.items():
            if prompt.prompt_id in prompt_ids and position not in self.answers:
                self.reasons[position] = (
                    f"the engine crashed {ALONE_CRASHES} times with this prompt alone in it"
                )

    def drawn(self, seed: int) -> list[Drawn]:
        """Return every answer with its key, by position."""
        return [
            Drawn(
                prompt=self.prompts[position],
                sample_index=position % self._samples,
                seed=sample_seed(seed, self.prompts[position].prompt_id, position % self._samples),
                answer=self.answers[position],
            )
            for position in sorted(self.answers)
        ]

    def failures(self) -> tuple[Failure, ...]:
        """Return every failed answer with its reason."""
        return tuple(
            Failure(
                prompt_id=self.prompts[position].prompt_id,
                sample_index=position % self._samples,
                reason=self.reasons[position],
            )
            for position in sorted(self.reasons)
        )


def read_prompts(directory: Path, unit: Span, samples: int) -> dict[int, Prompt]:
    """Read the prompts of a unit, by position."""
    first, last = unit.start // samples, (unit.stop - 1) // samples
    table = read_table_of(directory / f"{unit.source}.parquet", Prompt, memory_map=True).slice(
        first, last - first + 1
    )
    rows = list(from_table(table, Prompt))
    return {
        position: rows[position // samples - first] for position in range(unit.start, unit.stop)
    }


def groups(suspects: list[Span], crashes: int) -> Iterator[list[Span]]:
    """Bisect suspects: groups of sqrt(n) first, single prompts once a group has crashed."""
    # Groups of sqrt(n) need the fewest crashes to find one culprit, about 2 * sqrt(n).
    size = isqrt(len(suspects)) if crashes == SUSPECT_CRASHES else 1
    for start in range(0, len(suspects), size):
        yield suspects[start : start + size]


def _runs(positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield runs of neighboring positions as (first, last + 1)."""
    start = stop = -1
    for position in positions:
        if position != stop:
            if stop > start:
                yield start, stop
            start = position
        stop = position + 1
    if stop > start:
        yield start, stop
