"""A random Qwen3 with its own tokenizer, and sequences to train on; no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_ray.artifacts.shards import write_shard
from ssd_ray.schema import Example

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths of a random model, and lengths of the sequences to train it on."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    sequences: int
    shortest: int
    longest: int


LARGE = Size(
    vocabulary=65_536,
    hidden=2048,
    intermediate=6144,
    layers=16,
    heads=16,
    key_value_heads=8,
    head_dim=128,
    sequences=64,
    shortest=256,
    longest=2048,
)
"""About 1.07B parameters."""
TINY = Size(
    vocabulary=1024,
    hidden=64,
    intermediate=128,
    layers=2,
    heads=4,
    key_value_heads=2,
    head_dim=32,
    sequences=32,
    shortest=16,
    longest=64,
)
"""For a test of the benchmark on a CPU."""
CONTEXT = 4096


def make_model(directory: Path, size: Size, dtype: str) -> Path:
    """Save a random model and its tokenizer as a Hugging Face directory."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=size.head_dim,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    # Logits with some contrast, so that temperature and truncation matter.
    model.lm_head.weight.data *= 4
    model.generation_config.eos_token_id = 2
    model.save_pretrained(directory)
    _tokenizer(size.vocabulary).save_pretrained(directory)
    return directory


def _tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer of bytes and pairs of bytes, so that every id of the model has a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [first + second for first in alphabet for second in alphabet]
    entries = [*SPECIAL, *alphabet, *pairs][:vocabulary]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(entries)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = TEMPLATE
    return fast


def make_dataset(out: Path, size: Size, *, equal: bool = False) -> Path:
    """Write sequences of random ids, a quarter of them prompt; with `equal`, all of one length."""
    draw = np.random.default_rng(0)
    rows = []
    for index in range(size.sequences):
        shortest = size.longest if equal else size.shortest
        length = int(draw.integers(shortest, size.longest + 1))
        ids = tuple(draw.integers(3, size.vocabulary, length).tolist())
        rows.append(
            Example(
                prompt_id=f"p{index:03}",
                sample_index=0,
                input_ids=ids,
                num_prompt_tokens=length // 4,
            )
        )
    write_shard(out, "part-00000", rows, Example)
    return out
