"""A grader: it takes a slice of completions and writes one shard of verdicts.

- It holds the benchmark's problems without tests, a store of the tests, and a sandbox.
- It runs in any process: a Ray actor (`grader_actors.py`) or a worker of `ssd-ray grade`.

Reads Completion and Problem shards, writes Verdict shards.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import files, shards, slices
from ssd_ray.artifacts.slices import Slice
from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.judge import Rules, grade_code, grade_completion, verdict
from ssd_ray.evaluation.judging.outcomes import MAX_DETAIL, Result, UngradableError
from ssd_ray.evaluation.judging.strict import require_gradable
from ssd_ray.evaluation.sandbox import Sandbox
from ssd_ray.evaluation.tests_on_disk import KEPT_BYTES, TestStore
from ssd_ray.models import answers
from ssd_ray.reasoning import TEXT_MARKS, AnswerParser, ReasoningFormat
from ssd_ray.schema import Completion, Problem, Verdict, from_record

_NUM_BENCHMARKS = 2
"""Benchmarks in the memory of a process: one for answers, one for samples of training problems."""


@dataclass(frozen=True, kw_only=True)
class GradingSpec:
    """Inputs of a grader, the same for all of its slices."""

    benchmark: Path
    """The benchmark artifact."""
    rules: Rules
    floor: str
    """The weakest sandbox level allowed, `L0` to `L4`."""
    out: Path
    """The directory of verdicts."""
    reasoning: ReasoningFormat = TEXT_MARKS
    """Marks of reasoning in the answers."""
    as_code: bool = False
    """True if completions are bare programs."""


class Tools:
    """Tools shared by the graders of a process, because they cost memory or a start.

    - One sandbox per floor.
    - Parsers of answers, some with a tokenizer.
    - The last `num_benchmarks` benchmarks, with `KEPT_BYTES` of tests in all.
    """

    def __init__(self, num_benchmarks: int = 1) -> None:
        self._num_benchmarks = num_benchmarks
        self._sandboxes: dict[str, Sandbox] = {}
        self._parsers: list[tuple[ReasoningFormat, AnswerParser]] = []
        self._benchmarks: OrderedDict[Path, tuple[dict[str, Problem], TestStore]] = OrderedDict()

    def sandbox(self, floor: str) -> Sandbox:
        """Return the sandbox of a floor, started once.

        Raises:
            UserError: the machine's sandbox is below the floor.
        """
        if floor not in self._sandboxes:
            self._sandboxes[floor] = Sandbox(floor=floor)
        return self._sandboxes[floor]

    def parser(self, reasoning: ReasoningFormat) -> AnswerParser:
        """Return the parser of answers in a format, made once for equal formats."""
        # A format holds mappings, so it has no hash to look it up by.
        parser = next((parser for known, parser in self._parsers if known == reasoning), None)
        if parser is None:
            parser = answers.answer_parser(reasoning)
            self._parsers.append((reasoning, parser))
        return parser

    def benchmark(self, directory: Path) -> tuple[dict[str, Problem], TestStore]:
        """Return a benchmark's problems by id, without tests, and the store of their tests."""
        if directory not in self._benchmarks:
            problems = {row.problem_id: row for row in shards.read_rows(directory, Problem)}
            store = TestStore(directory / "tests", KEPT_BYTES // self._num_benchmarks)
            self._benchmarks[directory] = problems, store
        self._benchmarks.move_to_end(directory)
        while len(self._benchmarks) > self._num_benchmarks:
            self._benchmarks.popitem(last=False)
        return self._benchmarks[directory]

    def close(self) -> None:
        """Stop the sandboxes."""
        for sandbox in self._sandboxes.values():
            sandbox.close()
        self._sandboxes.clear()


class Grader:
    """Grade slices, one at a time, in the calling process."""

    def __init__(self, spec: GradingSpec, tools: Tools | None = None) -> None:
        """Start the sandbox and record its level in `sandbox/` of the verdicts.

        Raises:
            UserError: the machine's sandbox is below the floor.
        """
        self._spec = spec
        self._tools = Tools() if tools is None else tools
        # Read now, so that a damaged benchmark shows before the first slice.
        self._tools.benchmark(spec.benchmark)
        self._parser = self._tools.parser(spec.reasoning)
        self._sandbox = self._tools.sandbox(spec.floor)
        files.write_atomic(
            spec.out / "sandbox" / f"{self._sandbox.level}.json",
            json.dumps({"level": self._sandbox.level}),
        )

    def grade(self, piece: Slice) -> int:
        """Grade the completions of one slice, write their shard and return their number.

        Raises:
            UserError: a completion answers an unknown problem, or a problem cannot be graded.
        """
        verdicts = []
        problems, store = self._tools.benchmark(self._spec.benchmark)
        for record in slices.read_slice(piece).to_pylist():
            completion = from_record(record, Completion)
            problem = problems.get(completion.prompt_id)
            if problem is None:
                raise UserError(
                    f"a completion answers problem {completion.prompt_id!r}, "
                    "which the benchmark does not have"
                )
            verdicts.append(self._settled(store.get(problem), completion))
        # The name follows from the keys: a slice that is graded twice replaces its own shard.
        name = slices.shard_name([(row.prompt_id, row.sample_index) for row in verdicts])
        shards.write_shard(self._spec.out, name, verdicts, Verdict)
        return len(verdicts)

    def _settled(self, problem: Problem, completion: Completion) -> Verdict:
        """Return the verdict, or an `infrastructure_error` if the problem cannot be graded.

        No program is blamed for such a problem: every program would fail.
        """
        try:
            return self._verdict(problem, completion)
        except UngradableError as error:
            result = Result(outcome="infrastructure_error", detail=str(error)[:MAX_DETAIL])
            return verdict(problem, completion, None, result, self._sandbox)

    def _verdict(self, problem: Problem, completion: Completion) -> Verdict:
        rules = self._spec.rules
        sandbox = self._sandbox
        if self._spec.as_code and problem.kind != "numeric":
            require_gradable(problem)
            code = completion.text
            return verdict(
                problem, completion, code, grade_code(problem, code, rules, sandbox), sandbox
            )
        return grade_completion(problem, completion, rules, sandbox, self._parser)

    def close(self) -> None:
        """Stop the sandboxes."""
        self._tools.close()


class Graders:
    """The graders of one process for any number of steps, which share their tools."""

    def __init__(self) -> None:
        self._tools = Tools(_NUM_BENCHMARKS)
        self._by_directory: dict[Path, Grader] = {}

    def grade(self, spec: GradingSpec, piece: Slice) -> int:
        """Grade a slice of a step; see `Grader.grade`."""
        if spec.out not in self._by_directory:
            self._by_directory[spec.out] = Grader(spec, self._tools)
        return self._by_directory[spec.out].grade(piece)

    def close(self) -> None:
        """Stop the sandboxes."""
        self._tools.close()
