"""One unit of work while it is drawn: its prompts, what is answered, what is missing, what cannot be. Reads Prompt shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isqrt
from pathlib import Path

from ssd_ray.artifacts.ledger import Failure, Span
from ssd_ray.artifacts.shards import read_table_of
from ssd_ray.inference.crashes.attribution import ALONE_DEATHS, SUSPECT_DEATHS
from ssd_ray.inference.vllm.engine import Answer, sample_seed
from ssd_ray.inference.work.shards import Drawn
from ssd_ray.schema import Prompt, from_table


class WorkUnit:
    """The answers of one unit while it is drawn, by position."""

    def __init__(
        self, span: Span, prompts: Mapping[int, Prompt], samples: int, answers: dict[int, Answer]
    ) -> None:
        self.span = span
        self.prompts = prompts
        self.answers = answers
        self.reasons: dict[int, str] = {}
        self._samples = samples

    def missing(self) -> Iterator[Span]:
        """What is left, one span for each prompt that has positions without an answer."""
        position = self.span.start
        while position < self.span.stop:
            end = min(self.span.stop, position - position % self._samples + self._samples)
            there = [
                at
                for at in range(position, end)
                if at not in self.answers and at not in self.reasons
            ]
            for start, stop in _runs(there):
                yield Span(self.span.source, start, stop)
            position = end

    def leave_out(self, prompt_ids: frozenset[str]) -> None:
        """Give up on prompts that end engines."""
        for position, prompt in self.prompts.items():
            if prompt.prompt_id in prompt_ids and position not in self.answers:
                self.reasons[position] = (
                    f"the engine died {ALONE_DEATHS} times with this prompt alone in it"
                )

    def drawn(self, seed: int) -> list[Drawn]:
        """Every answer with its key, in order."""
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
        """Every answer that could not be drawn."""
        return tuple(
            Failure(
                prompt_id=self.prompts[position].prompt_id,
                sample_index=position % self._samples,
                reason=self.reasons[position],
            )
            for position in sorted(self.reasons)
        )


def read_prompts(directory: Path, unit: Span, samples: int) -> dict[int, Prompt]:
    """The prompts of a unit, by position."""
    first, last = unit.start // samples, (unit.stop - 1) // samples
    table = read_table_of(directory / f"{unit.source}.parquet", Prompt, memory_map=True).slice(
        first, last - first + 1
    )
    rows = list(from_table(table, Prompt))
    return {
        position: rows[position // samples - first] for position in range(unit.start, unit.stop)
    }


def groups(suspects: list[Span], deaths: int) -> Iterator[list[Span]]:
    """Suspects in groups of about the root of their number, one by one once that has not told."""
    size = isqrt(len(suspects)) if deaths == SUSPECT_DEATHS else 1
    for start in range(0, len(suspects), size):
        yield suspects[start : start + size]


def _runs(positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring positions as (first, last + 1)."""
    start = stop = -1
    for position in positions:
        if position != stop:
            if stop > start:
                yield start, stop
            start = position
        stop = position + 1
    if stop > start:
        yield start, stop
