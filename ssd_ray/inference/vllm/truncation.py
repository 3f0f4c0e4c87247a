"""Truncate tempered logits to top-k, then top-p, exactly and without sorting the vocabulary.

One idea: survivors are among the few largest logits of a row. Those are fetched, sorted, and cut;
all others are masked. A row whose survivors may lie beyond is repeated with more, at last with all.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TIES = 32
"""Logits fetched beyond the k-th, for its ties."""
_NUCLEUS = 256
"""Logits fetched if there is no k."""
_WIDER = 8


def truncate(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set every logit outside top-k and top-p to minus infinity, in place.

    Keeps the k largest logits of a row with all ties of the k-th. Keeps of these the smallest
    set of the most likely with a mass of at least p, and always the largest. This is vLLM's
    operator (2604.01193, appendix A), except for equal logits on both sides of p: those with the
    larger index survive; vLLM's sort leaves this open.

    Args:
        logits: float32, (rows, vocabulary), already divided by the temperature.
        top_k: int64, (rows,); the size of the vocabulary or more keeps all.
        top_p: float32, (rows,), in (0, 1]; 1 keeps all.

    Returns:
        The same tensor.
    """
    vocabulary = logits.shape[1]
    limited = top_k < vocabulary
    rows = torch.nonzero(limited | (top_p < 1)).squeeze(1)
    if not rows.numel():
        return logits
    widest = int(torch.where(limited, top_k, 0).max()) + _TIES
    width = min(vocabulary, widest if bool(limited[rows].all()) else max(widest, _NUCLEUS))
    while True:
        every = rows.numel() == logits.shape[0]
        scores = logits if every else logits[rows]
        values, ids, settled = _survivors(scores, top_k[rows], top_p[rows], width)
        if every and bool(settled.all()):
            return logits.fill_(-torch.inf).scatter_(1, ids, values)
        logits[rows[settled]] = torch.full_like(scores[settled], -torch.inf).scatter_(
            1, ids[settled], values[settled]
        )
        rows = rows[~settled]
        if not rows.numel():
            return logits
        width = min(vocabulary, width * _WIDER)


def _survivors(
    scores: Tensor, top_k: Tensor, top_p: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `width` largest logits of each row, masked, their ids, and the settled rows."""
    vocabulary = scores.shape[1]
    values, ids = scores.topk(width, dim=1)
    limited = top_k < vocabulary
    kth = values.gather(1, (top_k.clamp(max=width) - 1).unsqueeze(1)).squeeze(1)
    kth = torch.where(limited, kth, -torch.inf)
    # Rising, and equal logits by rising index, as in a stable sort of the vocabulary.
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, stable=True)
    ids = ids.gather(1, order)
    kept = values >= kth.unsqueeze(1)
    if bool((top_p < 1).any()):
        kept &= ~_outside_nucleus(scores, values, kept, limited, top_p)
    smallest = values[:, 0]
    # A row is settled if its k-th, or the end of its nucleus, is above the smallest fetched.
    border = torch.where(limited, kth, torch.where(kept, values, torch.inf).amin(1))
    settled = border > smallest if width < vocabulary else torch.ones_like(limited)
    return values.masked_fill_(~kept, -torch.inf), ids, settled


def _outside_nucleus(
    scores: Tensor, values: Tensor, kept: Tensor, limited: Tensor, top_p: Tensor
) -> Tensor:
    """Return a mask of the rising `values` dropped by top-p.

    From the least likely on, values are dropped while their mass is at most 1 - p.
    """
    total = values.masked_fill(~kept, -torch.inf).logsumexp(1)
    if not bool(limited.all()):
        total = torch.where(limited, total, scores.logsumexp(1))
    mass = (values - total.unsqueeze(1)).double().exp_().masked_fill_(~kept, 0)
    below = (1 - mass.sum(1, keepdim=True)).clamp_(min=0)
    below = torch.where(limited.unsqueeze(1), 0, below)
    dropped = (below + mass.cumsum(1) <= (1 - top_p).double().unsqueeze(1)) & (top_p < 1).unsqueeze(
        1
    )
    dropped[:, -1] = False
    return dropped
