"""Tokens of answers under decodings, of a base and of its ideal student.

The student of a truncated decoding has no logits over the vocabulary. Its few tokens are ranked
once, and all decodings of it cut these.

Pure functions without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_ray.analysis.operator import GREEDY, Ranking, Setting, Support
from ssd_ray.analysis.theory import entropy

DECODED = ("log_likelihood", "cut", "survivors", "entropy")
"""Columns of a decoding: log-likelihood of the tokens left, tokens cut, survivors, entropy."""


class Student:
    """The ideal student of a truncated decoding, ranked once for all of its own decodings."""

    def __init__(self, support: Support) -> None:
        assert support.ids is not None
        # Ascending, so that of equal logits the larger id still comes first.
        self._ids = support.ids.flip(1)
        self._ranking = Ranking(support.log_q.flip(1))

    @property
    def vocabulary(self) -> int:
        """Number of tokens that a position keeps at most."""
        return self._ranking.vocabulary

    def support(self, setting: Setting) -> Support:
        """Return the tokens that a decoding of the student keeps."""
        return self._outer(self._ranking.support(setting))

    def supports(self, temperatures: Sequence[float], top_k: int | None, top_p: float) -> Support:
        """Return the tokens kept at each temperature, as `Ranking.supports` does."""
        return self._outer(self._ranking.supports(temperatures, top_k, top_p))

    def _outer(self, inner: Support) -> Support:
        ids = self._ids.repeat(len(inner.log_q) // len(self._ids), 1)
        ids = ids if inner.ids is None else ids.gather(1, inner.ids)
        return Support(ids=ids, log_q=inner.log_q, complete=inner.complete)


def decoded(
    model: Ranking | Student, settings: Sequence[Setting], tokens: Tensor
) -> dict[Setting, Tensor]:
    """Return DECODED of a model at each setting, float64 [positions, columns].

    Settings with one truncation are cut together: it is faster, and the numbers are the same.
    """
    columns: dict[Setting, Tensor] = {}
    together: dict[tuple[int | None, float], list[Setting]] = {}
    for each in settings:
        if each.temperature < GREEDY or keeps_all(each, model.vocabulary):
            columns[each] = _columns(model.support(each), tokens)
        else:
            together.setdefault((each.top_k, each.top_p), []).append(each)
    for (top_k, top_p), group in together.items():
        support = model.supports([each.temperature for each in group], top_k, top_p)
        parts = _columns(support, tokens.repeat(len(group))).chunk(len(group))
        columns |= dict(zip(group, parts, strict=True))
    return columns


def keeps_all(setting: Setting, vocabulary: int) -> bool:
    """Return True if a setting leaves every token of a vocabulary."""
    # Greedy decoding keeps one token whatever top-k and top-p are.
    greedy = setting.temperature == 0
    return not greedy and setting.top_p >= 1 and (setting.top_k or vocabulary) >= vocabulary


def _columns(support: Support, tokens: Tensor) -> Tensor:
    assert support.ids is not None
    # A token outside of S matches no id, and keeps minus infinity.
    chosen = support.log_q.masked_fill(support.ids != tokens[:, None], -torch.inf).amax(1)
    cut = chosen == -torch.inf
    return torch.stack(
        [
            chosen.masked_fill(cut, 0.0),
            cut.double(),
            support.sizes.double(),
            entropy(support.log_q),
        ],
        dim=1,
    )
