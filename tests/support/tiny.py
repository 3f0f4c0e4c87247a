"""A model of a few hundred thousand random parameters with its own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""The sizes of a model of any architecture, made for one test."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Programs as single tokens, so that a random model answers with code: quick, slow and broken.
PROGRAMS = [
    "\n```python\nprint(input())\n```\n",
    "\n```python\nimport time\ntime.sleep(0.3)\nprint(sum(map(int, input().split())))\n```\n",
    "\n```python\nraise SystemExit(input()[:1])\n```\n",
]


def tiny_tokenizer(marks: Mapping[int, str] | None = None) -> Any:
    """Return a tokenizer of 262 entries: bytes, three special tokens, three programs, ChatML.

    `marks` are special tokens in place of bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    programs = [to_bytes.pre_tokenize_str(program)[0][0] for program in PROGRAMS]
    marks = marks or {}
    vocabulary = {
        marks.get(index, token): index
        for index, token in enumerate([*SPECIAL, *alphabet, *programs])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *marks.values()],
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(
    directory: Path,
    architecture: str = "llama",
    seed: int = 0,
    *,
    marks: Mapping[int, str] | None = None,
) -> Path:
    """Save a random model of about 200,000 parameters as a Hugging Face directory.

    - `llama` has tied embeddings, `llama3.1` its scaled positions.
    - `qwen3` has a norm on queries and keys, `qwen3_moe` 8 experts.
    - `marks` are special tokens, by id, in place of bytes.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, Qwen3MoeConfig

    shape = {
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        # Random logits with some contrast, so that truncation and temperature matter.
        "initializer_range": 0.15,
    }
    torch.manual_seed(seed)
    scaled = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    configs: dict[str, Any] = {
        "llama": LlamaConfig(**shape, tie_word_embeddings=True),
        "llama3.1": LlamaConfig(
            **shape,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaled},
        ),
        "qwen3": Qwen3Config(**shape, tie_word_embeddings=False),
        "qwen3_moe": Qwen3MoeConfig(
            **shape,
            tie_word_embeddings=False,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            norm_topk_prob=True,
        ),
    }
    model: Any = AutoModelForCausalLM.from_config(configs[architecture])
    # Larger logits for the end token and the programs: some answers end by themselves, many hold
    # code.
    model.lm_head.weight.data[[2, 259, 260, 261]] *= 1.7
    model.generation_config.eos_token_id = 2
    model.float().save_pretrained(directory)
    tiny_tokenizer(marks).save_pretrained(directory)
    return directory
