"""Small tokenizers of every common kind, trained on the built-in problems."""

from __future__ import annotations

import functools
import json
from typing import Any

from ssd_ray.problems.sources import builtin

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<think>", "</think>", "<tool_call>"]
"""Added tokens, none of them special."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def corpus() -> tuple[str, ...]:
    """Return every built-in statement, and hard texts for a tokenizer."""
    odd = [
        "  two  spaces,\ttabs\n\n\nand lines \n",
        "naïve café – 中文 русский ﬁ Ｆｕｌｌ ½ 🙂 e\u0301",
        "1 <= n <= 10^5, a[i] < b[i] << 2 | c, x</y>",
        "<not a token> [INST] </ s> < | im_end | >",
        "    def f(x):\n        return x ** 2\n",
        "<b>bold</b> and <table>",
        "x",
    ]
    return (*odd, *(problem.statement for problem in builtin("all")))


@functools.cache
def _backend(kind: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    size, start = 700, ["<unk>"]
    if kind.startswith("byte-level"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("prefix"))
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        if kind.endswith("nfc"):
            tokenizer.normalizer = normalizers.NFC()
    elif kind.startswith("metaspace"):
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        scheme: Any = "first" if kind.endswith("first") else "always"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*start, *(f"<0x{byte:02X}>" for byte in range(256))],
            max_token_length=8,
        )
    elif (
        kind == "prepend"
    ):  # Llama 2 as it was converted at first: a normalizer writes the marks of spaces
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=[*start, *bytes_], max_token_length=8
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=[*SPECIAL], unk_token="<unk>"
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*start])
    tokenizer.train_from_iterator(corpus(), trainer)
    document = json.loads(tokenizer.to_str())
    document[
        "added_tokens"
    ] = []  # a trainer adds its special tokens here, but bytes are ordinary vocabulary
    return json.dumps(document)


KINDS = (
    "byte-level",
    "byte-level-prefix",
    "byte-level-nfc",
    "metaspace-always",
    "metaspace-first",
    "prepend",
    "unigram",
    "wordpiece",
)


def tokenizer_of(
    kind: str, *, normalized: bool = False, rstrip: bool = False, template: str = CHATML
) -> Any:
    """Make a tokenizer of a kind; `normalized` and `rstrip` are those of AddedToken."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_backend(kind))
    flags = {"normalized": normalized, "rstrip": rstrip}
    backend.add_special_tokens([AddedToken(token, **flags) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, **flags) for token in MARKS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast
