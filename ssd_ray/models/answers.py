"""Reasoning marks of a model's answers, from its tokenizer and its prompts.

Reads a model directory and Prompt shards; writes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import shards
from ssd_ray.models import loading
from ssd_ray.reasoning import AnswerParser, ReasoningFormat, format_from_prompts, special_marks


def reasoning_format(directory: Path, prompts: Path) -> ReasoningFormat:
    """Return the marks of reasoning in a model's answers to the prompts of an artifact."""
    directory = directory.resolve()
    form = format_from_prompts(shards.read_columns(prompts, "prompt_id", "text", "statement"))
    return dataclasses.replace(form, special=_special_marks(directory), tokenizer=directory)


@functools.cache
def _special_marks(directory: Path) -> dict[int, str]:
    return special_marks(loading.load_tokenizer(directory))


def answer_parser(form: ReasoningFormat) -> AnswerParser:
    """Return a parser of answers in a format, with the tokenizer if marks are special tokens."""
    if not form.special or form.tokenizer is None:
        return AnswerParser(form)
    return AnswerParser(form, text_decoder(loading.load_tokenizer(form.tokenizer)))


def text_decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Return the function from ids to their exact text without special tokens."""
    exactly = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return functools.partial(tokenizer.decode, **exactly)
