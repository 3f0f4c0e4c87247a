"""Work of a training: steps, tokens and floating-point operations.

Lengths come from a data set's manifest, or from the assumptions. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ssd_ray.artifacts.dataset_facts import SequenceFacts
from ssd_ray.config import Recipe
from ssd_ray.models.architecture import Architecture
from ssd_ray.planner.assumptions import Assumptions


@dataclass(frozen=True, kw_only=True)
class Load:
    """Tokens and floating-point operations of one optimizer step."""

    tokens: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of a training."""

    steps: int
    sequences: int
    """Sequences of all steps."""
    expected: Load
    at_most: Load
    """Load of a step with every sequence at its limit of length."""
    measured: bool
    """True if lengths are those of a data set, False if they are assumed."""


def max_tokens(recipe: Recipe) -> int:
    """Return the limit on the tokens of a training sequence."""
    return min(recipe.prepare.max_length, recipe.model.max_model_len)


def adapter_parameters(recipe: Recipe, model: Architecture) -> int | None:
    """Return the number of parameters of the recipe's adapters; None if it trains all weights."""
    lora = recipe.train.lora
    return model.lora_parameters(lora.rank, lora.target_modules) if lora else None


def count_work(
    recipe: Recipe, model: Architecture, assumed: Assumptions, dataset: SequenceFacts | None
) -> Work:
    """Count the work of a recipe's training; `dataset` are the facts of its data set, if any."""
    train = recipe.train
    length = max_tokens(recipe)
    adapters = adapter_parameters(recipe, model)
    if dataset:
        prompt = dataset.prompt_tokens / dataset.rows
        responses = _responses(dataset)
    else:
        response = min(assumed.mean_response_tokens, recipe.sample.max_tokens, length)
        prompt = min(assumed.mean_prompt_tokens, length - response)
        responses = [(1.0, response)]

    def load(prompt: float, responses: Sequence[tuple[float, float]]) -> Load:
        batch = train.global_batch_size
        tokens = prompt + sum(share * response for share, response in responses)
        flops = sum(
            share * model.flops(round(prompt), round(response), adapters)
            for share, response in responses
        )
        return Load(tokens=batch * tokens, flops=batch * flops)

    return Work(
        steps=train.steps,
        sequences=train.steps * train.global_batch_size,
        expected=load(prompt, responses),
        # All tokens but the prompt's are responses: a response costs more than a prompt's tokens.
        at_most=load(min(prompt, length), [(1.0, length - min(prompt, length))]),
        measured=bool(dataset),
    )


def _responses(dataset: SequenceFacts) -> list[tuple[float, float]]:
    """Return shares and lengths of a data set's responses, a pair for each bin of its histogram.

    - Lengths are the middles of bins, scaled to the counted mean.
    - Attention grows with the square of a length, so unequal lengths cost more than equal ones of
      the same mean.
    """
    histogram = dataset.length_histogram
    shares = [count / sum(histogram.counts) for count in histogram.counts]
    middles = [(low + high) / 2 for low, high in pairwise(histogram.edges)]
    mean = sum(share * middle for share, middle in zip(shares, middles, strict=True))
    scale = dataset.response_tokens / dataset.rows / mean
    return [(share, scale * middle) for share, middle in zip(shares, middles, strict=True) if share]
