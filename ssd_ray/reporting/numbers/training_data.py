"""Training data and training of a model: the part `training` of scores.json.

Prompts, samples and training set form a funnel: each step counts its rows read, dropped by reason,
and kept. Numbers missing in a manifest are None, shown as "not recorded". Pure functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssd_ray.artifacts.dataset_facts import DatasetFacts, HealthCounts, LengthHistogram, Masked
from ssd_ray.artifacts.facts import AnswerFacts, CheckpointFacts
from ssd_ray.artifacts.problem_facts import PromptFacts
from ssd_ray.reporting.numbers.logs import HeldOut, Loss
from ssd_ray.reporting.numbers.samples import SampleCounts, SampleTable, sample_table


@dataclass(frozen=True, kw_only=True)
class TrainedModelFacts:
    """Facts of a trained model's stages, its counted samples and its logs."""

    prompts: PromptFacts
    samples: AnswerFacts
    dataset: DatasetFacts
    checkpoint: CheckpointFacts
    lengths: SampleCounts
    loss: Loss | None
    held_out: HeldOut | None


@dataclass(frozen=True, kw_only=True)
class PromptCounts:
    """Prompts: rows read, dropped by reason, and kept, with their tokens."""

    rows: int | None
    read: int | None
    dropped: Mapping[str, int] | None
    tokens: int | None


@dataclass(frozen=True, kw_only=True)
class DatasetCounts:
    """Training sequences: samples read, dropped by reason, and kept, and their health as drawn."""

    rows: int | None
    read: int | None
    dropped: Mapping[str, int] | None
    masked: Masked | None
    truncated: int | None
    prompt_tokens: int | None
    response_tokens: int | None
    finish_reasons: Mapping[str, int] | None
    token_share: Mapping[str, float] | None
    """Share of the response tokens, by finish reason."""
    length_histogram: LengthHistogram | None
    health: HealthCounts


@dataclass(frozen=True, kw_only=True)
class CheckpointCounts:
    """Size and course of the training."""

    steps: int | None
    first_loss: float | None
    final_loss: float | None
    response_tokens: int | None
    tokens: int | None
    epochs: float | None
    num_workers: int | None
    parameters: int | None
    heldout_rows: int | None
    heldout_response_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training data and training of one model."""

    prompts: PromptCounts
    samples: SampleTable
    dataset: DatasetCounts
    checkpoint: CheckpointCounts
    loss: Loss | None
    """None if it was not recorded."""
    held_out: HeldOut | None
    """None without held-out samples."""


def training(model: TrainedModelFacts) -> Training:
    """Return the numbers on a trained model, without the excerpts of samples."""
    health = HealthCounts(**_fields_of(HealthCounts, model.dataset.health))
    return Training(
        prompts=PromptCounts(**_fields_of(PromptCounts, model.prompts)),
        samples=sample_table(
            model.lengths,
            not_drawn=len(model.samples.failed),
            prompt_tokens=model.samples.prompt_tokens,
        ),
        dataset=DatasetCounts(**_fields_of(DatasetCounts, model.dataset) | {"health": health}),
        checkpoint=CheckpointCounts(**_fields_of(CheckpointCounts, model.checkpoint)),
        loss=model.loss,
        held_out=model.held_out,
    )


def _fields_of(kind: type[Any], facts: object) -> dict[str, Any]:
    """Return the values of a dataclass's fields in facts with more fields."""
    return {field.name: getattr(facts, field.name) for field in dataclasses.fields(kind)}
