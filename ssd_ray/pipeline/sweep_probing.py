"""Steps of a sweep at the level of distributions: no student answers anything.

    samples/T=1/ ─> states/base/, checkpoint/<student>/ ─> states/<student>/ ─> probes/<student>/

- Contexts are the base's own answers to training prompts that every training holds out.
- Each model makes one forward pass over them, and its last hidden states are kept. So all decodings
  come from the same pass, and a further one costs none.
- `probes/<student>/` has sums for each problem, at every decoding.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray import config
from ssd_ray.artifacts import files, shards
from ssd_ray.artifacts.facts import RowFacts, SweepFacts
from ssd_ray.errors import UserError
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.step import Step
from ssd_ray.pipeline.sweep_space import check_space
from ssd_ray.progress import counted
from ssd_ray.recipes.cells import Student
from ssd_ray.recipes.sweeps import Design
from ssd_ray.reporting.words import counted as number_of
from ssd_ray.schema import Completion, Prompt
from ssd_ray.statistics.means import MIN_PROBLEMS

if TYPE_CHECKING:
    from torch import Tensor

    from ssd_ray.analysis.forward import Context, ScoredModel
    from ssd_ray.analysis.operator import Setting

VERB = "sweep"
BASE_STATES = "states/base"
SUMS = "sums.json"


def held_out_prompts(design: Design) -> int:
    """Return the number of prompts that every training of a sweep holds out.

    Raises:
        UserError: there are fewer than two.
    """
    # An answer more to each prompt means fewer prompts among as many samples.
    number = min(
        -(-student.recipe.train.heldout_samples // student.recipe.sample.samples_per_prompt)
        for student in design.students
    )
    if number < MIN_PROBLEMS:
        samples = design.recipe.train.heldout_samples
        raise UserError(
            f"train.heldout_samples {samples} holds {number_of(number, 'prompt')} out of training, "
            f"and an interval needs {MIN_PROBLEMS}: set it to 24 or more"
        )
    return number


@dataclass(frozen=True, kw_only=True)
class HeldOutAnswers:
    """The contexts of a sweep: answers of the base to prompts that no student is trained on."""

    samples: str
    """Directory of the samples at T 1 without truncation."""
    prompts: int
    """Number of prompts."""

    def contexts(self, run: Path, seed: int) -> list[Context]:
        """Return the answers with a position, in the order of their keys."""
        from ssd_ray.analysis.forward import Context
        from ssd_ray.training.observe.heldout import held_out_order

        prompts = [row.prompt_id for row in shards.read_rows(run / "prompts", Prompt)]
        # First in the order of all prompts, they are among the first of every data set.
        chosen = set(held_out_order(prompts, seed)[: self.prompts])
        rows = sorted(
            (r for r in shards.read_rows(run / self.samples, Completion) if r.prompt_id in chosen),
            key=lambda row: (row.prompt_id, row.sample_index),
        )
        every = [
            Context(
                problem_id=row.prompt_id,
                prompt_token_ids=row.prompt_token_ids,
                output_token_ids=row.output_token_ids,
                sample_index=row.sample_index,
            )
            for row in rows
        ]
        contexts = [each for each in every if each.num_positions]
        problems = len({each.problem_id for each in contexts})
        if problems < MIN_PROBLEMS:
            raise UserError(
                f"{run / self.samples} answers {number_of(problems, 'held-out prompt')}, and an "
                f"interval needs {MIN_PROBLEMS}: raise train.heldout_samples"
            )
        return contexts


@dataclass(frozen=True, kw_only=True, eq=False)
class States(Step):
    """Last hidden states of a model at every position of the held-out answers."""

    verb = "probe"

    answers: HeldOutAnswers
    checkpoint: str | None
    """Directory of the model under the run; None for the base."""
    step: int | None = None
    """Exported step."""

    def choices(self) -> Mapping[str, object]:
        recipe = self.recipe
        chosen: dict[str, object] = {
            "prompts": self.answers.prompts,
            "seed": recipe.seed,
            "dtype": recipe.model.dtype,
        }
        return chosen if self.step is None else {**chosen, "step": self.step}

    def preview(self, run: Path) -> str:
        return "one forward pass over the held-out answers"

    def make(self, out: Path, context: RunContext) -> RowFacts:
        import numpy as np

        from ssd_ray.analysis import forward

        contexts = self.answers.contexts(context.run, self.recipe.seed)
        model = load_model(self, context)
        forward.check([model], contexts)
        groups = forward.batches(contexts)
        for number, batch in enumerate(
            counted(groups, context.progress, self.name, "batches", len(groups))
        ):
            path = out / _file(number)
            # A resumed step keeps the batches that it has.
            if path.exists():
                continue
            buffer = io.BytesIO()
            # Float32 holds bfloat16 exactly.
            np.save(buffer, forward.states(model, contexts, batch).float().cpu().numpy())
            files.write_atomic(path, buffer.getvalue())
        return RowFacts(rows=sum(each.num_positions for each in contexts))


def load_model(step: States, context: RunContext) -> ScoredModel:
    """Return the model of a step."""
    from ssd_ray.analysis.forward import ScoredModel

    directory = context.model if step.checkpoint is None else context.run / step.checkpoint
    if not directory.is_dir():
        raise UserError(
            f"{directory} is missing, since the student was trained without this checkpoint: "
            f"delete {directory.parent.parent} to train again"
        )
    name = "the base" if step.checkpoint is None else str(directory)
    return ScoredModel.load(directory, dtype=step.recipe.model.dtype, name=name)


@dataclass(frozen=True, kw_only=True, eq=False)
class CellProbes(Step):
    """Sums of a student's distributions at every decoding, for each problem."""

    verb = "probe"

    design: Design
    student: Student
    base: States
    own: States

    def choices(self) -> Mapping[str, object]:
        return {
            "sample": config.choices(_plain(self.student)),
            "decodings": [config.choices(each) for each in self.design.decodings],
        }

    def preview(self, run: Path) -> str:
        return "distributions at every decoding, from the states of both models"

    def make(self, out: Path, context: RunContext) -> RowFacts:
        from ssd_ray.analysis.sweep_measures import CellSums, Settings
        from ssd_ray.reporting.numbers import sweep_probes

        contexts = self.own.answers.contexts(context.run, self.recipe.seed)
        problems = sorted({each.problem_id for each in contexts})
        place = {name: number for number, name in enumerate(problems)}
        settings = Settings(
            training=_setting(_plain(self.student)),
            decodings=tuple(_setting(each) for each in self.design.decodings),
        )
        sums = CellSums.empty(len(problems), len(settings.decodings))
        for rows, base, student in self._logits(contexts, context):
            of_problem = rows.clone().apply_(lambda row: place[contexts[row].problem_id])
            sums.add(of_problem, base, student, settings)
        files.write_atomic(
            out / SUMS,
            sweep_probes.sums_text(
                sweep_probes.ProbeSums(
                    problems=tuple(problems),
                    positions=tuple(sums.positions.tolist()),
                    decoded=_tuples(sums.decoded.tolist()),
                    progress=_tuples(sums.progress.tolist()),
                )
            ),
        )
        return RowFacts(rows=int(sums.positions.sum()))

    def _logits(
        self, contexts: Sequence[Context], context: RunContext
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield number of the context and logits of both models, a bounded number at a time."""
        import numpy as np
        import torch

        from ssd_ray.analysis import forward

        models = [load_model(step, context) for step in (self.base, self.own)]
        groups = forward.batches(contexts)
        for number, batch in enumerate(
            counted(groups, context.progress, self.name, "batches", len(groups))
        ):
            rows = torch.tensor([row for row in batch for _ in range(contexts[row].num_positions)])
            states = [
                torch.from_numpy(np.load(context.run / step.name / _file(number)))
                for step in (self.base, self.own)
            ]
            # A chunk of logits is bounded, whatever the vocabulary.
            step = max(1, forward.CHUNK_ELEMENTS // models[0].vocabulary)
            for start in range(0, len(rows), step):
                part = slice(start, start + step)
                base, student = (
                    model.logits(each[part].to(model.device, model.dtype))
                    for model, each in zip(models, states, strict=True)
                )
                yield rows[part], base, student


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeSweep(Step):
    """The page of a sweep of distributions and its sweep.json."""

    verb = VERB

    design: Design

    def choices(self) -> Mapping[str, object]:
        return {
            "confidence": self.recipe.evaluate.confidence,
            "seed": self.recipe.seed,
            "fits": self.design.fits,
            "axes": {axis.field: list(axis.values) for axis in self.design.axes},
        }

    def preview(self, run: Path) -> str:
        return "sweep.html and sweep.json, of distributions"

    def check(self, context: RunContext) -> None:
        check_space(self, context)

    def make(self, out: Path, context: RunContext) -> SweepFacts:
        from ssd_ray.reporting import sweep as page
        from ssd_ray.reporting.numbers import sweep_document, sweep_probes

        sums = {
            step.name.partition("/")[2]: sweep_probes.read_sums(context.run / step.name / SUMS)
            for step in self.inputs
        }
        document = sweep_probes.of_probes(self.design, sums)
        files.write_atomic(out / "sweep.json", sweep_document.sweep_text(document))
        files.write_atomic(out / "sweep.html", page.sweep_page(document))
        return SweepFacts(
            cells=len(sums) * len(self.design.decodings),
            problems=len(next(iter(sums.values())).problems),
        )


def _tuples(value: Any) -> Any:
    """Return nested lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _file(number: int) -> str:
    return f"states-{number:05}.npy"


def _plain(student: Student) -> config.Decoding:
    sample = student.recipe.sample
    return config.Decoding(temperature=sample.temperature, top_k=sample.top_k, top_p=sample.top_p)


def _setting(decoding: config.Decoding) -> Setting:
    from ssd_ray.analysis.operator import Setting

    return Setting(decoding.temperature, decoding.top_k, decoding.top_p)
