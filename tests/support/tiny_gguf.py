"""A GGUF file of a few thousand random parameters with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HIDDEN, LAYERS, HEADS, INNER = 64, 2, 2, 96


def tiny_gguf(
    path: Path, *, architecture: str = "llama", kind: str = "Q8_0", seed: int = 0, **texts: str
) -> Path:
    """Write a model with tensors of one type.

    `texts` are further metadata, with dots as double underscores.
    """
    import gguf
    import numpy as np

    kept = gguf.GGMLQuantizationType[kind]
    writer: Any = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    for name, text in texts.items():
        writer.add_string(name.replace("__", "."), text)
    _add_shape(writer)
    tokens = _add_tokenizer(writer)
    chance = np.random.default_rng(seed)
    for name, shape in _shapes(tokens).items():
        values = chance.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        elif kind in ("I32", "I64", "Q8_K"):  # types without a conversion to float
            writer.add_tensor(
                name, values.astype(np.int32), raw_dtype=kept if kind == "I32" else None
            )
        else:
            writer.add_tensor(name, gguf.quantize(values, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: Any) -> None:
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)


def _add_tokenizer(writer: Any) -> int:
    from tokenizers import pre_tokenizers

    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    return len(tokens)


def _shapes(tokens: int) -> dict[str, tuple[int, ...]]:
    square, up, down = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    layer = {
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": up,
        "ffn_up": up,
        "ffn_down": down,
    }
    layer |= {f"attn_{name}": square for name in ("q", "k", "v", "output")}
    shapes = {"token_embd.weight": (tokens, HIDDEN), "output_norm.weight": (HIDDEN,)}
    return shapes | {
        f"blk.{index}.{name}.weight": shape
        for index in range(LAYERS)
        for name, shape in layer.items()
    }
