"""How each artifact is made: a recipe's choices handed to the function that a stage offers, and the facts that come back.

Nothing is decided here; `pipeline.py` says what is made from what. Stages are imported where they are used, so that a plan
loads none of them. Writes into the directory that each act is given.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray import arms, artifacts, config, model_directory, models
from ssd_ray.answers import reasoning_format
from ssd_ray.arms import Branch
from ssd_ray.config import Arm, Recipe, SampleConfig
from ssd_ray.errors import UserError
from ssd_ray.model_directory import Origin
from ssd_ray.problems import sources
from ssd_ray.progress import Progress, counted
from ssd_ray.schema import Problem, Profile

if TYPE_CHECKING:
    from ssd_ray.evaluation.pool import GraderPool
    from ssd_ray.problems.contamination import Benchmarks
    from ssd_ray.problems.prompting import Prompting

Facts = Mapping[str, Any]


class Stages:
    """The acts behind the steps of a recipe in a run directory."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.recipe, self.out, self._progress = recipe, out, progress
        self._fetching = threading.Lock()

    @functools.cached_property
    def graders(self) -> GraderPool:
        """The graders of all steps, which a run opens once Ray is up and closes before Ray goes."""
        from ssd_ray.evaluation.graders import pool_on_ray

        return pool_on_ray(self.recipe.cluster, self.out / "logs")

    @property
    def _directory(self) -> Path:
        """The model, fetched once, also when two steps that overlap ask for it."""
        with self._fetching:
            return self._model

    @functools.cached_property
    def _model(self) -> Path:
        """The model; of a hub id without a revision, always the commit that this run got first, noted in `model-revision`."""
        model, note = self.recipe.model, self.out / "model-revision"
        from_hub = "hub" in models.identify(model)
        if models.present(model) is None:
            self._progress.say(f"model: {'downloading' if from_hub else 'converting'} {model.source}, once on this machine")
        if not from_hub or model.revision:
            return models.fetch(model)
        if note.exists():
            return models.fetch(model.model_copy(update={"revision": note.read_text().strip()}))
        directory = models.fetch(model)
        artifacts.write_atomic(note, f"{directory.name}\n")
        return directory

    def benchmark(self, out: Path) -> Facts:
        """The problems of every benchmark, their tests in a store."""
        from ssd_ray.evaluation import soundness
        from ssd_ray.evaluation.store import stored

        evaluate, tally = self.recipe.evaluate, sources.Tally()
        left_out: list[str] = []
        ungradable: dict[str, str] = {}
        chosen = sources.benchmark_problems(evaluate, tally)
        kept = stored(chosen, out / "tests", evaluate.sandbox_floor, left_out, ungradable)
        problems = list(counted(kept, self._progress, "benchmark", "problems"))
        problems_left_out = soundness.named(ungradable, tally.places)
        if not problems:
            raise UserError(
                "; ".join(["evaluate.benchmarks: no problem can be graded", *soundness.said(problems_left_out, most=1)])
            )
        for line in soundness.said(problems_left_out):
            self._progress.say(line)
        artifacts.write_shard(out, "problems", problems, Problem)
        return {
            "rows": len(problems),
            "tests": sum(problem.num_tests for problem in problems),
            "tests_left_out": left_out,
            "problems_left_out": problems_left_out,
            "public_only": dict(tally.public_only),
            "dropped": dict(tally.dropped),
            "bad_rows": [dataclasses.asdict(bad) for bad in tally.bad_rows],
        }

    def prompts(self, out: Path) -> Facts:
        """The training problems as prompts."""
        from ssd_ray.problems.rendering import Room, render

        chosen, tally = self.recipe.prompts, sources.Tally()
        room = Room(
            max_model_len=self.recipe.model.max_model_len,
            answer_tokens=self.recipe.sample.max_tokens,
            over_length=chosen.over_length,
        )
        problems = sources.training_problems(chosen, tally, self._benchmarks(), self.out / "prompts-revision")
        put = self._prompting.renderer(chosen.mode, "prompts.mode")
        facts = render(counted(problems, self._progress, "prompts", "prompts"), put, room, out=out)
        if facts["skipped"]:
            tally.dropped["too long for the context"] = facts["skipped"]
        return {
            **facts,
            **self._prompting.facts(put),
            "read": tally.read,
            "source_revision": tally.revision,
            "dropped": dict(tally.dropped),
            "model": self._directory.name,
            "tokenizer": models.tokenizer_digests(self._directory),
        }

    def _benchmarks(self) -> Benchmarks | None:
        """What training problems must not overlap, where those that do are dropped."""
        from ssd_ray.problems.contamination import Benchmarks

        dropped = self.recipe.prompts.contamination == "drop"
        return Benchmarks(artifacts.read_rows(self.out / "benchmark", Problem)) if dropped else None

    def contamination(self, out: Path) -> Facts:
        """What the training prompts share with the benchmarks."""
        from ssd_ray.problems.contamination import check

        places, policy = (self.out / "prompts", self.out / "benchmark"), self.recipe.prompts.contamination
        return check(*places, policy, out=out, progress=self._progress)

    def eval_prompts(self, out: Path) -> Facts:
        """The benchmark's problems as prompts."""
        from ssd_ray.problems.rendering import Room, render

        problems = artifacts.read_rows(self.out / "benchmark", Problem)
        put = self._prompting.renderer(self.recipe.evaluate.prompt_mode, "evaluate.prompt_mode")
        problems = counted(problems, self._progress, "eval-prompts", "prompts", self._rows("benchmark"))
        facts = render(problems, put, Room(max_model_len=self.recipe.model.max_model_len), out=out)
        return {**facts, **self._prompting.facts(put)}

    @functools.cached_property
    def _prompting(self) -> Prompting:
        from ssd_ray.problems.prompting import Prompting

        return Prompting(self.recipe, self._directory, self.out, self._progress.say)

    def samples(self, chosen: SampleConfig, stage: str, ended: Callable[[], bool], out: Path) -> Facts:
        """Answers of the frozen model at the training temperature, drawn while prompts are rendered until `ended`."""
        samples = chosen.samples_per_prompt
        return self._draw("prompts", ended, self._directory, chosen, samples, chosen.max_tokens, stage, out)

    def generations(self, stage: str, arm: Arm, checkpoint: str | None, ended: Callable[[], bool], out: Path) -> Facts:
        """Answers of one arm to the benchmark; without a checkpoint, of the frozen model."""
        directory = self._directory if checkpoint is None else self.out / checkpoint
        if checkpoint is not None:
            self._check_checkpoint(directory)
        evaluate = self.recipe.evaluate
        return self._draw("eval-prompts", ended, directory, arm, evaluate.samples_per_problem, evaluate.max_tokens, stage, out)

    def _draw(
        self,
        prompts: str,
        ended: Callable[[], bool],
        directory: Path,
        decoding: config.Decoding,
        samples: int,
        max_tokens: int,
        stage: str,
        out: Path,
    ) -> Facts:
        from ssd_ray.inference.generation import generate

        return generate(
            self.out / prompts,
            directory.resolve(),
            decoding,
            samples=samples,
            max_tokens=max_tokens,
            shard_rows=self.recipe.sample.shard_rows,
            seed=self.recipe.seed,
            model=self.recipe.model,
            engine=self.recipe.engine,
            cluster=self.recipe.cluster,
            ended=ended,
            stage=stage,
            out=out,
            logs=self.out / "logs",
            progress=self._progress,
        )

    def training_problems(self, out: Path) -> Facts:
        """The problems behind the prompts, their tests in a store."""
        from ssd_ray.evaluation.store import stored

        chosen, tally = self.recipe.prompts, sources.Tally()
        left_out: list[str] = []
        problems = stored(
            sources.training_problems(chosen, tally, self._benchmarks(), self.out / "prompts-revision"),
            out / "tests",
            self.recipe.evaluate.sandbox_floor,
            left_out,
        )
        rows = list(counted(problems, self._progress, "training-problems", "problems"))
        artifacts.write_shard(out, "problems", rows, Problem)
        return {"rows": len(rows), "tests": sum(problem.num_tests for problem in rows), "tests_left_out": left_out}

    def dataset(self, branch: Branch, out: Path) -> Facts:
        """Samples as training sequences, with a page on their health and a card."""
        from ssd_ray.reporting.card import provenance
        from ssd_ray.training.dataset import prepare
        from ssd_ray.training.health import Reading

        extract, ends = self.recipe.evaluate.extract, models.end_tokens(self._directory, self.recipe.model.end_tokens)
        form = reasoning_format(self._directory, self.out / "prompts")
        reading = Reading(extract=extract, reasoning=form, end_tokens=ends)
        graded, samples = self.out / branch.verdicts if branch.verdicts else None, self.out / branch.samples
        made = prepare(samples, branch.prepare, reading, verdicts=graded, out=out, progress=self._progress)
        made["provenance"] = provenance(self.recipe, branch.sample, self.out / "prompts", samples)
        self.describe_dataset(branch, out, made)
        return made

    def describe_dataset(self, branch: Branch, out: Path, made: Facts) -> None:
        """Write the page and the card of a data set, which also say what is no part of it: the licence, the overlaps found."""
        from ssd_ray.reporting.card import card
        from ssd_ray.reporting.health import health_page

        facts = {name: artifacts.load(self.out / name).facts for name in ("prompts", "contamination")} | {"dataset": made}
        artifacts.write_atomic(out / "health.html", health_page(self.recipe, branch, facts))
        artifacts.write_atomic(out / "README.md", card(self.recipe, branch, facts))

    def check_weights(self, checkpoint: str | None = None) -> None:
        """Check the files of the model, or of a checkpoint that is complete, before Ray starts."""
        if checkpoint is None:
            _ = self._directory  # fetching checks it
        elif (self.out / checkpoint / "manifest.json").exists():
            self._check_checkpoint(self.out / checkpoint)

    def _check_checkpoint(self, directory: Path) -> None:
        remedy = f"delete {directory} and run the same command, which trains the model again"
        origin = Origin(name=f"the trained model {directory}", remedy=remedy)
        model_directory.check(directory, origin)

    def check_training(self) -> None:
        """Whether the recipe's choices can train its model, before anything is sampled for it."""
        from ssd_ray.training.checks import check_model, check_weight_names

        check_weight_names(self._directory)
        check_model(self._directory, self.recipe.train, self.recipe.cluster)

    def checkpoint(self, branch: Branch, out: Path) -> Facts:
        """The model fine-tuned on a branch's data set."""
        from ssd_ray.training.checkpoints import Serving
        from ssd_ray.training.trainer import train

        model = self.recipe.model
        serving = Serving(
            decoding=arms.decoding(self.recipe, branch.name),
            chat_template=models.template_to_export(model, self._directory, self.recipe.prompts.template_arguments),
            end_tokens=tuple(sorted(models.end_tokens(self._directory, model.end_tokens))) if model.end_tokens else (),
        )
        return train(
            self.out / branch.dataset,
            self._directory,
            self.recipe.train,
            self.recipe.cluster,
            sampling=branch.sample,
            serving=serving,
            seed=self.recipe.seed,
            out=out,
            logs=self.out / "logs",
            progress=self._progress,
        )

    def verdicts(self, generations: str, profile: Profile, stage: str, ended: Callable[[], bool], out: Path) -> Facts:
        """What became of an arm's programs under a profile, graded while they are generated until `ended`."""
        total = self._rows("eval-prompts") * self.recipe.evaluate.samples_per_problem
        return self._grade(generations, "benchmark", "eval-prompts", total, profile, stage, ended, out)

    def sample_verdicts(self, samples: str, profile: Profile, stage: str, ended: Callable[[], bool], out: Path) -> Facts:
        """What became of the programs of samples, graded while they are drawn until `ended`."""
        total = self._rows("prompts") * self.recipe.sample.samples_per_prompt
        return self._grade(samples, "training-problems", "prompts", total, profile, stage, ended, out)

    def _grade(
        self,
        answers: str,
        problems: str,
        prompts: str,
        total: int,
        profile: Profile,
        stage: str,
        ended: Callable[[], bool],
        out: Path,
    ) -> Facts:
        from ssd_ray.evaluation.grader import Order
        from ssd_ray.evaluation.graders import grade
        from ssd_ray.evaluation.grading import Rules
        from ssd_ray.evaluation.sandbox import Limits

        evaluate = self.recipe.evaluate
        limits = Limits(time_s=evaluate.time_limit_s, memory_mib=evaluate.memory_limit_mib, output_kib=evaluate.output_limit_kib)
        order = Order(
            benchmark=(self.out / problems).resolve(),
            rules=Rules(limits=limits, profile=profile, extract=evaluate.extract),
            floor=evaluate.sandbox_floor,
            out=out.resolve(),
            reasoning=reasoning_format(self._directory, self.out / prompts),
        )
        answered = self.out / answers
        return grade(answered, order, self.graders, total=total, ended=ended, stage=stage, progress=self._progress)

    def _rows(self, stage: str) -> int:
        return int(artifacts.load(self.out / stage).facts["rows"])

    def report(self, steps: Sequence[str], out: Path) -> Facts:
        """Write the page and the scores; `steps` are the names of all steps before it."""
        from ssd_ray.reporting.page import report

        return report(self.recipe, self.out, steps, out=out)
