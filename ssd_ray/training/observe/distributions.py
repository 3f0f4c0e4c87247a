"""Next-token distributions of base, samples and trained model: pure functions on logits.

At a position:

- p0: distribution of the frozen base.
- q: distribution of the samples. p0 is tempered, cut to the top k, then to the nucleus, and
  renormalized on the rest, S (arXiv 2604.01193, Eq. 6 and 7, appendix A for the order).
- p: distribution of the model in training.

Data drawn from q costs p the cross-entropy CE(q, p) = H(q) + KL(q || p). H(q) is the floor of the
loss on held-out samples, attained by p = q alone. Does no I/O.
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
"""Columns of `measure`, in nats; the last three are shares."""

GREEDY = 1e-5
"""Bound of greedy decoding: temperatures below it are greedy (vLLM)."""


def sampling_log_probabilities(base: Tensor, decoding: Decoding) -> Tensor:
    """Return log q, float32 [positions, vocabulary], minus infinity outside of S.

    - `base` are the base's logits, [positions, vocabulary].
    - All ties at the k-th place stay.
    - The nucleus is the smallest set of the most likely tokens with a mass of at least top-p. It
      always holds the most likely token.
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
        # As in `truncation.py`: of equal logits at the border of p, the larger indices stay.
        rising, order = logits.sort(dim=1, stable=True)
        dropped = rising.double().softmax(1).cumsum(1) <= 1 - decoding.top_p
        dropped[:, -1] = False
        logits = logits.masked_fill(
            torch.zeros_like(dropped).scatter_(1, order, dropped), -torch.inf
        )
    return logits.log_softmax(1)


def measure(model: Tensor, base: Tensor, drawn: Tensor, decoding: Decoding) -> Tensor:
    """Return all `MEASURES` at each position, float64 [positions, measures].

    - nll: -log p of the drawn token.
    - floor: H(q).
    - cross_entropy: CE(q, p), the expectation of nll.
    - kl_to_base: KL(p || p0) over the full vocabulary.
    - entropy: H(p), the sum of the next three (arXiv 2604.01193, Eq. 30).
    - entropy_gate: entropy of being in S or not.
    - entropy_head: entropy within S, times the mass of S.
    - entropy_tail: entropy outside of S, times the mass outside.
    - kept_mass, base_kept_mass: mass of S under p and under p0 (Eq. 10).
    - outside_support: 1 if the drawn token is outside of S. The engine and this model then disagree
      on the base's logits.

    Args:
        model: logits of the model in training, [positions, vocabulary].
        base: logits of the frozen base at the same positions, [positions, vocabulary].
        drawn: token ids drawn there, [positions].
        decoding: decoding of the samples.
    """
    log_p, log_p0 = model.float().log_softmax(1), base.float().log_softmax(1)
    log_q = sampling_log_probabilities(base, decoding)
    kept = log_q > -torch.inf
    p, q = log_p.double().exp(), log_q.double().exp()
    surprise = -log_p.double()
    mass = (p * kept).sum(1)
    rest = (p * ~kept).sum(1)
    # The float32 probabilities do not add up to 1 exactly, and the entropy of the gate needs it.
    mass, rest = mass / (mass + rest), rest / (mass + rest)
    in_head = (p * surprise * kept).sum(1)
    in_tail = (p * surprise * ~kept).sum(1)
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
    """Return -m log m, 0 at 0."""
    part: Tensor = torch.special.entr(mass)
    return part
