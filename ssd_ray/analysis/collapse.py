"""Collapse of repeated self-distillation: states of rounds, and the rule to stop.

The rule reads probes on one set of contexts and samples to training prompts. It never reads the
answers to a benchmark. Pure functions without I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssd_ray.config.rounds import StopConfig


@dataclass(frozen=True, kw_only=True)
class SampleState:
    """Samples drawn from one model: shares of one."""

    distinct: float
    no_code: float
    cut_off: float
    mean_tokens: float
    accepted: float | None
    """None where training prompts are not graded."""


@dataclass(frozen=True, kw_only=True)
class ProbeState:
    """One model at the forks of the first base, on one set of contexts."""

    forks: int
    """Positions with three or more tokens in the first base's support."""
    fork_entropy: float
    """Nats, without truncation."""
    fork_support: float
    """Mean number of tokens left at the decoding of the samples."""
    entropy: float
    """Nats, at all positions."""
    kl_to_base: float
    """Nats a token, of this model to the first base; a lower bound (tail as one token)."""


def stopped_by_samples(first: SampleState, drawn: SampleState, limits: StopConfig) -> str | None:
    """Return the reason to train no further on these samples, or None."""
    return next(_samples(first, drawn, limits), None)


def stopped_by_probe(base: ProbeState, student: ProbeState, limits: StopConfig) -> str | None:
    """Return the reason to draw no further samples from this student, or None."""
    return next(_probe(base, student, limits), None)


def first_collapse(states: Sequence[ProbeState], limits: StopConfig) -> int | None:
    """Return the first round with a collapsed student; the base is `states[0]`, of round 0."""
    base, *students = states
    return next(
        (
            number
            for number, student in enumerate(students, start=1)
            if stopped_by_probe(base, student, limits)
        ),
        None,
    )


def _samples(first: SampleState, drawn: SampleState, limits: StopConfig) -> Iterator[str]:
    # A share of a share: two thirds distinct of a base with two thirds is no fall.
    if drawn.distinct < limits.distinct * first.distinct:
        yield _fell("distinct answers", drawn.distinct, first.distinct, "distinct")
    if drawn.no_code > first.no_code + limits.no_code_rise:
        yield _rose("answers without a program", drawn.no_code, first.no_code, "no_code_rise")
    if drawn.cut_off > first.cut_off + limits.cut_off_rise:
        yield _rose("answers cut off", drawn.cut_off, first.cut_off, "cut_off_rise")
    if (
        first.accepted is not None
        and drawn.accepted is not None
        and drawn.accepted < first.accepted - limits.accepted_drop
    ):
        yield _fell("accepted answers", drawn.accepted, first.accepted, "accepted_drop")


def _probe(base: ProbeState, student: ProbeState, limits: StopConfig) -> Iterator[str]:
    # Ratios, because entropies of different models have no common scale.
    if student.fork_entropy < limits.fork_entropy * base.fork_entropy:
        yield (
            f"the entropy at forks fell from {base.fork_entropy:.3g} to "
            f"{student.fork_entropy:.3g} nats (stop.fork_entropy)"
        )
    if student.fork_support < limits.fork_support * base.fork_support:
        yield (
            f"the support at forks fell from {base.fork_support:.3g} to "
            f"{student.fork_support:.3g} tokens (stop.fork_support)"
        )
    if limits.kl_to_base is not None and student.kl_to_base > limits.kl_to_base:
        yield (
            f"the divergence from the first base is {student.kl_to_base:.3g} nats a token "
            "(stop.kl_to_base)"
        )


def _fell(name: str, now: float, before: float, field: str) -> str:
    return f"the share of {name} fell from {before:.1%} to {now:.1%} (stop.{field})"


def _rose(name: str, now: float, before: float, field: str) -> str:
    return f"the share of {name} rose from {before:.1%} to {now:.1%} (stop.{field})"
