"""Work of a training: steps, tokens and floating-point operations.

Lengths come from a data set's manifest, or from the assumptions. Pure functions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ssd_ray.artifacts.dataset_facts import SequenceFacts
from ssd_ray.config import Recipe
from ssd_ray.models.architecture import Architecture
from ssd_ray.planner.assumptions import Assumptions

Batch = tuple[tuple[int, int], ...]
"""Tokens of prompt and response of each sequence of one step."""

_SAMPLED = 4096
"""Sequences of all sampled batches together, at least."""
_QUANTILES = 256
"""Lengths that represent the assumed distribution of answers."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Tokens and floating-point operations of one optimizer step, and batches to time it."""

    tokens: float
    flops: float
    batches: tuple[Batch, ...]
    """Batches with lengths in the proportions of the data."""


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
        prompt = min(dataset.prompt_tokens / dataset.rows, length)
        responses = _counted(dataset, length - prompt)
    else:
        response = min(assumed.mean_response_tokens, recipe.sample.max_tokens, length)
        prompt = min(assumed.mean_prompt_tokens, length - response)
        responses = _assumed(assumed, min(recipe.sample.max_tokens, length - prompt))

    def load(responses: Sequence[tuple[float, float]]) -> Load:
        batch = train.global_batch_size
        tokens = prompt + sum(share * response for share, response in responses)
        flops = sum(
            share * model.flops(round(prompt), round(response), adapters)
            for share, response in responses
        )
        batches = _batches(responses, round(prompt), batch)
        return Load(tokens=batch * tokens, flops=batch * flops, batches=batches)

    return Work(
        steps=train.steps,
        sequences=train.steps * train.global_batch_size,
        expected=load(responses),
        # All tokens but the prompt's are responses: a response costs more than a prompt's tokens.
        at_most=load([(1.0, length - prompt)]),
        measured=bool(dataset),
    )


def _counted(dataset: SequenceFacts, limit: float) -> list[tuple[float, float]]:
    """Return shares and lengths of a data set's responses, a pair for each bin of its histogram.

    - Lengths are the middles of bins, scaled to the counted mean. Answers in the bin of the limit
      are taken to be at the limit: most of them were cut off there.
    - Attention grows with the square of a length, so unequal lengths cost more than equal ones of
      the same mean.
    """
    histogram = dataset.length_histogram
    total = sum(histogram.counts)
    bins = [
        (count / total, (low + high) / 2 if high <= limit else limit)
        for (low, high), count in zip(pairwise(histogram.edges), histogram.counts, strict=True)
        if count
    ]
    below = sum(share * middle for share, middle in bins if middle < limit)
    at_limit = sum(share * middle for share, middle in bins if middle >= limit)
    mean = dataset.response_tokens / dataset.rows
    scale = (mean - at_limit) / below if below and mean > at_limit else 1.0
    return [(share, middle * (scale if middle < limit else 1)) for share, middle in bins]


def _assumed(assumed: Assumptions, limit: float) -> list[tuple[float, float]]:
    """Return shares and lengths of assumed responses, none longer than the limit.

    Answers that end follow a gamma distribution of shape 2: with the default mean, 1 % are above
    8,000 tokens. The others, `capped_share` of all, are at the limit.
    """
    scale = assumed.mean_response_tokens / 2
    share = (1 - assumed.capped_share) / _QUANTILES
    ended = [
        (share, max(1.0, min(limit, scale * _gamma_quantile((index + 0.5) / _QUANTILES))))
        for index in range(_QUANTILES)
    ]
    return [*ended, (assumed.capped_share, limit)] if assumed.capped_share else ended


def _gamma_quantile(share: float) -> float:
    """Return the quantile of a gamma distribution of shape 2 and scale 1, by bisection."""
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - (1 + middle) * math.exp(-middle) < share:
            low = middle
        else:
            high = middle
    return low


def _batches(
    responses: Sequence[tuple[float, float]], prompt: int, batch_size: int
) -> tuple[Batch, ...]:
    """Return batches with responses in the proportions of `responses`, in a fixed random order."""
    if len(responses) == 1:
        return (((prompt, max(1, round(responses[0][1]))),) * batch_size,)
    number = -(-_SAMPLED // batch_size)
    size = number * batch_size
    ends = list(accumulate(share for share, _ in responses))
    lengths: list[int] = []
    for end, (_, response) in zip(ends, responses, strict=True):
        until = round(size * end / ends[-1])
        lengths += [max(1, round(response))] * (until - len(lengths))
    random.Random(0).shuffle(lengths)
    return tuple(
        tuple((prompt, response) for response in lengths[start : start + batch_size])
        for start in range(0, size, batch_size)
    )
