"""Put a problem to the model as one text and its token ids.

Reads and writes nothing; `ssd_ray.problems.rendering` says what each mode puts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ssd_ray.errors import UserError
from ssd_ray.problems.chat_template import ChatTemplate
from ssd_ray.problems.control_tokens import ControlTokens
from ssd_ray.problems.published_prompts import Messages
from ssd_ray.schema import Problem


class Renderer:
    """Turn a problem into its prompt text and token ids, and count prompts with control tokens.

    - `template` is None in mode `release`.
    - `before` and `after` are the ids that the tokenizer puts around a text. Mode `release` takes the
      first and never the second: an answer continues the prompt.
    - `kept_words` counts prompts in which a control token stayed text; `first_kept` is the first.
    - `unwritable` are the ids of prompts whose control tokens this tokenizer cannot write as text.
    """

    def __init__(
        self, tokenizer: Any, compose: Callable[[Problem], Messages], template: ChatTemplate | None
    ) -> None:
        self.template = template
        self.control = ControlTokens(tokenizer)
        self.before, self.after = _added(tokenizer, required=template is None)
        self.kept_words, self.first_kept = 0, ""
        self.unwritable: list[str] = []
        self._compose = compose
        self._arguments: Mapping[str, Any] = template.arguments if template else {}
        self._named = frozenset(tokenizer.special_tokens_map)
        self._masks_arguments = self.control.occur_in(self._words_of_arguments())
        self._written: dict[tuple[str, ...], int | None] = {}

    def __call__(self, problem: Problem) -> tuple[str, tuple[int, ...]]:
        """Return the text of a problem's prompt and its ids.

        Raises:
            UserError: as for `ChatTemplate.text`; a mode without words for the problem.
        """
        turns, name = self._compose(problem), problem.problem_id
        if self._masks_arguments or self.control.occur_in([turn["content"] for turn in turns]):
            return self._with_words(turns, name)
        text = self._text(turns, name)
        ids = self.control.encode(text)
        written = self._written_by_template(turns)
        if written is not None and self.control.count(ids) != written:
            return self._with_words(turns, name)
        return text, (*self._prefix, *ids)

    def skeleton(self, roles: tuple[str, ...]) -> list[int]:
        """Return the ids of a prompt whose turns say nothing of note.

        Raises:
            UserError: as for `ChatTemplate.text`.
        """
        turns = [{"role": role, "content": f"Number {place}"} for place, role in enumerate(roles)]
        return [*self._prefix, *self.control.encode(self._text(turns, "a problem"))]

    @property
    def _prefix(self) -> tuple[int, ...]:
        return () if self.template else self.before

    def _text(self, turns: Messages, name: str, arguments: Mapping[str, Any] | None = None) -> str:
        return self.template.text(turns, name, arguments) if self.template else turns[0]["content"]

    def _written_by_template(self, turns: Messages) -> int | None:
        """Return how many control tokens the template writes around turns of these roles.

        Return None if the template refuses such turns.
        """
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._written:
            try:
                ids = self.skeleton(roles)[len(self._prefix) :]
                self._written[roles] = self.control.count(ids)
            except UserError:
                self._written[roles] = None
        return self._written[roles]

    def _with_words(self, turns: Messages, name: str) -> tuple[str, tuple[int, ...]]:
        """As `__call__`, with control tokens in turns and template arguments encoded as words."""
        arguments = self._words_of_arguments()
        besides = [self.template.source] if self.template else []
        masked = self.control.mask([turns, arguments], *besides)
        masked_turns, masked_arguments = masked.values
        rendered = self._text(masked_turns, name, {**self._arguments, **masked_arguments})
        text = masked.restore(rendered)
        plain = self.control.encode(text)
        ids = self.control.encode_words(rendered, masked)
        if ids is None:
            self.unwritable.append(name)
            ids = plain
        elif ids != plain:
            self.kept_words += 1
            self.first_kept = self.first_kept or name
        return text, (*self._prefix, *ids)

    def _words_of_arguments(self) -> dict[str, Any]:
        """Return the template arguments that name no special token, such as `bos_token`."""
        return {key: value for key, value in self._arguments.items() if key not in self._named}


def _added(tokenizer: Any, *, required: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a tokenizer puts before and behind a text."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    added = tokenizer.encode("a")
    for start in range(len(added) - len(plain) + 1):
        if added[start : start + len(plain)] == plain:
            return tuple(added[:start]), tuple(added[start + len(plain) :])
    if required:
        raise UserError(
            "mode release: the tokenizer changes a text where it adds tokens to it; use a mode with a chat template"
        )
    return (), ()
