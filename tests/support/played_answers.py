"""A run whose answers are played and take a while to run; its verdicts are real."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from ssd_ray import recipes
from ssd_ray.artifacts import shards, slices
from ssd_ray.artifacts.facts import VerdictFacts
from ssd_ray.evaluation import verdicts
from ssd_ray.evaluation.grader import Grader
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.grading import Grade
from ssd_ray.pipeline.step import when_complete
from ssd_ray.schema import Completion, Prompt
from tests.support.played import Played

CHOICES = (
    "evaluate.limit=24",
    "evaluate.controls=[]",
    "model.revision=null",
    "cluster.roles=required",
    "cluster.grader_cpus=1",
)
PROGRAM = "import time\ntime.sleep(0.2)\n"
"""Begin of each program: a grader takes seconds for a slice."""


class PlayedAnswers(Played):
    """Steps of a run up to the verdicts, in this process, without Ray."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
        super().__init__(monkeypatch, model)
        monkeypatch.setattr(Grade, "make", _grade_here)

    def _answer(self, prompt: Prompt, seed: str) -> Completion:
        answer = super()._answer(prompt, seed)
        if answer.output_token_ids[0] % 3 == 0:
            return replace(answer, text="I do not know.")
        return replace(answer, text=answer.text.replace("```python\n", f"```python\n{PROGRAM}"))


def _grade_here(step: Grade, out: Path, context: RunContext) -> VerdictFacts:
    """Grade all answers one after another."""
    assert step.follows is not None
    is_complete = when_complete(context, step.follows)
    while not is_complete():
        time.sleep(0.01)
    spec = step._order(context).spec(context.run, out)
    grader = Grader(spec)
    for path in shards.shard_paths(context.run / step.answers):
        for piece in slices.slices_of(path, set(), verdicts.SLICE_ROWS):
            grader.grade(piece)
    grader.close()
    return verdicts.facts(spec)


def make(directory: Path, model: Path, *chosen: str) -> None:
    """Write the recipe `chaos.yaml`, and its run in `reference/`."""
    with pytest.MonkeyPatch.context() as patch:
        played = PlayedAnswers(patch, model)
        choices = (*CHOICES, f"model.source={model}", *chosen)
        run = played.run(directory / "reference", *choices)
        run.make("grade")
    (directory / "chaos.yaml").write_text(recipes.dump(run.recipe))
