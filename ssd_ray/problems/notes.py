"""Notes on a tokenizer and a chat template, shown to the user while prompts are rendered.

Each note is one line: finding, consequence, remedy. Pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from ssd_ray.errors import UserError
from ssd_ray.problems.renderer import Renderer


def before(
    renderer: Renderer, tokenizer: Any, ends: Collection[int], *, system: bool
) -> Iterator[str]:
    """Yield the notes before the first prompt: on end tokens, and on both ends of prompts.

    `ends` are the ids that end an answer. With `system`, prompts begin with a system message.
    """
    if not ends:
        yield (
            "the model has no end token, so every answer runs to its limit: "
            "set model.end_tokens to tokens that end one"
        )
    if renderer.template is None:
        if renderer.after:
            tokens = _shown(tokenizer, renderer.after)
            yield (
                f"the tokenizer puts {tokens} after a text: prompts are without it, "
                "since an answer continues them"
            )
        return
    try:
        prompt = renderer.skeleton(("system", "user") if system else ("user",))
    except UserError:  # raised again, with the problem's name, for the first prompt
        return
    yield from _beginning(renderer, tokenizer, prompt)
    if prompt[-1:] and prompt[-1] in ends:
        yield (
            f"the chat template ends prompts with {_shown(tokenizer, prompt[-1:])}, an end token, "
            "so that answers continue a finished text: it needs a generation prompt"
        )
    if ends:
        yield from _end_of_turn(renderer, tokenizer, ends)


def after(renderer: Renderer) -> Iterator[str]:
    """Yield the notes after the last prompt: on control tokens in the words of prompts."""
    if renderer.kept_words:
        prompts = (
            "1 prompt holds"
            if renderer.kept_words == 1
            else f"{renderer.kept_words:,} prompts hold"
        )
        yield (
            f"{prompts} the text of control tokens ({renderer.first_kept} is the first): "
            "it stays text"
        )
    if renderer.unwritable:
        more = len(renderer.unwritable) - 1
        others = f" and {more:,} more" if more else ""
        yield (
            "the tokenizer has no other ids for the text of control tokens in "
            f"{renderer.unwritable[0]}{others}: they stay control tokens there; "
            "reword these statements or leave them out"
        )


def _beginning(renderer: Renderer, tokenizer: Any, prompt: list[int]) -> Iterator[str]:
    first = list(renderer.before)
    if first and prompt[: len(first)] != first:
        yield (
            f"the tokenizer puts {_shown(tokenizer, first)} before a text, the chat template does "
            "not: prompts lack it"
        )
    elif first and prompt[: 2 * len(first)] == first * 2:
        yield (
            f"the chat template writes {_shown(tokenizer, first)} twice at the beginning of prompts"
        )


def _end_of_turn(renderer: Renderer, tokenizer: Any, ends: Collection[int]) -> Iterator[str]:
    text = renderer.template.end_of_turn() if renderer.template else None
    if not text or not text.strip():
        return
    ids = renderer.control.encode(text)
    if not set(ends).isdisjoint(ids):
        return
    if "<|end|>" in text and "<|channel|>" in tokenizer.get_vocab():
        # GPT-OSS: the text ends one message, and the answer goes on in another channel.
        return
    listed = ", ".join(map(str, sorted(ends)))
    number = next((number for number in ids if renderer.control.count([number])), None)
    # The recipe can name a control token as an end token, but not a piece of plain text.
    if number is not None:
        token = tokenizer.convert_ids_to_tokens(number)
        yield (
            f"the chat template ends an assistant's turn with {token}, which is none of the end "
            f"tokens ({listed}): answers go on after it; set model.end_tokens to ['{token}'] to "
            "end them there"
        )
    else:
        yield (
            "the chat template ends an assistant's turn with the text "
            f"{text.strip()[:40]!r} and with none of the end tokens ({listed}): "
            "answers end only where the model writes one of these"
        )


def _shown(tokenizer: Any, ids: Collection[int]) -> str:
    return " ".join(f"{tokenizer.convert_ids_to_tokens(number)} ({number})" for number in ids)
