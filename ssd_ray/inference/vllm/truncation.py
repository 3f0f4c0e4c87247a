"""Top-k, then top-p, of tempered logits, exactly and without sorting the vocabulary.

One idea: what survives lies among a row's few largest logits, so those are fetched, ordered and cut, and everything else is
masked. A row whose survivors cannot be told from so few is looked at again, wider, at last whole. Pure torch on tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TIES = 32
"""Places fetched beyond the k-th, for logits that equal it."""
_NUCLEUS = 256
"""Places fetched where there is no k."""
_WIDER = 8


def truncate(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set every logit that does not survive to minus infinity, in place, and return the same tensor.

    Keeps each row's k largest with all ties of the k-th, then of these the smallest set of the most likely whose mass is at
    least p. The largest always stays. This is vLLM's operator (2604.01193, appendix A), except that where equal logits lie on
    both sides of p those with the larger index stay, which vLLM's sort leaves open.

    Args:
        logits: float32, (rows, vocabulary), already divided by the temperature.
        top_k: int64, (rows,); the size of the vocabulary or more keeps all.
        top_p: float32, (rows,), in (0, 1]; 1 keeps all.
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
    """The `width` largest logits of each row with those that fall set to minus infinity, their ids, and which rows are sure."""
    vocabulary = scores.shape[1]
    values, ids = scores.topk(width, dim=1)
    limited = top_k < vocabulary
    kth = values.gather(1, (top_k.clamp(max=width) - 1).unsqueeze(1)).squeeze(1)
    kth = torch.where(limited, kth, -torch.inf)
    # Rising, equal logits by rising index: as a stable sort of the whole vocabulary would have them.
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, stable=True)
    ids = ids.gather(1, order)
    kept = values >= kth.unsqueeze(1)
    if bool((top_p < 1).any()):
        kept &= ~_outside_nucleus(scores, values, kept, limited, top_p)
    smallest = values[:, 0]
    # Sure are: a k-th above the smallest fetched; without a k, a nucleus that ends above it.
    border = torch.where(limited, kth, torch.where(kept, values, torch.inf).amin(1))
    settled = border > smallest if width < vocabulary else torch.ones_like(limited)
    return values.masked_fill_(~kept, -torch.inf), ids, settled


def _outside_nucleus(
    scores: Tensor, values: Tensor, kept: Tensor, limited: Tensor, top_p: Tensor
) -> Tensor:
    """Which of the rising `values` top-p drops: those up to which, from the least likely on, the mass is at most 1 - p."""
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
