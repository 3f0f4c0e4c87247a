"""The theory of SSD at single positions (2604.01193, sections 4 and appendix B).

- p0: distribution of the frozen base. q: that of the samples, on the kept tokens S (`operator`).
  p: distribution of the model in training. T: temperature of the samples.
- Data from q costs p the cross-entropy CE(q, p). Three terms and a constant sum to it (Eq. 4 = 15):

      -log p(S)  +  (1 - T) H_1/T(p on S)  +  T KL(q || Temper_T[p on S])  +  T H(q)

- Every function takes positions in rows and returns float64. Numbers that are zero by theory are
  exactly zero. Entropies are in nats.

Pure functions without I/O. `chunks` of `operator` bounds their memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ssd_ray.analysis.operator import (
    GREEDY,
    DecodingLike,
    Ranking,
    Support,
    require_finite,
)

_ROUNDING = 1e-12
"""Bound of a sum of float64 numbers about 1 that should be 0."""
_NO_MASS = 800.0
"""Distance from the largest logit at which a float64 probability is 0."""


class LogProbabilities:
    """Log-probabilities of a model at some positions, without a float64 copy that stays.

    Attributes:
        logits: [positions, vocabulary].
        log_norm: log of the sum of exp(logits), float64 [positions].
        entropy: H(p), float64 [positions].
    """

    def __init__(self, logits: Tensor) -> None:
        """Take logits, [positions, vocabulary].

        Raises:
            UserError: a position has NaN, infinity or no finite logit.
        """
        self.logits = logits
        largest = logits.amax(1, keepdim=True)
        require_finite(largest[:, 0])
        # One exponential serves norm and entropy. Lower values have no mass in float64.
        shifted = logits.to(torch.float64, copy=True).sub_(largest).clamp_(min=-_NO_MASS)
        weights = shifted.exp()
        mass = weights.sum(1)
        self.log_norm = largest[:, 0] + mass.log()
        self.entropy = mass.log() - torch.linalg.vecdot(weights, shifted) / mass

    def on(self, support: Support) -> Tensor:
        """Return log p on S, float64 [positions, width]; minus infinity elsewhere."""
        return support.of(self.logits) - self.log_norm[:, None]

    def log_kept_mass(self, support: Support) -> Tensor:
        """Return log p(S) (Eq. 10), float64 [positions]; 0 where S is the vocabulary."""
        if support.is_vocabulary:
            return torch.zeros_like(self.log_norm)
        return log_kept_mass(support, self.on(support))

    def of(self, tokens: Tensor) -> Tensor:
        """Return log p of a token at each position, float64 [positions]."""
        chosen = self.logits.gather(1, tokens[:, None]).squeeze(1)
        return chosen.double() - self.log_norm

    def complete(self) -> Tensor:
        """Return log p of all tokens, float64 [positions, vocabulary]."""
        return self.logits.double() - self.log_norm[:, None]

    def divergence_from(self, other: LogProbabilities) -> Tensor:
        """Return KL(p || other) over the vocabulary, float64 [positions]; 0 for equal logits."""
        # Excluded tokens have no mass here; a token excluded by `other` alone is infinitely far.
        apart = (self.logits - other.logits).nan_to_num_(0.0, posinf=torch.inf, neginf=0.0)
        mean: Tensor = torch.linalg.vecdot(self.complete().exp_(), apart.double())
        return (mean - (self.log_norm - other.log_norm)).clamp(min=0.0)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The decomposition of the loss at each position (Eq. 4 = 15), float64 [positions]."""

    kept_mass_base: Tensor
    """p0(S), Eq. 10."""
    kept_mass: Tensor
    """p(S)."""
    support_compression: Tensor
    """-log p(S)."""
    reshaping: Tensor
    """(1 - T) H_1/T(p on S), the Rényi free energy of Eq. 16."""
    alignment: Tensor
    """T KL(q || Temper_T[p on S])."""
    constant: Tensor
    """T H(q)."""
    cross_entropy: Tensor
    """CE(q, p), computed by itself: the sum of the four terms above."""
    floor: Tensor
    """H(q), approached and never reached by CE(q, p) (Eq. 13)."""

    def columns(self) -> dict[str, Tensor]:
        """Return the terms by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def terms(
    support: Support, base: LogProbabilities, model: LogProbabilities, temperature: float
) -> Terms:
    """Decompose the loss of samples drawn from `support` at `temperature`."""
    temperature = max(temperature, GREEDY)
    logits, log_kept = support.of(model.logits), model.log_kept_mass(support)
    mean = support.mean(logits)
    tempered = temperature * (logits / temperature).logsumexp(1)
    trivial = support.sizes == 1 if temperature != 1 else torch.ones_like(support.complete)
    constant = temperature * support.entropy
    return Terms(
        kept_mass_base=base.log_kept_mass(support).exp(),
        kept_mass=log_kept.exp(),
        support_compression=-log_kept + 0.0,
        reshaping=(model.log_norm + log_kept - tempered).masked_fill(trivial, 0.0),
        alignment=without_rounding(tempered - mean - constant, model.log_norm),
        constant=constant,
        cross_entropy=model.log_norm - mean,
        floor=support.entropy,
    )


def without_rounding(gap: Tensor, scale: Tensor) -> Tensor:
    """Return a divergence, and 0 where it is no larger than the rounding of its parts."""
    return gap.masked_fill(gap <= _ROUNDING * scale.abs().clamp(min=1.0), 0.0)


def log_kept_mass(support: Support, log_p: Tensor) -> Tensor:
    """Return log p(S) (Eq. 10) of log p on S; 0 where S is the vocabulary."""
    return log_p.logsumexp(1).clamp(max=0.0).masked_fill(support.complete, 0.0)


def entropy(log_p: Tensor) -> Tensor:
    """Return H(p) of normalized rows."""
    return cross_entropy(log_p, log_p)


def cross_entropy(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return CE(q, p); tokens without mass under q do not count."""
    return -(log_q.exp() * log_p.masked_fill(log_q == -torch.inf, 0.0)).sum(1) + 0.0


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(q || p) of rows of log-probabilities, at least 0; exactly 0 for equal rows.

    A token without mass under p, but with some under q, makes it infinite.
    """
    apart = (log_q - log_p).masked_fill(log_q == -torch.inf, 0.0)
    gap: Tensor = torch.linalg.vecdot(log_q.exp(), apart)
    return gap.clamp(min=0.0)


def renyi_entropy(log_p: Tensor, order: float) -> Tensor:
    """Return the Rényi entropy H_a(p) of normalized rows, with its limits at 0, 1 and infinity."""
    if order == 0:
        return (log_p > -torch.inf).sum(1).double().log()
    if order == 1:
        return entropy(log_p)
    if math.isinf(order):
        return -log_p.amax(1) + 0.0
    return (order * log_p).logsumexp(1) / (1 - order) + 0.0


def free_energy(log_p: Tensor, temperature: float) -> Tensor:
    """Return -T log sum p^(1/T) = (1 - T) H_1/T(p) (Eq. 16); 0 at T = 1."""
    if temperature == 1:
        return log_p.new_zeros(len(log_p))
    return -temperature * (log_p / temperature).logsumexp(1) + 0.0


def logit_gradient(support: Support, model: LogProbabilities) -> Tensor:
    """Return the gradient of CE(q, p) by the logits, p - q, [positions, vocabulary] (Eq. 17).

    Every token outside of S is pushed down by its probability.
    """
    gradient = model.complete().exp_()
    if support.ids is None:
        return gradient - support.log_q.exp()
    return gradient.scatter_add_(1, support.ids, -support.log_q.exp())


@dataclass(frozen=True, kw_only=True)
class EntropySplit:
    """Parts of the entropy of a model (Eq. 30), float64 [positions]; they sum to `total`."""

    gate: Tensor
    """Entropy of the next token being in S or not."""
    head: Tensor
    """Entropy within S, times p(S)."""
    tail: Tensor
    """Entropy outside of S, times the mass outside."""
    total: Tensor
    """H(p)."""


def entropy_split(support: Support, model: LogProbabilities) -> EntropySplit:
    """Split the entropy of a model into gate, head and tail."""
    kept = model.log_kept_mass(support).exp()
    total = model.entropy
    in_head = total if support.is_vocabulary else entropy(model.on(support))
    # Differences of near numbers, and exactly 0 where nothing is outside.
    rest = (1 - kept).clamp(min=0)
    head = in_head - torch.special.entr(kept)
    tail = (total - in_head) - torch.special.entr(rest)
    few_outside = support.sizes >= model.logits.shape[1] - 1
    return EntropySplit(
        gate=torch.special.entr(kept) + torch.special.entr(rest),
        head=head.clamp(min=0).masked_fill(support.sizes == 1, 0.0),
        tail=tail.clamp(min=0).masked_fill(few_outside, 0.0),
        total=total,
    )


@dataclass(frozen=True, kw_only=True)
class Response:
    """The response of an entropy to a temperature (Eq. 22, 31), float64 [positions]."""

    entropy: Tensor
    """H(p_t), with p_t in proportion to p^(1/t)."""
    variance: Tensor
    """Var of log p under p_t."""
    derivative: Tensor
    """dH/dt = Var / t^3."""


def temperature_response(log_p: Tensor, temperature: float) -> Response:
    """Temper rows of log-probabilities, and return entropy and its derivative there."""
    scaled = log_p / temperature
    log_norm = scaled.logsumexp(1)
    weights = scaled.sub_(log_norm[:, None]).exp_()
    values = log_p.masked_fill(log_p == -torch.inf, 0.0)
    mean = torch.linalg.vecdot(weights, values)
    variance = torch.linalg.vecdot(weights, values.sub_(mean[:, None]).square_())
    return Response(
        entropy=(log_norm - mean / temperature).clamp(min=0.0),
        variance=variance,
        derivative=variance / temperature**3,
    )


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Probability of an event under the ideal student (Prop. B.3).

    The student's is the product of `compression_gain`, `reshaping_gain` and `base`.
    """

    effective_temperature: float
    """T_train times the evaluation temperature."""
    kept_mass: Tensor
    """m: mass of S under the tempered base (Eq. 26)."""
    compression_gain: Tensor
    """1 / m."""
    reshaping_gain: Tensor
    """The event's probability on S at the effective temperature, over that at the evaluation's."""
    base: Tensor
    """Probability of the event under the tempered base."""
    student: Tensor
    """Probability of the event under the tempered student (Eq. 25)."""


def composition(
    logits: Tensor, decoding: DecodingLike, temperature: float, event: Tensor
) -> Composition:
    """Decompose the probability of an event under the ideal student (Eq. 25 to 29).

    Args:
        logits: logits of the base, [positions, vocabulary].
        decoding: decoding of the samples; the ideal student is their distribution.
        temperature: temperature of the evaluation, without truncation.
        event: bool [positions, vocabulary], the tokens of the event, all in S.
    """
    ranking = Ranking(logits)
    support = ranking.support(decoding)
    tempered = (ranking.logits.double() / temperature).softmax(1)
    base = _mass(tempered, event)
    if support.is_vocabulary:
        inside, kept_mass, base_inside = event, torch.ones_like(base), base
    else:
        on_event, on_support = event, tempered
        if support.ids is not None:
            on_event, on_support = event.gather(1, support.ids), tempered.gather(1, support.ids)
        inside = support.kept & on_event
        kept_mass = _mass(on_support, support.kept).clamp(max=1.0)
        base_inside = _mass(on_support, inside)
    student = _mass((support.log_q / temperature).softmax(1), inside)
    gain = student / (base_inside / kept_mass)
    return Composition(
        effective_temperature=decoding.temperature * temperature,
        kept_mass=kept_mass,
        compression_gain=1 / kept_mass,
        reshaping_gain=torch.ones_like(student) if decoding.temperature == 1 else gain,
        base=base,
        student=student,
    )


def _mass(p: Tensor, chosen: Tensor) -> Tensor:
    mass: Tensor = torch.linalg.vecdot(p, chosen.double())
    return mass
