"""Steps of grading: run the programs of answers in the sandbox and record verdicts.

benchmark/, generations/<arm>/ ─> verdicts/<arm>/
training-problems/, samples/ ─> sample-verdicts/

With graders apart from Ray, a step writes an order to grading/ and waits for verdicts in graded/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray.artifacts import files, lineage
from ssd_ray.artifacts.facts import VerdictFacts
from ssd_ray.config import Recipe
from ssd_ray.models.answers import for_graders, reasoning_format
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.step import Step, when_complete
from ssd_ray.schema import Profile

if TYPE_CHECKING:
    from ssd_ray.evaluation.orders import Order

_EVALUATE = ("time_limit_s", "memory_limit_mib", "output_limit_kib", "extract")


@dataclass(frozen=True, kw_only=True, eq=False)
class Grade(Step):
    """Verdicts on answers, recorded while the answers are still being drawn."""

    verb = "grade"

    profile: Profile
    answers: str
    """Directory of the answers under the run."""
    problems: str
    """Directory of the problems with their tests, under the run."""
    prompts: str
    """Directory of the answered prompts under the run."""
    samples_per_prompt: int

    @property
    def needs_ray(self) -> bool:
        return not _are_apart(self.recipe)

    def choices(self) -> Mapping[str, object]:
        rules = {name: getattr(self.recipe.evaluate, name) for name in _EVALUATE}
        return {"profile": self.profile, **rules}

    def preview(self, run: Path) -> str:
        evaluate = self.recipe.evaluate
        limits = f"{evaluate.time_limit_s:g} s and {evaluate.memory_limit_mib} MiB a test"
        return f"{self.profile}: run the programs, {limits}"

    def make(self, out: Path, context: RunContext) -> VerdictFacts:
        from ssd_ray.evaluation import apart, orders
        from ssd_ray.evaluation.following import Answers
        from ssd_ray.evaluation.ray_pool import grade

        run = context.run
        order = self._order(context)
        assert self.follows is not None
        answers = Answers(
            directory=run / self.answers,
            total=order.total,
            ended=when_complete(context, self.follows),
        )
        if _are_apart(self.recipe):
            published = orders.publish(run, order)
            job = apart.Collection(order=published, run=run, out=out)
            return apart.collect(job, answers, context.progress)
        spec = order.spec(run, out)
        return grade(answers, spec, context.graders, stage=self.name, progress=context.progress)

    def _order(self, context: RunContext) -> Order:
        """Return everything that graders need to know."""
        from ssd_ray.evaluation.judging.judge import Rules
        from ssd_ray.evaluation.orders import Order
        from ssd_ray.evaluation.sandbox import Limits

        evaluate = self.recipe.evaluate
        run = context.run
        prompts = run / self.prompts
        problems = lineage.source(run / self.problems)
        limits = Limits(
            time_s=evaluate.time_limit_s,
            memory_mib=evaluate.memory_limit_mib,
            output_kib=evaluate.output_limit_kib,
        )
        reasoning = for_graders(reasoning_format(context.model, prompts), prompts)
        if reasoning.tokenizer is not None:
            # Graders of another machine may have the run elsewhere.
            reasoning = replace(reasoning, tokenizer=reasoning.tokenizer.relative_to(run))
        return Order(
            name=self.name,
            fingerprint=self.identity.fingerprint,
            answers=self.answers,
            claim=lineage.claim_of(run / self.answers) or "",
            problems=self.problems,
            contents="" if problems is None else problems.files,
            prompts=self.prompts,
            samples_per_prompt=self.samples_per_prompt,
            total=context.num_rows(self.prompts) * self.samples_per_prompt,
            rules=Rules(limits=limits, profile=self.profile, extract=evaluate.extract),
            floor=evaluate.sandbox_floor,
            reasoning=reasoning,
        )


def announce(steps: Iterable[Step], context: RunContext) -> None:
    """List the orders to come for graders apart, and make the directories that they mount.

    Without graders apart, or without a step of grading, nothing is written.
    """
    from ssd_ray.evaluation import orders

    grades = [step for step in steps if isinstance(step, Grade)]
    if not grades or not _are_apart(context.recipe):
        return
    # A pod mounts them before they hold anything.
    for name in orders.MOUNTED:
        files.make_directory(context.run / name)
    orders.announce(context.run, {step.name: step.identity.fingerprint for step in grades})


def _are_apart(recipe: Recipe) -> bool:
    return recipe.cluster.graders == "apart"
