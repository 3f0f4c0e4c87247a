"""Renderer of a problem as one text and its token ids.

Does no I/O; `ssd_ray.problems.rendering` defines the modes.
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
    """Render problems as prompt texts and token ids, and count prompts with control tokens.

    - `template` is None in mode `release`.
    - `before` and `after` are the ids that the tokenizer adds around a text. Mode `release` uses
      `before`, and never `after`, since an answer continues the prompt.
    - `kept_words` counts prompts in which a control token stayed text; `first_kept` is the first.
    - `unwritable` are the ids of prompts with control tokens that this tokenizer cannot write as
      text.
    """

    def __init__(
        self, tokenizer: Any, compose: Callable[[Problem], Messages], template: ChatTemplate | None
    ) -> None:
        self.template = template
        self.control = ControlTokens(tokenizer)
        self.before, self.after = _added(tokenizer, required=template is None)
        self.kept_words = 0
        self.first_kept = ""
        self.unwritable: list[str] = []
        self._compose = compose
        self._arguments: Mapping[str, object] = template.arguments if template else {}
        self._named = frozenset(tokenizer.special_tokens_map)
        self._masks_arguments = self.control.occur_in(self._words_of_arguments())
        self._written: dict[tuple[str, ...], int | None] = {}

    def __call__(self, problem: Problem) -> tuple[str, tuple[int, ...]]:
        """Return the text of a problem's prompt and its ids.

        Raises:
            UserError: As for `ChatTemplate.text`, or the mode has no words for the problem.
        """
        messages = self._compose(problem)
        name = problem.problem_id
        contents = [message["content"] for message in messages]
        if self._masks_arguments or self.control.occur_in(contents):
            return self._with_words(messages, name)
        text = self._text(messages, name)
        ids = self.control.encode(text)
        written = self._written_by_template(messages)
        # Words and template can also form a control token together, at their seam.
        if written is not None and self.control.count(ids) != written:
            return self._with_words(messages, name)
        return text, (*self._prefix, *ids)

    def skeleton(self, roles: tuple[str, ...]) -> list[int]:
        """Return the ids of a prompt with messages of these roles and neutral content.

        Raises:
            UserError: As for `ChatTemplate.text`.
        """
        messages = [
            {"role": role, "content": f"Number {number}"} for number, role in enumerate(roles)
        ]
        return [*self._prefix, *self.control.encode(self._text(messages, "a problem"))]

    @property
    def _prefix(self) -> tuple[int, ...]:
        return () if self.template else self.before

    def _text(
        self, messages: Messages, name: str, arguments: Mapping[str, object] | None = None
    ) -> str:
        if self.template is None:
            return messages[0]["content"]
        return self.template.text(messages, name, arguments)

    def _written_by_template(self, messages: Messages) -> int | None:
        """Return the number of control tokens that the template writes around such messages.

        The number depends on the roles alone. Return None if the template refuses them.
        """
        roles = tuple(message["role"] for message in messages)
        if roles not in self._written:
            try:
                ids = self.skeleton(roles)[len(self._prefix) :]
                self._written[roles] = self.control.count(ids)
            except UserError:
                self._written[roles] = None
        return self._written[roles]

    def _with_words(self, messages: Messages, name: str) -> tuple[str, tuple[int, ...]]:
        """Return a prompt as `__call__` does, with control tokens among its words kept as text."""
        arguments = self._words_of_arguments()
        source = [self.template.source] if self.template else []
        masked = self.control.mask([messages, arguments], *source)
        masked_messages, masked_arguments = masked.values
        rendered = self._text(masked_messages, name, {**self._arguments, **masked_arguments})
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

    def _words_of_arguments(self) -> dict[str, object]:
        """Return the template arguments except special tokens such as `bos_token`."""
        return {key: value for key, value in self._arguments.items() if key not in self._named}


def _added(tokenizer: Any, *, required: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids added by a tokenizer before and after a text."""
    # `bos_token` is no evidence: a tokenizer may define it and not add it, or add other tokens.
    plain = tokenizer.encode("a", add_special_tokens=False)
    added = tokenizer.encode("a")
    for start in range(len(added) - len(plain) + 1):
        if added[start : start + len(plain)] == plain:
            return tuple(added[:start]), tuple(added[start + len(plain) :])
    if required:
        raise UserError(
            "mode release: the tokenizer changes a text where it adds tokens to it; "
            "use a mode with a chat template"
        )
    return (), ()
