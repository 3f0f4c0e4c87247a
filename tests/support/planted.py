"""Students made from the base's logits by a known rule, and answers for a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ssd_ray.analysis import operator
from ssd_ray.analysis.forward import Context, ScoredModel
from ssd_ray.analysis.operator import Setting
from tests.support.tiny import tiny_tokenizer

Rule = Callable[[Tensor], Tensor]


class PlantedModel(ScoredModel):
    """A model whose logits are a rule of another one's."""

    def __init__(self, base: ScoredModel, name: str, rule: Rule) -> None:
        vars(self).update(vars(base))
        self.name = name
        self._rule = rule

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the rule of the base's logits."""
        return self._rule(super().logits(hidden))


def tempered(temperature: float) -> Rule:
    """Return the ideal fit to samples at a temperature, without truncation."""
    return lambda logits: logits / temperature


def ideal(setting: Setting) -> Rule:
    """Return the ideal fit to samples of a setting: no mass outside of the support."""

    def rule(logits: Tensor) -> Tensor:
        log_q = operator.support(logits, setting).dense(logits.shape[1])
        return log_q.clamp(min=-60.0).float()

    return rule


_TAIL = 0.9
_PLATEAU = 6


def two_types(logits: Tensor) -> Tensor:
    """Return a base with two types of position, by the parity of the likeliest id.

    - Locks have a rival: 50 and 40 %, and a long tail.
    - Forks have a favorite of 50 %, six other tokens with 45 % together, and a long tail.
    """
    tail = _TAIL ** torch.arange(logits.shape[1], dtype=torch.float64)
    lock = torch.cat([torch.tensor([5.0, 4.0]), _scaled(tail[2:], 1.0)])
    fork = torch.cat([torch.tensor([5.0]), _scaled(tail[:_PLATEAU] ** 0.2, 4.5)])
    fork = torch.cat([fork, _scaled(tail[len(fork) :], 0.5)])
    is_lock = logits.argmax(1, keepdim=True) % 2 == 0
    ranks = logits.argsort(1, descending=True).argsort(1)
    return torch.where(is_lock, lock.log()[ranks], fork.log()[ranks]).float()


def against_decoding(logits: Tensor) -> Tensor:
    """Return a student of `two_types` that no decoding of the base comes near.

    Its locks lose the rival. Its forks keep favorite and plateau, at temperature 2. One policy
    that cuts the rival also cuts the plateau, at any temperature (Eq. 40).
    """
    base = two_types(logits)
    is_lock = logits.argmax(1, keepdim=True) % 2 == 0
    kept = torch.where(is_lock, 1, 1 + _PLATEAU)
    ranks = base.argsort(1, descending=True).argsort(1)
    return (base / 2).masked_fill(ranks >= kept, -60.0)


def _scaled(values: Tensor, mass: float) -> Tensor:
    return mass * values / values.sum()


def answers(number: int = 8) -> list[Context]:
    """Return short programs as answers to as many problems, with ids of the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    contexts = []
    for place in range(number):
        text = f"```python\ndef f{place}(x):\n    return x + {place}{'0' * place}  # add\n```\n"
        contexts.append(
            Context(
                problem_id=f"p{place}",
                prompt_token_ids=tuple(tokenizer.encode(f"Add {place}: " * (1 + place % 3))),
                output_token_ids=tuple(tokenizer.encode(text)),
            )
        )
    return contexts


def write_answers(path: Path, contexts: list[Context]) -> Path:
    """Write answers as rows of a completions file, in two domains."""
    tokenizer = tiny_tokenizer()
    rows = [
        {
            "prompt_id": context.problem_id,
            "sample_index": context.sample_index,
            "source": "even" if place % 2 == 0 else "odd",
            "prompt_token_ids": list(context.prompt_token_ids),
            "output_token_ids": list(context.output_token_ids),
            "text": tokenizer.decode(context.output_token_ids),
        }
        for place, context in enumerate(contexts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def random_logits(positions: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Return logits with locks and forks among them, float32."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((positions, vocabulary), generator=generator)
    sharpness = torch.logspace(-0.3, 1.2, positions)[:, None]
    return logits * sharpness
