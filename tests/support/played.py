"""A recipe's own steps; those for GPUs or graders make instant deterministic rows.

Benchmark, prompts, data set and report are real, but figures are blank. `Played` sets the facts
outside of a recipe: hardware, and failing graders.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import cluster, models, recipes
from ssd_ray.artifacts import files, shards
from ssd_ray.artifacts.facts import (
    AnswerFacts,
    CheckpointFacts,
    Facts,
    Isolation,
    VerdictFacts,
)
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.grading import Grade
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.sampling import Generations, Samples
from ssd_ray.pipeline.step import when_complete
from ssd_ray.pipeline.training import Checkpoint
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Completion, Example, Prompt, Verdict
from tests.support.blank_figures import leave_blank
from tests.support.staged import die_at

CHOICES = (
    "model.source=someone/played",
    "model.revision=one",
    "model.max_model_len=4096",
    "prompts.limit=5",
    "prepare.policies={stub: keep, no_code: keep, duplicate: keep, loop: keep, empty: keep}",
    "evaluate.benchmarks=[builtin]",
    "evaluate.limit=4",
    "evaluate.controls=[accepted]",
    "evaluate.bootstrap_samples=100",
    "train.heldout_samples=0",
)


class Played:
    """The machine of a played run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
        self.failing = False
        self.hardware = ""
        self.made: list[str] = []
        monkeypatch.setattr(cluster, "connected", lambda *_: contextlib.nullcontext())
        monkeypatch.setattr("ssd_ray.pipeline.cluster_room.check_cluster", lambda *_, **__: None)
        monkeypatch.setattr(models, "fetch", lambda _: model)
        leave_blank(monkeypatch)
        acts = {
            Samples: self.samples,
            Generations: self.generations,
            Checkpoint: self.checkpoint,
            Grade: self.verdicts,
        }
        for kind, act in acts.items():
            monkeypatch.setattr(kind, "make", _method(act))
            monkeypatch.setattr(kind, "check", lambda *_: None)

    def run(self, out: Path, *chosen: str) -> Run:
        """Return a run of the quick start's recipe, made small."""
        return Run(recipes.load("quickstart", [*CHOICES, *chosen]), out, LineProgress())

    def samples(self, step: Samples, out: Path, context: RunContext) -> Facts:
        """Write one answer per prompt."""
        return self._answers(
            context.run / "prompts", step.name, when_complete(context, *step.after), out
        )

    def generations(self, step: Generations, out: Path, context: RunContext) -> Facts:
        """Write one answer per problem; another model answers differently."""
        trained = (
            step.checkpoint
            and (context.run / step.checkpoint / "model.safetensors").read_bytes().hex()
        )
        prompts, ended = context.run / "eval-prompts", when_complete(context, step.inputs[0])
        return self._answers(prompts, f"{step.name} {trained or ''}", ended, out)

    def _answers(self, prompts: Path, seed: str, ended: Callable[[], bool], out: Path) -> Facts:
        self.made.append(out.relative_to(prompts.parent).as_posix())
        _wait(ended)
        rows = [self._answer(prompt, seed) for prompt in shards.read_rows(prompts, Prompt)]
        for number, part in enumerate(
            (rows[:2], rows[2:])
        ):  # existing shards stay, as in a resumed stage
            if not (out / f"part-{number:05}.parquet").exists():
                shards.write_shard(out, f"part-{number:05}", part, Completion)
        tokens = sum(len(row.output_token_ids) for row in rows)
        return AnswerFacts(
            rows=len(rows),
            prompt_tokens=sum(len(row.prompt_token_ids) for row in rows),
            output_tokens=tokens,
            finish_reasons={"stop": len(rows)},
            engine_losses=0,
        )

    def _answer(self, prompt: Prompt, seed: str) -> Completion:
        number = hashlib.sha256(f"{seed} {self.hardware} {prompt.prompt_id}".encode()).digest()
        return Completion(
            prompt_id=prompt.prompt_id,
            sample_index=0,
            seed=1,
            source=prompt.source,
            difficulty=prompt.difficulty,
            prompt_token_ids=prompt.token_ids,
            output_token_ids=tuple(3 + byte for byte in number[:6]),
            text=f"```python\nprint({int.from_bytes(number[:2], 'big')})\n```",
            finish_reason="stop",
        )

    def verdicts(self, step: Grade, out: Path, context: RunContext) -> Facts:
        """Accept every other program; leave the first ones open while graders fail.

        Times always differ.
        """
        self.made.append(step.name)
        _wait(when_complete(context, step.inputs[-1]))
        answers = shards.read_rows(context.run / step.answers, Completion)
        graded = [self._verdict(row, number) for number, row in enumerate(answers)]
        for number, part in enumerate((graded[:2], graded[2:])):
            path = out / f"part-{number:05}.parquet"
            spoilt = path.exists() and next(shards.read_columns(out, "outcome")) == (
                "infrastructure_error",
            )
            if not path.exists() or (spoilt and not number):
                shards.write_shard(out, path.stem, part, Verdict)
        outcomes = Counter(outcome for (outcome,) in shards.read_columns(out, "outcome"))
        return VerdictFacts(
            rows=outcomes.total(),
            outcomes=dict(outcomes),
            profile=step.profile,
            sandbox_level="L1",
            infrastructure_errors=outcomes["infrastructure_error"],
            isolation=Isolation(level="L1", network=True),
        )

    def _verdict(self, row: Completion, number: int) -> Verdict:
        right = number % 3 == 0 or row.output_token_ids[0] % 2 == 0
        failed = self.failing and number == 0
        return Verdict(
            prompt_id=row.prompt_id,
            sample_index=0,
            source=row.source,
            difficulty=row.difficulty,
            outcome="infrastructure_error" if failed else "accepted" if right else "wrong_answer",
            num_tests=1,
            num_passed=int(right),
            time_s=time.monotonic() % 1,
            code=row.text,
            detail="",
        )

    def checkpoint(self, step: Checkpoint, out: Path, context: RunContext) -> Facts:
        """Write weights derived from the sequences, as training does: facts last."""
        self.made.append(step.name)
        if not (out / "training.json").exists():
            text = repr(
                [
                    row.input_ids
                    for row in shards.read_rows(context.run / step.branch.dataset, Example)
                ]
            )
            weights = hashlib.sha256(text.encode()).digest()
            lines = [{"step": 1, "loss": 1.0, "learning_rate": 1e-5, "seconds": 1.0, "tokens": 9}]
            files.write_atomic(
                out / "loss.jsonl", "".join(json.dumps(line) + "\n" for line in lines)
            )
            files.write_atomic(out / "model.safetensors", weights)
            facts = CheckpointFacts(
                steps=1,
                first_loss=1.0,
                final_loss=0.5 + weights[0] / 512,
                response_tokens=9,
                tokens=9,
                epochs=1.0,
                num_workers=1,
                parameters=9,
                trained_parameters=9,
            )
            files.write_atomic(out / "training.json", json.dumps(facts.document()))
        path = out / "training.json"
        return CheckpointFacts.parse(files.read_json(path), str(path))


def play(out: str, model: str, number: str) -> None:
    """Run in a process killed at its file operation `number`."""
    run = Played(pytest.MonkeyPatch(), Path(model)).run(Path(out))
    die_at(int(number))
    run.make()


def _method(act: Callable[..., Facts]) -> Callable[..., Facts]:
    """Return a function that takes the step first, as a method does."""
    return lambda step, out, context: act(step, out, context)


def _wait(ended: Callable[[], bool]) -> None:
    while not ended():
        time.sleep(0.002)


def rows(out: Path, *names: str) -> Iterator[Any]:
    """Return rows of artifacts without measured times."""
    kinds = {
        "samples": Completion,
        "generations": Completion,
        "dataset": Example,
        "sample-verdicts": Verdict,
        "verdicts": Verdict,
    }
    for name in names:
        for row in shards.read_rows(
            out / name, kinds[name.partition("/")[0].removesuffix("-accepted")]
        ):
            yield {**vars(row), "time_s": 0}


SCORES = os.path.join("report", "scores.json")
