"""What a model's next-token distribution is to the one that its training data was drawn from: pure functions on logits.

At a position, p0 is the frozen base's distribution, q what samples were drawn from: p0 tempered, cut to the top k, then to the
nucleus, and renormalised on what is left, S (2604.01193, Eq. 6 and 7, and appendix A for the order). p is the model in training.
Data drawn from q costs p the cross-entropy CE(q, p) = H(q) + KL(q || p), so H(q) is the floor of the loss on samples that were
not trained on, and p = q alone attains it. Reads and writes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ray.config import Decoding

MEASURES = (
    "nll",
    "floor",
    "cross_entropy",
    "kl_to_base",
    "entropy",
    "entropy_gate",
    "entropy_head",
    "entropy_tail",
    "kept_mass",
    "base_kept_mass",
    "outside_support",
)
"""The columns of `measure`, all in nats but for the last three, which are shares."""

GREEDY = 1e-5
"""Temperatures below are greedy decoding (vLLM)."""


def sampling_log_probabilities(base: Tensor, decoding: Decoding) -> Tensor:
    """Log q, float32 [positions, vocabulary], minus infinity outside of its support, from the base's logits.

    Ties at the k-th place all stay; of the nucleus the smallest set of the most likely tokens stays whose mass is at least
    top-p, and always the most likely one.
    """
    logits = base.float()
    if decoding.temperature < GREEDY:
        only = torch.zeros_like(logits, dtype=torch.bool).scatter_(
            1, logits.argmax(1, keepdim=True), True
        )
        return torch.full_like(logits, -torch.inf).masked_fill_(only, 0.0)
    logits = logits / decoding.temperature
    if decoding.top_k is not None and decoding.top_k < logits.shape[1]:
        kth = logits.topk(decoding.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if decoding.top_p < 1:
        # As in `truncation.py`: of equal logits at the border of p those with the larger index stay.
        rising, order = logits.sort(dim=1, stable=True)
        dropped = rising.double().softmax(1).cumsum(1) <= 1 - decoding.top_p
        dropped[:, -1] = False
        logits = logits.masked_fill(
            torch.zeros_like(dropped).scatter_(1, order, dropped), -torch.inf
        )
    return logits.log_softmax(1)


def measure(model: Tensor, base: Tensor, drawn: Tensor, decoding: Decoding) -> Tensor:
    """Every one of `MEASURES` at each position, float64 [positions, measures].

    `nll` is -log p of the token that was drawn; `floor` H(q); `cross_entropy` CE(q, p), the expectation of `nll`;
    `kl_to_base` KL(p || p0) over the whole vocabulary; `entropy` H(p), which is the sum of `entropy_gate`, the entropy of
    being in S or not, `entropy_head`, that within S times S's mass, and `entropy_tail`, that outside of S times its mass
    (Eq. 30); `kept_mass` and `base_kept_mass` the mass of S under p and p0 (Eq. 10); `outside_support` whether the drawn
    token is outside of S, which says that the engine and this model do not agree on the base's logits.

    Args:
        model: logits of the model in training, [positions, vocabulary].
        base: logits of the frozen base at the same positions.
        drawn: the token ids that were drawn there, [positions].
        decoding: how they were drawn.
    """
    log_p, log_p0 = model.float().log_softmax(1), base.float().log_softmax(1)
    log_q = sampling_log_probabilities(base, decoding)
    kept = log_q > -torch.inf
    p, q = log_p.double().exp(), log_q.double().exp()
    surprise = -log_p.double()
    mass, rest = (p * kept).sum(1), (p * ~kept).sum(1)
    mass, rest = mass / (mass + rest), rest / (mass + rest)
    in_head, in_tail = (p * surprise * kept).sum(1), (p * surprise * ~kept).sum(1)
    columns = {
        "nll": surprise.gather(1, drawn[:, None]).squeeze(1),
        "floor": -(q * log_q.double().masked_fill(~kept, 0.0)).sum(1),
        "cross_entropy": (q * surprise).sum(1),
        "kl_to_base": (p * (log_p - log_p0).double()).sum(1),
        "entropy": in_head + in_tail,
        "entropy_gate": _part(mass) + _part(rest),
        "entropy_head": in_head - _part(mass),
        "entropy_tail": in_tail - _part(rest),
        "kept_mass": mass,
        "base_kept_mass": (log_p0.double().exp() * kept).sum(1),
        "outside_support": (~kept).gather(1, drawn[:, None]).squeeze(1).double(),
    }
    return torch.stack([columns[name] for name in MEASURES], dim=1)


def _part(mass: Tensor) -> Tensor:
    """-m log m, 0 at 0."""
    part: Tensor = torch.special.entr(mass)
    return part
