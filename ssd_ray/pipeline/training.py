"""Steps of training: samples as training sequences, and the model fine-tuned on them.

samples/ (, sample-verdicts/) ─> dataset/ ─> checkpoint/        the same for each control
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ssd_ray import config
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.dataset_facts import DatasetFacts
from ssd_ray.artifacts.facts import CheckpointFacts
from ssd_ray.artifacts.problem_facts import ContaminationFacts, PromptFacts
from ssd_ray.config import arms
from ssd_ray.config.arms import TrainedModel
from ssd_ray.errors import UserError
from ssd_ray.models import architecture, loading
from ssd_ray.models.answers import reasoning_format
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.step import Step
from ssd_ray.planner.states import state_bytes
from ssd_ray.planner.work import adapter_parameters


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(Step):
    """Samples as training sequences, with a page on their health and a card."""

    verb = "prepare"

    branch: TrainedModel

    def choices(self) -> Mapping[str, object]:
        extract = self.recipe.evaluate.extract
        return {"prepare": config.choices(self.branch.prepare), "extract": extract}

    def preview(self, run: Path) -> str:
        return "training sequences from the sampled ids"

    def make(self, out: Path, context: RunContext) -> DatasetFacts:
        from ssd_ray.reporting.card import provenance
        from ssd_ray.training.data.dataset import prepare
        from ssd_ray.training.data.health import ParseOptions

        branch = self.branch
        run = context.run
        options = ParseOptions(
            extract=self.recipe.evaluate.extract,
            reasoning=reasoning_format(context.model, run / "prompts"),
            end_tokens=loading.end_tokens(context.model, self.recipe.model.end_tokens),
        )
        counts = prepare(
            run / branch.samples,
            branch.prepare,
            options,
            verdicts=run / branch.verdicts if branch.verdicts else None,
            out=out,
            progress=context.progress,
        )
        origin = provenance(self.recipe, branch.sample, run / "prompts", run / branch.samples)
        facts = replace(counts, provenance=origin)
        self._write_pages(out, context, facts)
        return facts

    def describe(self, out: Path, context: RunContext) -> None:
        self._write_pages(out, context, manifests.load_facts(out, DatasetFacts))

    def _write_pages(self, out: Path, context: RunContext, facts: DatasetFacts) -> None:
        """Write the health page and the card of the data set."""
        from ssd_ray.reporting.card import card
        from ssd_ray.reporting.health import DataFacts, health_page

        shown = DataFacts(
            prompts=manifests.load_facts(context.run / "prompts", PromptFacts),
            contamination=manifests.load_facts(context.run / "contamination", ContaminationFacts),
            dataset=facts,
        )
        files.write_atomic(out / "health.html", health_page(self.recipe, self.branch, shown))
        files.write_atomic(out / "README.md", card(self.recipe, self.branch, shown))


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint(Step):
    """The model, fine-tuned on a data set."""

    verb = "train"
    needs_ray = True

    branch: TrainedModel
    model: Mapping[str, object]
    """Choices of the model for training."""

    def choices(self) -> Mapping[str, object]:
        train = config.choices(self.branch.train)
        return {"train": train, "model": self.model, "seed": self.branch.seed}

    def preview(self, run: Path) -> str:
        train = self.recipe.train
        cluster = self.recipe.cluster
        longest = min(self.recipe.prepare.max_length, self.recipe.model.max_model_len)
        plural = "s" if cluster.train_workers > 1 else ""
        workers = f"{cluster.train_workers} {cluster.device} worker{plural}"
        return (
            f"{train.steps:,} steps of {train.global_batch_size} sequences "
            f"of up to {longest:,} tokens, ZeRO-{train.zero_stage} on {workers}"
        )

    def check(self, context: RunContext) -> None:
        from ssd_ray.training.checks import check_model, check_weight_names
        from ssd_ray.training.state import disk_space

        train = self.recipe.train
        check_weight_names(context.model)
        check_model(context.model, train, self.recipe.cluster)
        try:
            model = architecture.read(context.model)
            trained = adapter_parameters(self.recipe, model) or model.parameters
        except UserError:
            # Training supports more architectures and adapters than the planner. Its workers check
            # the space again.
            return
        size = state_bytes(trained, train.zero_stage, 4 if train.dtype == "float32" else 2)
        disk_space.check(context.run / self.name, size, train)

    def make(self, out: Path, context: RunContext) -> CheckpointFacts:
        from ssd_ray.training.job import Job
        from ssd_ray.training.state.export import Serving
        from ssd_ray.training.trainer import train

        model = self.recipe.model
        directory = context.model
        arguments = self.recipe.prompts.template_arguments
        ends = loading.end_tokens(directory, model.end_tokens) if model.end_tokens else ()
        serving = Serving(
            decoding=arms.decoding(self.recipe, self.branch.name),
            chat_template=loading.template_to_export(model, directory, arguments),
            end_tokens=tuple(sorted(ends)),
        )
        job = Job(
            dataset=context.run / self.branch.dataset,
            model=directory,
            base=model,
            out=out,
            logs=context.logs,
            train=self.branch.train,
            cluster=self.recipe.cluster,
            seed=self.branch.seed,
            sampling=self.branch.sample,
            serving=serving,
        )
        return train(job, context.progress)
