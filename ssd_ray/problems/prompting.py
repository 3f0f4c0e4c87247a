"""Renderers of a run, with one model, one clock and the notes on both.

Reads the model directory. Writes `template-date`, the moment of the run, into its directory.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from ssd_ray.artifacts import files
from ssd_ray.artifacts.problem_facts import EvalPromptFacts
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.problems import notes
from ssd_ray.problems.chat_template import Clock
from ssd_ray.problems.renderer import Renderer
from ssd_ray.problems.rendering import Mode, renderer

MOMENT = "template-date"


class Prompting:
    """Factory of renderers for a recipe and its model. Each note goes to `report` once."""

    def __init__(
        self, recipe: Recipe, directory: Path, run: Path, report: Callable[[str], None]
    ) -> None:
        self._recipe = recipe
        self._directory = directory
        self._run = run
        self._report = report
        self._clock = Clock(self._moment)
        self._noted: set[str] = set()

    def renderer(self, mode: Mode, field: str) -> Renderer:
        """Return the renderer of a mode, and report the notes before the first prompt.

        `field` is the recipe field with the mode, for error messages.

        Raises:
            UserError: As for `rendering.renderer`, or `model.end_tokens` names an unknown token.
        """
        model = self._recipe.model
        prompts = self._recipe.prompts
        tokenizer = loading.load_tokenizer(self._directory, model.chat_template)
        prompt_renderer = renderer(
            tokenizer,
            mode,
            prompts.system_message,
            prompts.template_arguments,
            field=field,
            clock=self._clock,
        )
        ends = loading.end_tokens(self._directory, model.end_tokens)
        self._note(notes.before(prompt_renderer, tokenizer, ends, system=mode == "paper"))
        self._note(self._about_the_clock())
        return prompt_renderer

    def complete(self, counts: EvalPromptFacts, prompt_renderer: Renderer) -> EvalPromptFacts:
        """Add the facts of a finished renderer to the counts of its prompts; report its notes."""
        self._note(self._about_the_clock())
        self._note(notes.after(prompt_renderer))
        template = prompt_renderer.template
        digest = hashlib.sha256(template.source.encode()).hexdigest() if template else None
        return dataclasses.replace(
            counts,
            chat_template=digest,
            template_date=template.date if template else None,
            control_words=prompt_renderer.kept_words,
            control_words_unwritable=tuple(prompt_renderer.unwritable),
        )

    def _moment(self) -> datetime:
        """Return the moment of the recipe, else of the run.

        The first call of a run records the current time.
        """
        if self._recipe.prompts.template_date is not None:
            return datetime.fromisoformat(self._recipe.prompts.template_date)
        note = self._run / MOMENT
        if not note.exists():
            files.write_atomic(note, datetime.now().isoformat(timespec="seconds") + "\n")
        try:
            return datetime.fromisoformat(note.read_text().strip())
        except ValueError as error:
            raise UserError(
                f"{note} holds no date: restore the file, or delete the run's directory"
            ) from error

    def _about_the_clock(self) -> Iterable[str]:
        if self._recipe.prompts.template_date is None and self._clock.reading is not None:
            moment = self._clock.reading.isoformat()
            yield (
                f"the chat template reads the clock: prompts of this run have {moment}; "
                "prompts.template_date pins it"
            )

    def _note(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line not in self._noted:
                self._noted.add(line)
                self._report(line)
