"""Times of a recovery, from the samples that a watch took of a disturbed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at a run."""

    at: float
    done: int
    """Answers, steps or verdicts on disk."""
    workers: frozenset[int]
    """Live processes of the stage's role that are not stopped; of engines, those with a model."""


def role_back_s(samples: Sequence[Sample], struck: float, before: frozenset[int]) -> float | None:
    """Return the seconds until the role had as many workers at work as `before`.

    0 if none of those was missing; None if the work ended first.
    """
    total = samples[-1].done
    is_missing = False
    for sample in samples:
        if sample.at < struck:
            continue
        if not is_missing and sample.done >= total:
            return 0.0
        is_missing = is_missing or not before <= sample.workers
        if is_missing and len(sample.workers) >= len(before):
            return sample.at - struck
    return None if is_missing else 0.0


def worker_seconds_lost(samples: Sequence[Sample], struck: float, before: frozenset[int]) -> float:
    """Return the seconds of missing workers, summed from the strike to the last unit."""
    total = samples[-1].done
    lost = 0.0
    for sample, following in pairwise(each for each in samples if each.at >= struck):
        if sample.done >= total:
            break
        lost += max(0, len(before) - len(sample.workers)) * (following.at - sample.at)
    return lost


def longest_pause_s(samples: Sequence[Sample], struck: float, done: int) -> float:
    """Return the longest time without more on disk than ever before, from the strike on.

    The time from the last unit to the end of the command is no pause.
    """
    longest, since, most = 0.0, struck, done
    for sample in samples:
        if sample.at >= struck and sample.done > most:
            longest = max(longest, sample.at - since)
            since, most = sample.at, sample.done
    return longest
