"""Section `stop` of a recipe: when repeated self-distillation ends before its last round.

Each limit compares a round with the first base or the first samples. None reads a benchmark.
Does no I/O.
"""

from __future__ import annotations

from pydantic import Field

from ssd_ray.config.section import Section


class StopConfig(Section):
    """Section `stop`: limits of a round, relative to the first base and its samples."""

    fork_entropy: float = Field(0.5, ge=0, le=1)
    """Least share of the first base's entropy at its forks. 0 never stops for it."""
    fork_support: float = Field(0.5, ge=0, le=1)
    """Least share of the first base's support at its forks, at the decoding of the samples."""
    distinct: float = Field(0.8, ge=0, le=1)
    """Least share of the distinct answers among the first samples."""
    no_code_rise: float = Field(0.2, ge=0, le=1)
    """Largest rise of the share of samples without a program."""
    cut_off_rise: float = Field(0.2, ge=0, le=1)
    """Largest rise of the share of samples cut off at the token limit."""
    accepted_drop: float = Field(0.1, ge=0, le=1)
    """Largest fall of the share of accepted samples, where training prompts have tests that grade
    them (`prepare.select` accepted, or that control). These are held out of the benchmarks.
    """
    kl_to_base: float | None = Field(None, gt=0)
    """Largest divergence from the first base in nats a token. `null` sets no limit."""
