"""Reasoning marks of a model's answers, from its tokenizer and its prompts.

Reads a model directory and Prompt shards; writes a copy of the tokenizer for graders.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files, shards
from ssd_ray.models import loading
from ssd_ray.models.model_files import TOKENIZER_FILES
from ssd_ray.reasoning import AnswerParser, ReasoningFormat, format_from_prompts, special_marks


def reasoning_format(directory: Path, prompts: Path) -> ReasoningFormat:
    """Return the marks of reasoning in a model's answers to the prompts of an artifact."""
    directory = directory.resolve()
    form = format_from_prompts(shards.read_columns(prompts, "prompt_id", "text", "statement"))
    return dataclasses.replace(form, special=_special_marks(directory), tokenizer=directory)


@functools.cache
def _special_marks(directory: Path) -> dict[int, str]:
    return special_marks(loading.load_tokenizer(directory))


def for_graders(form: ReasoningFormat, prompts: Path) -> ReasoningFormat:
    """Return a format whose tokenizer lies in the artifact of prompts, copied at the first call.

    Graders read artifacts of the run and nothing else: no model, and no cache of the hub.
    Without special marks no tokenizer is needed.
    """
    if not form.special or form.tokenizer is None:
        return dataclasses.replace(form, tokenizer=None)
    target = prompts / "tokenizer"
    if not target.exists():
        partial = prompts / f".tokenizer.{uuid.uuid4().hex}.partial"
        partial.mkdir()
        names = {path for pattern in TOKENIZER_FILES for path in form.tokenizer.glob(pattern)}
        for path in filter(Path.is_file, names):
            shutil.copyfile(path, partial / path.name)
        files.sync([*partial.iterdir(), partial])
        files.publish_directory(partial, target)
        # It is still there if another step was first.
        shutil.rmtree(partial, ignore_errors=True)
    return dataclasses.replace(form, tokenizer=target)


def answer_parser(form: ReasoningFormat) -> AnswerParser:
    """Return a parser of answers in a format, with the tokenizer if marks are special tokens."""
    if not form.special or form.tokenizer is None:
        return AnswerParser(form)
    return AnswerParser(form, text_decoder(loading.load_tokenizer(form.tokenizer)))


def text_decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Return the function from ids to their exact text without special tokens."""
    exactly = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return functools.partial(tokenizer.decode, **exactly)
