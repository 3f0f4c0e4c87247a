"""Multiple choice by the likelihood of labels, and the divergence of two models on texts.

- A question is one sequence; only its last position goes through the output head.
- The choice is the label with the largest probability. If another token is more likely than every
  label, the format is wrong, whatever the choice: a count of its own.
- Sequences of similar length share a batch, padded on the right. Attention is causal, so padding
  changes nothing.

Pure functions of loaded models and token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ssd_ray.analysis.forward import ScoredModel

BATCH_TOKENS = 2048
_POSITIONS = 256
"""Positions in a chunk of logits."""

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Choices of one model, by question."""

    chosen: NDArray[np.int64]
    """Index of the most likely label."""
    in_format: NDArray[np.bool_]
    """True where that label is the most likely token of all."""
    mass: NDArray[np.float64]
    """Probability of all labels together."""


def choose(
    model: ScoredModel,
    prompts: Sequence[Ids],
    labels: Sequence[Ids],
    done: Callable[[int], None] = lambda _: None,
) -> Choices:
    """Choose a label for each prompt by its likelihood.

    Args:
        model: the model.
        prompts: token ids of each question, up to where the label follows.
        labels: token ids of the labels of each question, one token a label.
        done: called with the number of questions of each batch.
    """
    chosen = np.zeros(len(prompts), dtype=np.int64)
    in_format = np.zeros(len(prompts), dtype=np.bool_)
    mass = np.zeros(len(prompts))
    for rows in batches(prompts):
        hidden = model.hidden(_padded([prompts[row] for row in rows]))
        last = torch.tensor([len(prompts[row]) - 1 for row in rows], device=hidden.device)
        logits = model.logits(hidden[torch.arange(len(rows), device=hidden.device), last])
        scores = logits.double().log_softmax(1).cpu()
        for place, row in enumerate(rows):
            # Labels that the question lacks are no choice.
            own = scores[place, list(labels[row])]
            chosen[row] = int(own.argmax())
            in_format[row] = bool(own.max() >= scores[place].max())
            mass[row] = float(own.exp().sum())
        done(len(rows))
    return Choices(chosen=chosen, in_format=in_format, mass=mass)


def divergences(
    base: ScoredModel,
    model: ScoredModel,
    texts: Sequence[Ids],
    done: Callable[[int], None] = lambda _: None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of KL(model || base) in nats over each text, and its positions.

    Every position of a text counts: each predicts the next token.
    """
    sums, sizes = np.zeros(len(texts)), np.array([float(len(text)) for text in texts])
    for rows in batches(texts):
        ids = _padded([texts[row] for row in rows])
        states = [each.hidden(ids) for each in (base, model)]
        # Padding has no logits computed: the output head is by far the widest layer.
        for place, row in enumerate(rows):
            own = [each[place, : len(texts[row])] for each in states]
            # Float64 logits of a complete text could take gigabytes.
            for start in range(0, len(texts[row]), _POSITIONS):
                log_base, log_p = (
                    scored.logits(part[start : start + _POSITIONS]).double().log_softmax(1)
                    for scored, part in zip((base, model), own, strict=True)
                )
                sums[row] += float((log_p.exp() * (log_p - log_base)).sum())
        done(len(rows))
    return sums, sizes


def batches(sequences: Sequence[Ids], budget: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Yield rows of similar length whose padded tokens fit the budget; a longer row goes alone."""
    order = sorted(range(len(sequences)), key=lambda row: (len(sequences[row]), row))
    rows: list[int] = []
    for row in order:
        # Rows come in rising length, so the newest is the width of the batch.
        if rows and (len(rows) + 1) * len(sequences[row]) > budget:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def _padded(sequences: Sequence[Ids]) -> torch.Tensor:
    width = max(len(each) for each in sequences)
    return torch.tensor([[*each, *([0] * (width - len(each)))] for each in sequences])
