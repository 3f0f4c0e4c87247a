"""Training data and training of a model: the `training` part of scores.json.

Prompts, samples and training set form a funnel: each step counts its rows read, dropped by reason,
and kept. Facts missing in a manifest are None, shown as "not recorded". Pure functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssd_ray.reporting.numbers.counts import FINISH_REASONS, Loss, SampleCounts

MAX_BINS = 24
# Widths of one digit give edges that are easy to read.
BIN_WIDTHS = tuple(step * 10**power for power in range(7) for step in (1, 2, 4, 5))

PROMPTS = ("rows", "read", "dropped", "tokens")
DATASET = (
    "rows",
    "read",
    "dropped",
    "masked",
    "truncated",
    "prompt_tokens",
    "response_tokens",
    "finish_reasons",
    "token_share",
    "length_histogram",
)
CHECKPOINT = (
    "steps",
    "first_loss",
    "final_loss",
    "response_tokens",
    "tokens",
    "epochs",
    "num_workers",
    "parameters",
    "heldout_rows",
    "heldout_response_tokens",
)


def training(
    samples: SampleCounts,
    loss: Loss | None,
    held_out: Mapping[str, Any] | None,
    facts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the training part of scores.json.

    It holds the counted samples, the loss by step, the held-out measures, and `facts`, those of
    manifests by stage.
    """
    return {
        "prompts": {name: facts["prompts"].get(name) for name in PROMPTS},
        "samples": _samples(samples, facts["samples"]),
        "dataset": {
            **{name: facts["dataset"].get(name) for name in DATASET},
            "health": _health(facts["dataset"]),
        },
        "checkpoint": {name: facts["checkpoint"].get(name) for name in CHECKPOINT},
        "loss": None if loss is None else {"step": list(loss.steps), "loss": list(loss.losses)},
        "held_out": held_out,
    }


def _health(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the health of the samples without examples, shown on the data set's page alone."""
    return {name: value for name, value in facts["health"].items() if name != "examples"}


def _samples(samples: SampleCounts, facts: Mapping[str, Any]) -> dict[str, Any]:
    lengths: Counter[int] = Counter()
    for counted in samples.lengths.values():
        lengths.update(counted)
    tokens = lengths_total(lengths)
    cut = samples.lengths["length"]
    return {
        "rows": samples.rows,
        "not_drawn": len(facts.get("failed", ())),
        "prompt_tokens": facts.get("prompt_tokens"),
        "output_tokens": tokens,
        "finish_reasons": {
            reason: sum(samples.lengths[reason].values()) for reason in FINISH_REASONS
        },
        "cap_hit_rate": sum(cut.values()) / samples.rows if samples.rows else None,
        "cap_hit_token_share": lengths_total(cut) / tokens if tokens else None,
        "mean_answer_tokens": tokens / samples.rows if samples.rows else None,
        "median_answer_tokens": _median(lengths),
        "longest_answer_tokens": max(lengths, default=None),
        "histogram": histogram(samples),
    }


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


def histogram(samples: SampleCounts) -> dict[str, list[int]]:
    """Count samples by length in tokens.

    Returns:
        `edges` of bins + 1 lengths, and a list of bins counts for each finish reason.
    """
    longest = max((length for lengths in samples.lengths.values() for length in lengths), default=0)
    # The smallest width with at most MAX_BINS bins.
    width = next(width for width in BIN_WIDTHS if width * MAX_BINS > longest)
    edges = list(range(0, longest + width + 1, width))
    bins: dict[str, list[int]] = {"edges": edges}
    for reason in FINISH_REASONS:
        counts = [0] * (len(edges) - 1)
        for length, number in samples.lengths[reason].items():
            counts[length // width] += number
        bins[reason] = counts
    return bins
