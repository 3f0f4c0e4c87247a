"""Render the turns of a chat as the text that a model expects, with one clock for all prompts.

- The template is the text that transformers takes: of several named ones, `default`.
- A template may read the clock (`strftime_now`). All prompts of a run read the same moment.
- A template that draws at random is refused: its prompts do not follow from the recipe.

Reads and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from ssd_ray.errors import UserError
from ssd_ray.models import templates
from ssd_ray.problems.published_prompts import Messages

_DECIDED_HERE = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "strftime_now",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_ANSWER = "Answer4711"


class Clock:
    """The moment that chat templates read as now.

    `moment` is called once, when a template first reads the clock. `reading` is None until then.
    """

    def __init__(self, moment: Callable[[], datetime] = datetime.now) -> None:
        self._moment = moment
        self.reading: datetime | None = None

    def strftime(self, form: str) -> str:
        """Format the moment as `datetime.strftime` does."""
        if self.reading is None:
            self.reading = self._moment()
        return self.reading.strftime(form)


class ChatTemplate:
    """The chat template of a tokenizer with the arguments that a recipe gives it.

    `field` is the recipe's field that chose the mode; error messages name it.

    Raises:
        UserError: no template, none named `default`, an argument that is decided here, or a
            template that draws at random.
    """

    def __init__(
        self, tokenizer: Any, arguments: Mapping[str, Any], clock: Clock, *, mode: str, field: str
    ) -> None:
        self._tokenizer, self._where = tokenizer, f"{field} {mode}"
        another = "set model.chat_template to another template"
        self._remedy = another if mode == "chat" else f"use {field} chat, or {another}"
        if not tokenizer.chat_template:
            raise UserError(
                f"{self._where} needs a chat template and the model directory holds none: set model.chat_template to a file, "
                f"or use {field} release, the raw text of the authors' script"
            )
        if clash := sorted(arguments.keys() & _DECIDED_HERE):
            raise UserError(
                f"prompts.template_arguments holds {clash[0]!r}, which is decided here: leave it out"
            )
        source = templates.in_use(tokenizer, arguments)
        if source is None:
            names = ", ".join(sorted(tokenizer.chat_template))
            raise UserError(
                f"{self._where}: the model has several chat templates ({names}) and none is named default: "
                "set model.chat_template to a file with one of them"
            )
        if drawing := _random_part(source):
            raise UserError(
                f"{self._where}: the chat template draws at random ({drawing}), so prompts would not follow from the recipe: "
                "set model.chat_template to a file with a copy that does not"
            )
        self.source = source
        self.arguments = dict(arguments)
        self._clock, self._reads_clock = clock, False

    def _now(self, form: str) -> str:
        self._reads_clock = True
        return self._clock.strftime(form)

    @property
    def date(self) -> str | None:
        """The moment that prompts read, in ISO form; None if the template reads no clock."""
        return (
            self._clock.reading.isoformat() if self._reads_clock and self._clock.reading else None
        )

    def text(
        self,
        turns: Messages,
        name: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt of `turns`, up to where the assistant's answer begins.

        `name` is the problem's, for errors; `arguments` replace those of the recipe.

        Raises:
            UserError: a template that is no Jinja, fails, refuses the turns, or leaves one out.
        """
        text = self._rendered(turns, name, self.arguments if arguments is None else arguments)
        if lost := [turn["role"] for turn in turns if turn["content"].strip() not in text]:
            raise UserError(
                f"{self._where}: the chat template leaves out the {lost[0]} message of {name}: {self._remedy}"
            )
        return text

    def end_of_turn(self) -> str | None:
        """Return the text behind an assistant's answer, None if the template shows none."""
        turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": _ANSWER}]
        try:
            text = self._rendered(turns, "a turn of the assistant", self.arguments, answering=False)
        except UserError:
            return None
        _, answer, end = text.rpartition(_ANSWER)
        return end if answer else None

    def _rendered(
        self, turns: Messages, name: str, arguments: Mapping[str, Any], *, answering: bool = True
    ) -> str:
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        try:
            text: str = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=answering,
                strftime_now=self._now,
                **arguments,
            )
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template is no Jinja ({error}): correct it, or set model.chat_template to another"
            ) from error
        except Exception as error:  # a template is a program of the model's author
            if type(error) is TemplateError:  # the template's own raise_exception
                raise UserError(
                    f"{self._where}: the chat template refuses the prompt of {name} ({error}): {self._remedy}"
                ) from error
            raise UserError(
                f"{self._where}: the chat template fails for {name} ({error}): correct it, or what "
                "prompts.template_arguments gives it"
            ) from error
        return text


def _random_part(source: str) -> str | None:
    """Return the part of a template that draws at random, None where there is none."""
    import jinja2
    from jinja2 import nodes

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_GENERATION_TAG.sub("", source))
    except jinja2.TemplateSyntaxError:
        return None  # reported where it is rendered
    if any(node.name == "random" for node in tree.find_all(nodes.Filter)):
        return "the filter random"
    if any(node.name == "lipsum" and node.ctx == "load" for node in tree.find_all(nodes.Name)):
        return "lipsum"
    return None
