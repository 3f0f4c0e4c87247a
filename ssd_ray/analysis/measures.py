"""Measures of models at the positions of a chunk: pure functions on logits.

- The first model is the base. Its support at T_train gives a position its type.
- One pass over the vocabulary gives the norm and the entropy of a model, and one more its largest
  logits. Decodings at any number of temperatures are cut from those.
- Exponentials are float32, sums of logits that matter are float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ssd_ray.analysis import theory
from ssd_ray.analysis.operator import Ranking, Setting, Support, chunks, log_normalize
from ssd_ray.analysis.signals import progress_sums
from ssd_ray.analysis.theory import LogProbabilities, entropy_split, terms
from ssd_ray.errors import UserError

TEMPERATURES = (0.4, 0.7, 1.0, 1.2, 1.4, 1.7, 2.0)
"""Evaluation temperatures measured by default; 0.4 to 2 are those of the paper's Fig. 6."""
RANKS = (1, 2, 3, 5, 10, 20, 30, 40, 50, 60)
"""Ranks at which the cumulative mass is measured (Fig. 6a)."""
TOP = 20
"""Tokens whose mass stratifies positions (Fig. 6d)."""
HEAD = 64
"""Tokens of a head: the largest logits of a position, kept for pictures and decodings."""
TAIL_POWERS = (0.25, 0.5, 0.75, 1.0, 2.0)
"""Powers 1/T at which the mass outside of the base's head is measured."""
_BLOCK_ELEMENTS = 1 << 18
_NO_MASS = 100.0
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Decodings of a probe."""

    training: Setting
    """T_train and rho_train: the decoding of the samples."""
    evaluation: Setting
    """T_eval and rho_eval: the decoding of the trained model."""
    temperatures: tuple[float, ...] = TEMPERATURES
    """Temperatures at which rho_eval is measured."""

    def __post_init__(self) -> None:
        """Check the temperatures, before a model is loaded."""
        if not self.sweep:
            raise UserError("temperatures are empty: give one or more")

    @property
    def sweep(self) -> tuple[Setting, ...]:
        """The decodings at each temperature."""
        own = self.evaluation
        return tuple(
            Setting(temperature=each, top_k=own.top_k, top_p=own.top_p)
            for each in self.temperatures
        )


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measures of one model, float64 [positions] unless stated; entropies are in nats."""

    support_size: Tensor
    """Tokens in S, the base's support at T_train, int64."""
    kept_mass: Tensor
    """p(S)."""
    entropy: Tensor
    """H(p), the sum of the next three (Eq. 30)."""
    entropy_gate: Tensor
    entropy_head: Tensor
    entropy_tail: Tensor
    support_entropy: Tensor
    """H(p on S): the entropy within S alone."""
    support_compression: Tensor
    """-log p(S). The next three and this are the terms of CE(q, p) (Eq. 15)."""
    reshaping: Tensor
    alignment: Tensor
    constant: Tensor
    cross_entropy: Tensor
    log_probability: Tensor
    """log p of the token there."""
    rank: Tensor
    """Its rank, from 1, int64."""
    top_mass: Tensor
    """Mass of the `TOP` most likely tokens."""
    rank_mass: Tensor
    """Mass of the most likely tokens up to each of `RANKS`, [positions, ranks]."""
    survivors: Tensor
    """Tokens after truncation at each temperature, int64 [positions, temperatures]."""
    truncated_entropy: Tensor
    """Entropy after truncation, [positions, temperatures]."""
    decode_log_probability: Tensor
    """log of the token's probability when decoding; minus infinity if it does not survive,
    [positions, temperatures]."""
    progress: Tensor
    """Summands of the signals of progress, [positions, `signals.NUM_SUMS`]."""
    head_ids: Tensor
    """The most likely tokens, int64 [positions, head]."""
    head_log_probabilities: Tensor
    """log p of them, [positions, head]."""
    base_log_probabilities: Tensor
    """log p0 of them, [positions, head]."""
    tail_log_masses: Tensor
    """log of the sum of p^g outside of the head at each of `TAIL_POWERS`, [positions, powers]."""

    @classmethod
    def joined(cls, parts: Sequence[Measures]) -> Measures:
        """Return the measures of consecutive positions as one, on the CPU."""
        return cls(
            **{
                field.name: torch.cat([getattr(part, field.name) for part in parts]).cpu()
                for field in fields(cls)
            }
        )


def measure(logits: Sequence[Tensor], tokens: Tensor, settings: Settings) -> list[Measures]:
    """Measure each model at some positions; the first one is the base.

    Args:
        logits: one tensor a model, float32 [positions, vocabulary].
        tokens: the token at each position, [positions].
        settings: decodings.
    """
    positions, vocabulary = logits[0].shape
    parts: list[list[Measures]] = [[] for _ in logits]
    for part in _parts(positions, vocabulary, settings):
        base = _Scored(logits[0][part], settings)
        support = base.ranking.support(settings.training)
        for place, own in enumerate(logits):
            model = base if place == 0 else _Scored(own[part], settings)
            parts[place].append(_measure(model, base, support, tokens[part], settings))
    return [Measures.joined(each) for each in parts]


def _parts(positions: int, vocabulary: int, settings: Settings) -> Iterable[slice]:
    """Return slices of positions; one if no float64 copy of a vocabulary is needed.

    Many small slices would take most of the time for starting operations.
    """
    if all(each.top_k for each in (settings.training, settings.evaluation)):
        return [slice(0, positions)]
    return chunks(positions, vocabulary)


class _Scored(LogProbabilities):
    """Log-probabilities from one float32 pass, with the largest logits and the tail."""

    def __init__(self, logits: Tensor, settings: Settings) -> None:
        self.logits = logits
        self.ranking = Ranking(logits)
        limits = [settings.training.top_k, settings.evaluation.top_k]
        # The widest first: narrower ones are cut from it.
        self.ranking.largest(HEAD + max((limit for limit in limits if limit), default=0))
        largest = self.ranking.largest(1)[0]
        mass, energy, powers = _pass(logits, largest)
        self.log_norm = largest[:, 0].double() + mass.log()
        self.entropy = mass.log() - energy / mass
        self.head_logits, self.head_ids = self.ranking.largest(HEAD)
        self.head_log_probabilities = self.head_logits.double() - self.log_norm[:, None]
        scale = torch.tensor(TAIL_POWERS, dtype=torch.float64, device=logits.device)
        # The tail is the vocabulary without the head, for which the sums are exact.
        heads = torch.stack(
            [(power * (self.head_logits - largest).double()).exp().sum(1) for power in TAIL_POWERS],
            dim=1,
        )
        # A difference of sums: a smaller tail would be their rounding.
        tails = torch.maximum(powers - heads, _ROUNDING * powers)
        self.tail_log_masses = tails.log() - scale * mass.log()[:, None]


def _pass(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums over the vocabulary: e^x, x e^x and e^(g x) for `TAIL_POWERS`, float64.

    x is the distance of a logit to the largest one. Blocks of rows stay in the processor's cache.
    """
    positions, vocabulary = logits.shape
    step = max(1, _BLOCK_ELEMENTS // vocabulary)
    mass = torch.empty(positions, dtype=torch.float32, device=logits.device)
    energy = torch.empty_like(mass)
    powers = torch.empty((positions, len(TAIL_POWERS)), dtype=torch.float32, device=logits.device)
    for start in range(0, positions, step):
        part = slice(start, start + step)
        x = (logits[part] - largest[part]).clamp_(min=-_NO_MASS)
        e = x.exp()
        mass[part] = e.sum(1)
        energy[part] = torch.linalg.vecdot(e, x)
        # Powers come from roots and products: an exponential costs ten times as much.
        half = e.sqrt()
        quarter = half.sqrt()
        powers[part, 0] = quarter.sum(1)
        powers[part, 1] = half.sum(1)
        powers[part, 2] = torch.linalg.vecdot(half, quarter)
        powers[part, 3] = mass[part]
        powers[part, 4] = torch.linalg.vecdot(e, e)
    return mass.double(), energy.double(), powers.double()


def _measure(
    model: _Scored, base: _Scored, support: Support, tokens: Tensor, settings: Settings
) -> Measures:
    split = entropy_split(support, model)
    loss = terms(support, base, model, settings.training.temperature)
    within = log_normalize(support.of(model.logits))
    decoded = [model.ranking.support(setting) for setting in settings.sweep]
    mass = model.head_log_probabilities.exp().cumsum(1).clamp(max=1.0)
    width = mass.shape[1]
    own = model.logits.gather(1, tokens[:, None])
    return Measures(
        support_size=support.sizes,
        kept_mass=loss.kept_mass,
        entropy=split.total,
        entropy_gate=split.gate,
        entropy_head=split.head,
        entropy_tail=split.tail,
        support_entropy=theory.entropy(within),
        support_compression=loss.support_compression,
        reshaping=loss.reshaping,
        alignment=loss.alignment,
        constant=loss.constant,
        cross_entropy=loss.cross_entropy,
        log_probability=model.of(tokens),
        rank=1 + _larger(model, own),
        top_mass=mass[:, min(TOP, width) - 1],
        rank_mass=mass[:, [min(rank, width) - 1 for rank in RANKS]],
        survivors=torch.stack([each.sizes for each in decoded], dim=1),
        truncated_entropy=torch.stack([theory.entropy(each.log_q) for each in decoded], dim=1),
        decode_log_probability=torch.stack([_log_q(each, tokens) for each in decoded], dim=1),
        progress=progress_sums(support, base, model),
        head_ids=model.head_ids,
        head_log_probabilities=model.head_log_probabilities,
        base_log_probabilities=base.logits.gather(1, model.head_ids).double()
        - base.log_norm[:, None],
        tail_log_masses=model.tail_log_masses,
    )


def _larger(model: _Scored, own: Tensor) -> Tensor:
    """Return how many logits are larger than `own`, [positions, 1]."""
    larger = (model.head_logits > own).sum(1)
    # Most tokens are within the head. Only the others need a look at the vocabulary.
    beyond = (larger == model.head_logits.shape[1]).nonzero()[:, 0]
    if len(beyond):
        larger[beyond] = (model.logits[beyond] > own[beyond]).sum(1)
    return larger


def _log_q(support: Support, tokens: Tensor) -> Tensor:
    """Return log q of a token at each position, minus infinity outside of the support."""
    if support.ids is None:
        return support.log_q.gather(1, tokens[:, None])[:, 0]
    # Padding repeats ids with minus infinity, so the largest value counts.
    is_token = support.ids == tokens[:, None]
    return support.log_q.masked_fill(~is_token, -torch.inf).amax(1)
