"""A fake of the hub's flash attention, on a CPU.

transformers 5.19 loads it as it loads `kernels-community/flash-attn2` where flash_attn is missing:
by the package `kernels`, under the name of the repository. Only the arithmetic is replaced.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "kernels-community/flash-attn2"
CALLS: Counter[str] = Counter()
"""Calls in this process: of the kernel's functions, and of transformers' search of position ids."""


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Return attention of [sequences, tokens, heads, width]."""
    CALLS["flash_attn_func"] += 1
    return _attention(q, k, v, softmax_scale, causal)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Return attention of packed sequences, [tokens, heads, width], cut at `cu_seqlens`."""
    CALLS["flash_attn_varlen_func"] += 1
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert cu_seqlens_q.dtype == torch.int32
    lengths = cu_seqlens_q.diff().tolist()
    # The kernel computes no position beyond the longest sequence in its arguments.
    assert max(lengths) <= max_seqlen_q == max_seqlen_k
    assert sum(lengths) == len(q)
    parts = zip(*(part.split(lengths) for part in (q, k, v)), strict=True)
    return torch.cat(
        [_attention(*(p[None] for p in part), softmax_scale, causal)[0] for part in parts]
    )


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, causal: bool
) -> torch.Tensor:
    heads_first = (part.transpose(1, 2) for part in (q, k, v))
    out = scaled_dot_product_attention(*heads_first, is_causal=causal, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous()


def install() -> None:
    """Make transformers find the package `kernels`, and this kernel in it."""
    from transformers import modeling_flash_attention_utils as attention
    from transformers import modeling_utils
    from transformers.integrations import hub_kernels

    def get_kernel(name: str, **choices: Any) -> SimpleNamespace:
        assert name == NAME
        return SimpleNamespace(
            flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func
        )

    for module in (modeling_utils, hub_kernels):
        module.is_kernels_available = lambda *_, **__: True
    hub_kernels.get_kernel = get_kernel
    search = attention._is_packed_sequence

    def counted(*arguments: Any) -> Any:
        CALLS["search of position ids"] += 1
        return search(*arguments)

    attention._is_packed_sequence = counted
