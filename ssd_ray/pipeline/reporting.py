"""Step of reporting: write the report page and scores.json from everything before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssd_ray import config
from ssd_ray.artifacts.facts import ReportFacts
from ssd_ray.config import arms
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.step import Step

_EVALUATE = ("pass_at", "bootstrap_samples", "confidence", "max_infrastructure_errors", "profiles")


@dataclass(frozen=True, kw_only=True, eq=False)
class Report(Step):
    """The report page and scores.json."""

    verb = "report"
    reads_facts = True

    steps: tuple[str, ...]
    """Names of all steps before it, to show their cost."""

    def choices(self) -> Mapping[str, object]:
        recipe = self.recipe
        evaluate = config.choices(recipe.evaluate)
        families = {name: list(swept.values()) for name, swept in arms.families(recipe).items()}
        return {
            "name": recipe.name,
            "seed": recipe.seed,
            **{key: evaluate[key] for key in _EVALUATE},
            "baseline": arms.baseline(recipe),
            "families": families,
        }

    def preview(self, run: Path) -> str:
        return "report.html and scores.json"

    def make(self, out: Path, context: RunContext) -> ReportFacts:
        from ssd_ray.reporting.page import report

        return report(self.recipe, context.run, self.steps, out=out)
