"""Tokenizers with reasoning marks as special tokens, and answers made of marks and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssd_ray.models import answers
from ssd_ray.reasoning import AnswerParser, ReasoningFormat, special_marks
from ssd_ray.schema import Completion

HARMONY = (
    "<|return|>",
    "<|start|>",
    "<|end|>",
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    "<|call|>",
)
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
ASKED = "<|start|>user<|message|>Double a number.<|end|><|start|>assistant"
DRAFT = "A first try:\n```python\nprint(0)\n```\nThat is wrong, since"
PROGRAM = "```python\nprint(2 * int(input()))\n```"


def marked_tokenizer(*special: str, end: str = "<|im_end|>", plain: tuple[str, ...] = ()) -> Any:
    """Return a tokenizer of bytes; marks are special tokens, `plain` added ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    names = [*dict.fromkeys(["<|endoftext|>", end, *special])]
    vocabulary = {
        token: index
        for index, token in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(kinds.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token="<|endoftext|>",
        additional_special_tokens=names[2:],
    )


def ids_of(tokenizer: Any, *pieces: str | bytes) -> tuple[int, ...]:
    """Return token ids: the name of a mark becomes its token, and bytes are spelled out."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            ids += (token for byte in piece for token in tokenizer.encode(chr(byte)))
        else:
            ids += tokenizer.encode(piece)
    return tuple(ids)


def answer(
    tokenizer: Any, *pieces: str | bytes, prompt: str = "", ended: bool = True, prompt_id: str = "p"
) -> Completion:
    """Return a model's answer, with text in the form of earlier engines (no special tokens)."""
    ids = ids_of(tokenizer, *pieces)
    return Completion(
        prompt_id=prompt_id,
        sample_index=0,
        seed=0,
        source="test",
        difficulty="easy",
        prompt_token_ids=ids_of(tokenizer, prompt),
        output_token_ids=(*ids, tokenizer.eos_token_id) if ended else ids,
        text=tokenizer.decode(ids, skip_special_tokens=True),
        finish_reason="stop" if ended else "length",
    )


def form_of(tokenizer: Any, directory: Path | None = None, opened: str = "") -> ReasoningFormat:
    """Return the reasoning format of a tokenizer's marks.

    With a directory, the tokenizer is saved there.
    """
    if directory is not None:
        tokenizer.save_pretrained(directory)
    return ReasoningFormat(special=special_marks(tokenizer), tokenizer=directory, opened=opened)


def parser_of(tokenizer: Any, opened: str = "") -> AnswerParser:
    """Return a parser of a tokenizer's answers."""
    return AnswerParser(form_of(tokenizer, opened=opened), answers.text_decoder(tokenizer))
