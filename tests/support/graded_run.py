"""A run directory with a benchmark, prompts and answers, as the stages of a run write them.

The answers come in units with a ledger. `python graded_run.py RUN` is a driver with graders apart:
it waits for the verdicts of RUN and seals them.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from ssd_ray.artifacts import audit, lineage, manifests, shards
from ssd_ray.artifacts.facts import AnswerFacts, VerdictFacts
from ssd_ray.artifacts.identity import Identity
from ssd_ray.artifacts.ledger import Ledger, Span
from ssd_ray.artifacts.problem_facts import BenchmarkFacts, EvalPromptFacts
from ssd_ray.evaluation import apart, orders
from ssd_ray.evaluation.following import Answers
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.orders import Order
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.evaluation.tests_on_disk import store_problems
from ssd_ray.inference.vllm.engine import Answer
from ssd_ray.inference.work.shards import Drawn, write_completions
from ssd_ray.progress import LineProgress
from ssd_ray.reasoning import TEXT_MARKS
from ssd_ray.schema import Problem, Prompt, Test, Verdict

SOURCE = "eval-prompts-00000000"
RULES = Rules(limits=Limits(time_s=20, memory_mib=256, output_kib=64))
CODES = ("print(2 * int(input()))", "print(int(input()))", "1 / 0", "print(")
VERDICTS = Identity(stage="verdicts", choices={"profile": "strict"})
GENERATIONS = Identity(stage="generations", choices={"arm": "base"})


class GradedRun:
    """A run with `problems` problems and `samples` answers to each, drawn on request."""

    def __init__(self, run: Path, *, problems: int = 4, samples: int = 8, pause_s: float = 0):
        self.run = run
        self.samples = samples
        self.total = problems * samples
        self._pause_s = pause_s
        self.generations = run / "generations" / "base"
        self.verdicts = run / "verdicts" / "base"
        self._prompts = self._render(problems)
        manifests.claim(self.generations, GENERATIONS)

    def _render(self, num_problems: int) -> list[Prompt]:
        tests = tuple(Test(input=f"{number}\n", output=f"{2 * number}\n") for number in (3, 4))
        problems = [
            Problem(problem_id=f"double/{number}", source="test", statement="Double.", tests=tests)
            for number in range(num_problems)
        ]
        prompts = [
            Prompt(
                prompt_id=problem.problem_id,
                source=problem.source,
                difficulty=problem.difficulty,
                text="Double.",
                token_ids=(1, 2),
            )
            for problem in problems
        ]
        place = self.run / "benchmark"
        identity = Identity(stage="benchmark", choices={})
        manifests.claim(place, identity)
        stored = list(store_problems(problems, place / "tests", "L1", []))
        shards.write_shard(place, "problems", stored, Problem)
        manifests.seal(place, identity, BenchmarkFacts(rows=num_problems))
        place = self.run / "eval-prompts"
        identity = Identity(stage="eval-prompts", choices={})
        manifests.claim(place, identity)
        shards.write_shard(place, SOURCE, prompts, Prompt)
        manifests.seal(place, identity, EvalPromptFacts(rows=num_problems))
        return prompts

    def draw(self, start: int, stop: int) -> Path:
        """Write the answers of some positions as one unit, and return its shard."""
        drawn = [self._drawn(position) for position in range(start, stop)]
        span = Span(SOURCE, start, stop)
        ledger = Ledger(self.generations, "engine")
        write_completions(ledger, span, drawn, ())
        ledger.close()
        return self.generations / f"{span.name}.parquet"

    def _drawn(self, position: int) -> Drawn:
        code = CODES[position % len(CODES)]
        if self._pause_s:
            code = f"import time\ntime.sleep({self._pause_s})\n{code}"
        return Drawn(
            prompt=self._prompts[position // self.samples],
            sample_index=position % self.samples,
            seed=position,
            answer=Answer(
                output_token_ids=(3,), text=f"```python\n{code}\n```", finish_reason="stop"
            ),
        )

    def finish(self) -> None:
        """Seal the answers."""
        drawn = audit.audit(self.generations)
        manifests.seal(self.generations, GENERATIONS, AnswerFacts.of(drawn, engine_losses=0))

    @property
    def order(self) -> Order:
        """The order for the verdicts on these answers."""
        return order_of(self.run, total=self.total, samples=self.samples)

    def publish(self) -> Order:
        """Announce and publish the order, as the run does."""
        orders.announce(self.run, {self.order.name: self.order.fingerprint})
        return orders.publish(self.run, self.order)

    def answers(self) -> Answers:
        """The answers, which end with their manifest."""
        return Answers(
            directory=self.generations,
            total=self.total,
            ended=lambda: (self.generations / "manifest.json").exists(),
        )


def order_of(run: Path, *, total: int, samples: int) -> Order:
    """Return the order for the verdicts of a run."""
    problems = lineage.source(run / "benchmark")
    assert problems is not None
    return Order(
        name="verdicts/base",
        fingerprint=VERDICTS.fingerprint,
        answers="generations/base",
        claim=lineage.claim_of(run / "generations" / "base") or "",
        problems="benchmark",
        contents=problems.files,
        prompts="eval-prompts",
        samples_per_prompt=samples,
        total=total,
        rules=RULES,
        floor="L1",
        reasoning=TEXT_MARKS,
    )


def collect(run: Path) -> VerdictFacts:
    """Wait for the verdicts of a run's published order and seal them, as the run does."""
    order = orders.read(run, "verdicts/base")
    assert order is not None
    answers = Answers(
        directory=run / order.answers,
        total=order.total,
        ended=lambda: (run / order.answers / "manifest.json").exists(),
    )
    made: list[VerdictFacts] = []

    def act(out: Path) -> VerdictFacts:
        job = apart.Collection(order=order, run=run, out=out)
        made.append(apart.collect(job, answers, LineProgress()))
        return made[0]

    manifests.make(run / order.name, VERDICTS, act)
    return made[0]


def settled(out: Path) -> dict[str, bytes]:
    """Return the bytes of each shard of verdicts, written again with measures at 0."""
    result = {}
    for path in shards.shard_paths(out):
        table = shards.read_table_of(path, Verdict)
        rows = [
            dataclasses.replace(row, time_s=0.0, peak_bytes=0)
            for row in shards.from_table(table, Verdict)
        ]
        result[path.name] = shards.write_shard(
            out.with_name(f"{out.name}-settled"), path.stem, rows, Verdict
        ).read_bytes()
    return result


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
