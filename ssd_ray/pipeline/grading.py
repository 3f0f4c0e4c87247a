"""Steps of grading: run the programs of answers in the sandbox and record verdicts.

benchmark/, generations/<arm>/ ─> verdicts/<arm>/
training-problems/, samples/ ─> sample-verdicts/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts.facts import VerdictFacts
from ssd_ray.models.answers import reasoning_format
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.step import Step, when_complete
from ssd_ray.schema import Profile

_EVALUATE = ("time_limit_s", "memory_limit_mib", "output_limit_kib", "extract")


@dataclass(frozen=True, kw_only=True, eq=False)
class Grade(Step):
    """Verdicts on answers, recorded while the answers are still being drawn."""

    verb = "grade"
    needs_ray = True

    profile: Profile
    answers: str
    """Directory of the answers under the run."""
    problems: str
    """Directory of the problems with their tests, under the run."""
    prompts: str
    """Directory of the answered prompts under the run."""
    samples_per_prompt: int

    def choices(self) -> Mapping[str, object]:
        rules = {name: getattr(self.recipe.evaluate, name) for name in _EVALUATE}
        return {"profile": self.profile, **rules}

    def preview(self, run: Path) -> str:
        evaluate = self.recipe.evaluate
        limits = f"{evaluate.time_limit_s:g} s and {evaluate.memory_limit_mib} MiB a test"
        return f"{self.profile}: run the programs, {limits}"

    def make(self, out: Path, context: RunContext) -> VerdictFacts:
        from ssd_ray.evaluation.grader import GradingSpec
        from ssd_ray.evaluation.judging.judge import Rules
        from ssd_ray.evaluation.ray_pool import Answers, grade
        from ssd_ray.evaluation.sandbox import Limits

        evaluate = self.recipe.evaluate
        run = context.run
        limits = Limits(
            time_s=evaluate.time_limit_s,
            memory_mib=evaluate.memory_limit_mib,
            output_kib=evaluate.output_limit_kib,
        )
        spec = GradingSpec(
            benchmark=(run / self.problems).resolve(),
            rules=Rules(limits=limits, profile=self.profile, extract=evaluate.extract),
            floor=evaluate.sandbox_floor,
            out=out.resolve(),
            reasoning=reasoning_format(context.model, run / self.prompts),
        )
        assert self.follows is not None
        answers = Answers(
            directory=run / self.answers,
            total=context.num_rows(self.prompts) * self.samples_per_prompt,
            ended=when_complete(context, self.follows),
        )
        return grade(answers, spec, context.graders, stage=self.name, progress=context.progress)
