"""Lengths of the self-samples: counts, mean, median and histogram.

Reads samples/; writes nothing. The part `samples` of each training in scores.json.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssd_ray.artifacts import shards
from ssd_ray.reporting.numbers.counts import FINISH_REASONS, check_rows, mismatch

MAX_BINS = 24
# Widths of one digit give edges that are easy to read.
BIN_WIDTHS = tuple(step * 10**power for power in range(7) for step in (1, 2, 4, 5))


@dataclass(frozen=True, kw_only=True)
class SampleCounts:
    """Lengths of the self-samples."""

    lengths: Mapping[str, Counter[int]]
    """Number of answers of each length in tokens, by finish reason."""

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(sum(lengths.values()) for lengths in self.lengths.values())


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Samples by length in tokens: bins + 1 edges, and for each finish reason one count per bin."""

    edges: tuple[int, ...]
    stop: tuple[int, ...]
    length: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """Samples of a training; rates and lengths are None without samples."""

    rows: int
    not_drawn: int
    """Answers that could not be drawn."""
    prompt_tokens: int | None
    """None if the manifest does not count them."""
    output_tokens: int
    finish_reasons: Mapping[str, int]
    cap_hit_rate: float | None
    """Answers cut off at the token limit, of all answers."""
    cap_hit_token_share: float | None
    """Their tokens, of all tokens."""
    mean_answer_tokens: float | None
    median_answer_tokens: float | None
    longest_answer_tokens: int | None
    histogram: Histogram


def sample_counts(path: Path) -> SampleCounts:
    """Count the lengths of the self-samples in a directory, by finish reason.

    Raises:
        UserError: it is not complete or its rows contradict its manifest.
    """
    lengths: dict[str, Counter[int]] = defaultdict(Counter)
    for token_ids, finish_reason in shards.read_columns(path, "output_token_ids", "finish_reason"):
        if finish_reason not in FINISH_REASONS:
            raise mismatch(path, f"unknown finish_reason {finish_reason!r}")
        lengths[finish_reason][len(token_ids)] += 1
    counts = SampleCounts(lengths={reason: lengths[reason] for reason in FINISH_REASONS})
    check_rows(path, counts.rows)
    return counts


def sample_table(
    samples: SampleCounts, *, not_drawn: int, prompt_tokens: int | None
) -> SampleTable:
    """Return the numbers on the samples of a training."""
    lengths: Counter[int] = Counter()
    for counted in samples.lengths.values():
        lengths.update(counted)
    tokens = lengths_total(lengths)
    cut = samples.lengths["length"]
    return SampleTable(
        rows=samples.rows,
        not_drawn=not_drawn,
        prompt_tokens=prompt_tokens,
        output_tokens=tokens,
        finish_reasons={reason: sum(samples.lengths[reason].values()) for reason in FINISH_REASONS},
        cap_hit_rate=sum(cut.values()) / samples.rows if samples.rows else None,
        cap_hit_token_share=lengths_total(cut) / tokens if tokens else None,
        mean_answer_tokens=tokens / samples.rows if samples.rows else None,
        median_answer_tokens=_median(lengths),
        longest_answer_tokens=max(lengths, default=None),
        histogram=histogram(samples),
    )


def lengths_total(lengths: Counter[int]) -> int:
    """Return the number of tokens in all answers of counted lengths."""
    return sum(length * number for length, number in lengths.items())


def _median(lengths: Counter[int]) -> float | None:
    if not lengths:
        return None
    # Both middle answers, found by the number of answers up to each length.
    ordered = np.array(sorted(lengths))
    reached = np.cumsum([lengths[int(length)] for length in ordered])
    middle = [(reached[-1] - 1) // 2, reached[-1] // 2]
    return float(
        np.mean([ordered[np.searchsorted(reached, index, side="right")] for index in middle])
    )


def histogram(samples: SampleCounts) -> Histogram:
    """Count samples by length in tokens, in at most MAX_BINS bins."""
    longest = max((length for lengths in samples.lengths.values() for length in lengths), default=0)
    # The smallest width with at most MAX_BINS bins.
    width = next(width for width in BIN_WIDTHS if width * MAX_BINS > longest)
    edges = tuple(range(0, longest + width + 1, width))
    bins: dict[str, tuple[int, ...]] = {}
    for reason in FINISH_REASONS:
        counts = [0] * (len(edges) - 1)
        for length, number in samples.lengths[reason].items():
            counts[length // width] += number
        bins[reason] = tuple(counts)
    return Histogram(edges=edges, stop=bins["stop"], length=bins["length"])
