"""One grader: a slice of completions comes in, one shard of verdicts goes to disk; whoever carries it starts it afresh.

Holds the benchmark's problems without their tests, a store to read those from, and a sandbox. Reads Completion and Problem
shards, writes Verdict shards.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files, shards, slices
from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.judge import Rules, grade_code, grade_completion, verdict
from ssd_ray.evaluation.judging.outcomes import MAX_DETAIL, Graded, UngradableError
from ssd_ray.evaluation.judging.strict import require_gradable
from ssd_ray.evaluation.sandbox import Sandbox
from ssd_ray.evaluation.tests_on_disk import KEPT_BYTES, TestStore
from ssd_ray.models import answers
from ssd_ray.reasoning import TEXT_MARKS, AnswerParser, ReasoningFormat
from ssd_ray.schema import Completion, Problem, Verdict, from_record


@dataclass(frozen=True, kw_only=True)
class GradingSpec:
    """What a grader is told once: the benchmark artifact, the rules, the weakest sandbox allowed, where verdicts go.

    `reasoning` is how the answers mark their reasoning; `as_code` says that completions are programs, not answers with one.
    """

    benchmark: Path
    rules: Rules
    floor: str
    out: Path
    reasoning: ReasoningFormat = TEXT_MARKS
    as_code: bool = False


class Tools:
    """Share what costs memory or a start between the graders of a process.

    These are sandboxes, parsers of answers, which may hold a tokenizer, and benchmarks.

    The last `num_benchmarks` benchmarks are kept, with `KEPT_BYTES` of tests of all of them.
    """

    def __init__(self, num_benchmarks: int = 1) -> None:
        self._num_benchmarks = num_benchmarks
        self._sandboxes: dict[str, Sandbox] = {}
        self._parsers: list[tuple[ReasoningFormat, AnswerParser]] = []
        self._benchmarks: OrderedDict[Path, tuple[dict[str, Problem], TestStore]] = OrderedDict()

    def sandbox(self, floor: str) -> Sandbox:
        """Return the sandbox of a floor.

        Raises:
            UserError: the machine's sandbox is below the floor.
        """
        if floor not in self._sandboxes:
            self._sandboxes[floor] = Sandbox(floor=floor)
        return self._sandboxes[floor]

    def parser(self, reasoning: ReasoningFormat) -> AnswerParser:
        """Return the parser of answers in a format, made once for equal ones."""
        parser = next((parser for known, parser in self._parsers if known == reasoning), None)
        if parser is None:
            parser = answers.answer_parser(reasoning)
            self._parsers.append((reasoning, parser))
        return parser

    def benchmark(self, directory: Path) -> tuple[dict[str, Problem], TestStore]:
        """Return a benchmark's problems by id, without their tests, and the store of these."""
        if directory not in self._benchmarks:
            problems = {row.problem_id: row for row in shards.read_rows(directory, Problem)}
            store = TestStore(directory / "tests", KEPT_BYTES // self._num_benchmarks)
            self._benchmarks[directory] = problems, store
        self._benchmarks.move_to_end(directory)
        while len(self._benchmarks) > self._num_benchmarks:
            self._benchmarks.popitem(last=False)
        return self._benchmarks[directory]

    def close(self) -> None:
        """End the sandboxes."""
        for sandbox in self._sandboxes.values():
            sandbox.close()
        self._sandboxes.clear()


class Grader:
    """Grades slices, one after another, in the process that made it."""

    def __init__(self, order: GradingSpec, tools: Tools | None = None) -> None:
        """Find out what this machine can wall in, and say so in `sandbox/` of the verdicts.

        Raises:
            UserError: the machine's sandbox is below the floor.
        """
        self._order = order
        self._tools = Tools() if tools is None else tools
        self._tools.benchmark(order.benchmark)
        self._parser = self._tools.parser(order.reasoning)
        self._sandbox = self._tools.sandbox(order.floor)
        files.write_atomic(
            order.out / "sandbox" / f"{self._sandbox.level}.json",
            json.dumps({"level": self._sandbox.level}),
        )

    def grade(self, piece: Mapping[str, Any]) -> int:
        """Grade the completions of one slice and write their shard; returns how many.

        Raises:
            UserError: a completion of a problem that the benchmark does not have, or a problem that cannot be graded.
        """
        verdicts = []
        problems, store = self._tools.benchmark(self._order.benchmark)
        for record in slices.read_slice(piece).to_pylist():
            completion = from_record(record, Completion)
            problem = problems.get(completion.prompt_id)
            if problem is None:
                raise UserError(
                    f"a completion answers problem {completion.prompt_id!r}, which the benchmark does not have"
                )
            verdicts.append(self._settled(store.get(problem), completion))
        name = slices.shard_name([(row.prompt_id, row.sample_index) for row in verdicts])
        shards.write_shard(self._order.out, name, verdicts, Verdict)
        return len(verdicts)

    def _settled(self, problem: Problem, completion: Completion) -> Verdict:
        """Return the verdict, or one that blames no program where the problem cannot be graded."""
        try:
            return self._verdict(problem, completion)
        except UngradableError as error:
            graded = Graded(
                outcome="infrastructure_error",
                num_passed=0,
                time_s=0.0,
                detail=str(error)[:MAX_DETAIL],
            )
            return verdict(problem, completion, None, graded, self._sandbox)

    def _verdict(self, problem: Problem, completion: Completion) -> Verdict:
        rules, sandbox = self._order.rules, self._sandbox
        if self._order.as_code and problem.kind != "numeric":
            require_gradable(problem)
            code = completion.text
            return verdict(
                problem, completion, code, grade_code(problem, code, rules, sandbox), sandbox
            )
        return grade_completion(problem, completion, rules, sandbox, self._parser)

    def close(self) -> None:
        """End its sandbox."""
        self._tools.close()
