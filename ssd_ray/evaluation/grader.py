"""One grader: a slice of completions comes in, one shard of verdicts goes to disk; whoever carries it starts it afresh.

Holds the benchmark's problems without their tests, a store to read those from, and a sandbox. Reads Completion and Problem
shards, writes Verdict shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray import artifacts, models, streaming
from ssd_ray.errors import UserError
from ssd_ray.evaluation.grading import Rules, grade_code, grade_completion, verdict
from ssd_ray.evaluation.outcomes import MAX_DETAIL, Graded, UngradableError
from ssd_ray.evaluation.sandbox import Sandbox
from ssd_ray.evaluation.store import TestStore
from ssd_ray.evaluation.strict import require_gradable
from ssd_ray.reasoning import TEXT_MARKS, ReasoningFormat
from ssd_ray.schema import Completion, Problem, Verdict, from_record


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a grader is told once: the benchmark artifact, the rules, the weakest sandbox allowed, where verdicts go.

    `reasoning` is how the answers mark their reasoning; `as_code` says that completions are programs, not answers with one.
    """

    benchmark: Path
    rules: Rules
    floor: str
    out: Path
    reasoning: ReasoningFormat = TEXT_MARKS
    as_code: bool = False


class Grader:
    """Grades slices, one after another, in the process that made it."""

    def __init__(self, order: Order) -> None:
        """Find out what this machine can wall in, and say so in `sandbox/` of the verdicts.

        Raises:
            UserError: the machine's sandbox is below the floor.
        """
        self._order = order
        self._problems = {problem.problem_id: problem for problem in artifacts.read_rows(order.benchmark, Problem)}
        self._store = TestStore(order.benchmark / "tests")
        self._parser = models.answer_parser(order.reasoning)
        self._sandbox = Sandbox(floor=order.floor)
        artifacts.write_atomic(order.out / "sandbox" / f"{self._sandbox.level}.json", json.dumps({"level": self._sandbox.level}))

    def grade(self, piece: Mapping[str, Any]) -> int:
        """Grade the completions of one slice and write their shard; returns how many.

        Raises:
            UserError: a completion of a problem that the benchmark does not have, or a problem that cannot be graded.
        """
        verdicts = []
        for record in streaming.read_slice(piece).to_pylist():
            completion = from_record(record, Completion)
            problem = self._problems.get(completion.prompt_id)
            if problem is None:
                raise UserError(f"a completion answers problem {completion.prompt_id!r}, which the benchmark does not have")
            verdicts.append(self._settled(self._store.get(problem), completion))
        name = streaming.shard_name([(row.prompt_id, row.sample_index) for row in verdicts])
        artifacts.write_shard(self._order.out, name, verdicts, Verdict)
        return len(verdicts)

    def _settled(self, problem: Problem, completion: Completion) -> Verdict:
        """Return the verdict, or one that blames no program where the problem cannot be graded."""
        try:
            return self._verdict(problem, completion)
        except UngradableError as error:
            graded = Graded(outcome="infrastructure_error", num_passed=0, time_s=0.0, detail=str(error)[:MAX_DETAIL])
            return verdict(problem, completion, None, graded, self._sandbox)

    def _verdict(self, problem: Problem, completion: Completion) -> Verdict:
        rules, sandbox = self._order.rules, self._sandbox
        if self._order.as_code and problem.kind != "numeric":
            require_gradable(problem)
            code = completion.text
            return verdict(problem, completion, code, grade_code(problem, code, rules, sandbox), sandbox)
        return grade_completion(problem, completion, rules, sandbox, self._parser)

    def close(self) -> None:
        """End its sandbox."""
        self._sandbox.close()
