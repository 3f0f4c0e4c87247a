"""Make the renderers of a run, which share a model, a clock and the notes on both.

Reads the model directory. Writes `template-date`, the moment that a run keeps, into its directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.problems import notes
from ssd_ray.problems.chat_template import Clock
from ssd_ray.problems.renderer import Renderer
from ssd_ray.problems.rendering import Mode, renderer

MOMENT = "template-date"


class Prompting:
    """Make renderers for a recipe and its model; each note goes to `say` once."""

    def __init__(
        self, recipe: Recipe, directory: Path, run: Path, say: Callable[[str], None]
    ) -> None:
        self._recipe, self._directory, self._run, self._say = recipe, directory, run, say
        self._clock = Clock(self._moment)
        self._noted: set[str] = set()

    def renderer(self, mode: Mode, field: str) -> Renderer:
        """Make the renderer of a mode, and note what a user should know before the first prompt.

        Raises:
            UserError: as for `rendering.renderer`; `model.end_tokens` with what is no token.
        """
        model, prompts = self._recipe.model, self._recipe.prompts
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

    def facts(self, prompt_renderer: Renderer) -> dict[str, Any]:
        """Return what the manifest records of a renderer that is done, and note what it counted."""
        self._note(self._about_the_clock())
        self._note(notes.after(prompt_renderer))
        return {
            "chat_template": hashlib.sha256(prompt_renderer.template.source.encode()).hexdigest()
            if prompt_renderer.template
            else None,
            "template_date": prompt_renderer.template.date if prompt_renderer.template else None,
            "control_words": prompt_renderer.kept_words,
            "control_words_unwritable": list(prompt_renderer.unwritable),
        }

    def _moment(self) -> datetime:
        """Return the moment of the recipe, else the run's, which is now where it has none yet."""
        if self._recipe.prompts.template_date is not None:
            return datetime.fromisoformat(self._recipe.prompts.template_date)
        note = self._run / MOMENT
        if not note.exists():
            files.write_atomic(note, datetime.now().isoformat(timespec="seconds") + "\n")
        try:
            return datetime.fromisoformat(note.read_text().strip())
        except ValueError as error:
            raise UserError(
                f"{note} holds no date: put back what it held, or delete the run's directory"
            ) from error

    def _about_the_clock(self) -> Iterable[str]:
        if self._recipe.prompts.template_date is None and self._clock.reading is not None:
            moment = self._clock.reading.isoformat()
            yield f"the chat template reads the clock: prompts of this run have {moment}; prompts.template_date pins it"

    def _note(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line not in self._noted:
                self._noted.add(line)
                self._say(line)
