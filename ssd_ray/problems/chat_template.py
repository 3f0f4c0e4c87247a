"""Rendering of chat messages by a model's chat template, with one clock for all prompts.

- The template is the one that transformers uses: of several named ones, `default`, or `tool_use`
  if the arguments have tools.
- A template may read the clock (`strftime_now`). All prompts of a run read the same moment.
- A template with random choices is refused, as its prompts do not follow from the recipe.

Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from ssd_ray.errors import UserError
from ssd_ray.models import templates
from ssd_ray.problems.published_prompts import Messages

# Arguments of `apply_chat_template` that this module sets, or that would change its result.
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
# A tag of transformers' own, unknown to plain Jinja.
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_ANSWER = "Answer4711"


class Clock:
    """The current moment as seen by chat templates.

    `moment` is called once, at the first read of the clock. `reading` is None until then.
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
    """The chat template of a tokenizer with its arguments from a recipe.

    `field` is the recipe field with the mode, for error messages.

    Raises:
        UserError: There is no template or none named `default`, an argument is one that this module
            sets, or the template has random choices.
    """

    def __init__(
        self,
        tokenizer: Any,
        arguments: Mapping[str, object],
        clock: Clock,
        *,
        mode: str,
        field: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._where = f"{field} {mode}"
        another = "set model.chat_template to another template"
        self._remedy = another if mode == "chat" else f"use {field} chat, or {another}"
        if not tokenizer.chat_template:
            raise UserError(
                f"{self._where} needs a chat template and the model directory holds none: set "
                f"model.chat_template to a file, or use {field} release, the raw text of the "
                "authors' script"
            )
        if clash := sorted(arguments.keys() & _DECIDED_HERE):
            raise UserError(
                f"prompts.template_arguments holds {clash[0]!r}, which ssd_ray sets: leave it out"
            )
        source = templates.in_use(tokenizer, arguments)
        if source is None:
            names = ", ".join(sorted(tokenizer.chat_template))
            raise UserError(
                f"{self._where}: the model has several chat templates ({names}) and none is named "
                "default: set model.chat_template to a file with one of them"
            )
        if drawing := _random_part(source):
            raise UserError(
                f"{self._where}: the chat template draws at random ({drawing}), so prompts would "
                "not follow from the recipe: set model.chat_template to a file with a copy that "
                "does not"
            )
        self.source = source
        self.arguments = dict(arguments)
        self._clock = clock
        self._reads_clock = False

    def _now(self, form: str) -> str:
        self._reads_clock = True
        return self._clock.strftime(form)

    @property
    def date(self) -> str | None:
        """The moment that prompts show, in ISO form; None if the template reads no clock."""
        return (
            self._clock.reading.isoformat() if self._reads_clock and self._clock.reading else None
        )

    def text(
        self,
        messages: Messages,
        name: str,
        arguments: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt of `messages`, up to the start of the assistant's answer.

        Args:
            messages: Messages with `role` and `content`.
            name: Name of the problem, for error messages.
            arguments: Template arguments to use instead of those of the recipe.

        Raises:
            UserError: The template is not valid Jinja, fails, refuses the messages, or leaves one
                out.
        """
        text = self._rendered(messages, name, self.arguments if arguments is None else arguments)
        # Some templates skip a system message silently.
        for message in messages:
            if message["content"].strip() not in text:
                raise UserError(
                    f"{self._where}: the chat template leaves out the {message['role']} message of "
                    f"{name}: {self._remedy}"
                )
        return text

    def end_of_turn(self) -> str | None:
        """Return the text after an assistant's answer, or None if a template shows no answer."""
        messages = [
            {"role": "user", "content": "Question"},
            {"role": "assistant", "content": _ANSWER},
        ]
        try:
            text = self._rendered(
                messages, "an answer of the assistant", self.arguments, answering=False
            )
        except UserError:
            return None
        _, answer, end = text.rpartition(_ANSWER)
        return end if answer else None

    def _rendered(
        self,
        messages: Messages,
        name: str,
        arguments: Mapping[str, object],
        *,
        answering: bool = True,
    ) -> str:
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=answering,
                strftime_now=self._now,
                **arguments,
            )
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template is not Jinja ({error}): correct it, or set model.chat_template "
                "to another"
            ) from error
        # A template is a program of the model's author: any error can come out of it. Its own
        # `raise_exception` raises a bare TemplateError.
        except Exception as error:
            if type(error) is TemplateError:
                raise UserError(
                    f"{self._where}: the chat template refuses the prompt of {name} ({error}): "
                    f"{self._remedy}"
                ) from error
            raise UserError(
                f"{self._where}: the chat template fails for {name} ({error}): correct it, or its "
                "arguments in prompts.template_arguments"
            ) from error
        return text


def _random_part(source: str) -> str | None:
    """Return the random part of a template, or None if it has none."""
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
