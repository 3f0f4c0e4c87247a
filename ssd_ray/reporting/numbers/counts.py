"""Counts of rows: answers and verdicts of each arm, problem by problem.

Shards are read one by one. A few numbers of each answer are kept, never its text.
Contradictory rows (an answer without a verdict, a problem short of answers) are refused: they would
make every score wrong. Reads eval-prompts/, generations/<arm>/ and verdicts/<arm>/; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ssd_ray.artifacts import manifests, shards
from ssd_ray.artifacts.facts import FactsT, RowFacts
from ssd_ray.errors import UserError
from ssd_ray.lcb_official import reason_of
from ssd_ray.schema import FinishReason, Outcome

OUTCOMES: tuple[str, ...] = get_args(Outcome)
FINISH_REASONS: tuple[str, ...] = get_args(FinishReason)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One graded answer, without its text."""

    sample_index: int
    tokens: int
    finish_reason: str
    outcome: str
    outcome_base: str = ""
    """On EvalPlus's base tests alone; empty for other benchmarks, and if none was run."""
    reason: str = ""
    """Effect of the official grader that made it reject the program; empty without one."""
    thought_ended: bool | None = None
    """True if its reasoning ended; None without reasoning."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One problem posed to every arm."""

    benchmark: str
    difficulty: str


@dataclass(frozen=True, kw_only=True)
class ProblemResult:
    """The answers of one arm to one problem, in the order of their sample index."""

    problem_id: str
    benchmark: str
    difficulty: str
    answers: tuple[Answer, ...]

    @property
    def graded(self) -> int:
        """Number of graded answers: an infrastructure error says nothing about an answer."""
        return sum(answer.outcome != "infrastructure_error" for answer in self.answers)

    @property
    def accepted(self) -> int:
        """Number of answers with every test passed."""
        return sum(answer.outcome == "accepted" for answer in self.answers)

    @property
    def accepted_base(self) -> int:
        """Number of graded answers with all of EvalPlus's base tests passed."""
        return sum(
            answer.outcome_base == "accepted"
            for answer in self.answers
            if answer.outcome != "infrastructure_error"
        )


Results = Mapping[str, Mapping[str, ProblemResult]]
"""Results by arm and problem id."""


@dataclass
class _Gathered:
    """Answers of one problem, collected for its ProblemResult."""

    benchmark: str
    difficulty: str
    answers: dict[int, Answer] = field(default_factory=dict)


def check_rows(path: Path, rows: int) -> None:
    """Check the rows in the manifest of a complete artifact against `rows`.

    Raises:
        UserError: it is not complete, or its manifest and its rows disagree.
    """
    stated = manifests.load_facts(path, RowFacts).rows
    if stated != rows:
        raise mismatch(path, f"the manifest counts {stated} rows, the shards hold {rows}")


def checked_facts(path: Path, kind: type[FactsT]) -> FactsT:
    """Return the facts of a complete artifact after counting its rows against its manifest.

    Raises:
        UserError: it is not complete, or its manifest and its rows disagree.
    """
    check_rows(path, sum(1 for _ in shards.read_columns(path, "prompt_id")))
    return manifests.load_facts(path, kind)


def problems_asked(run: Path) -> dict[str, Asked]:
    """Return the problems posed to every arm, by id.

    Raises:
        UserError: eval-prompts/ is not complete or names a problem twice.
    """
    path = run / "eval-prompts"
    problems: dict[str, Asked] = {}
    for problem_id, source, difficulty in shards.read_columns(
        path, "prompt_id", "source", "difficulty"
    ):
        # A repeated problem would count double in every score.
        if problem_id in problems:
            raise UserError(
                f"{path} holds the problem {problem_id!r} twice; "
                "delete that directory and run again"
            )
        problems[problem_id] = Asked(benchmark=source, difficulty=difficulty)
    check_rows(path, len(problems))
    return problems


def arm_results(
    generations: Path,
    verdicts: Path,
    asked: Mapping[str, Asked],
    samples_per_problem: int,
    *,
    partly: bool = False,
) -> dict[str, ProblemResult]:
    """Return the answers and verdicts of an arm, by problem id in sorted order.

    Args:
        generations: answers of the arm.
        verdicts: their verdicts.
        asked: the problems posed to every arm.
        samples_per_problem: answers that each problem must have.
        partly: allow verdicts to leave out benchmarks, as a second profile may.

    Raises:
        UserError: answers and verdicts do not match one to one, the problems are not those of
            `asked`, or a problem has another number of answers than `samples_per_problem`.
    """
    answered = _answered(generations)
    check_rows(generations, len(answered))
    if partly:
        asked = _covered(verdicts, asked)
        answered = {key: answer for key, answer in answered.items() if key[0] in asked}
    gathered, rows = _graded(verdicts, answered)
    check_rows(verdicts, rows)
    if answered:
        prompt_id, sample_index = min(answered)
        raise mismatch(
            verdicts,
            f"answers without a verdict: {len(answered)}, "
            f"such as {prompt_id!r} sample {sample_index}",
        )
    _check_problems(verdicts, gathered, asked, samples_per_problem)
    return {
        problem_id: ProblemResult(
            problem_id=problem_id,
            benchmark=problem.benchmark,
            difficulty=problem.difficulty,
            answers=tuple(problem.answers[index] for index in sorted(problem.answers)),
        )
        for problem_id, problem in sorted(gathered.items())
    }


def _covered(verdicts: Path, asked: Mapping[str, Asked]) -> dict[str, Asked]:
    """Return the problems of benchmarks with verdicts; those of others are not missing."""
    covered = {source for (source,) in shards.read_columns(verdicts, "source")}
    return {
        problem_id: problem for problem_id, problem in asked.items() if problem.benchmark in covered
    }


def mismatch(path: Path, problem: str) -> UserError:
    """Return the error for rows of a directory that contradict each other or others."""
    return UserError(f"{path}: {problem}; delete that directory and run again")


_Answered = tuple[int, str]
"""Length in tokens, and finish reason."""
# The programs of verdicts are not read: they are large, and no count needs them.
_VERDICT_COLUMNS = (
    "prompt_id",
    "sample_index",
    "source",
    "difficulty",
    "outcome",
    "outcome_base",
    "reasoning",
    "detail",
)


def _answered(path: Path) -> dict[tuple[str, int], _Answered]:
    """Return length and finish reason of each answer, by prompt id and sample index."""
    answers: dict[tuple[str, int], _Answered] = {}
    columns = ("prompt_id", "sample_index", "output_token_ids", "finish_reason")
    for prompt_id, sample_index, token_ids, finish_reason in shards.read_columns(path, *columns):
        if (prompt_id, sample_index) in answers:
            raise mismatch(path, f"sample {sample_index} of {prompt_id!r} is there twice")
        if finish_reason not in FINISH_REASONS:
            raise mismatch(path, f"unknown finish_reason {finish_reason!r} at {prompt_id!r}")
        answers[prompt_id, sample_index] = (len(token_ids), finish_reason)
    return answers


def _graded(
    path: Path, answered: dict[tuple[str, int], _Answered]
) -> tuple[dict[str, _Gathered], int]:
    """Join verdicts with their answers, and return them with the number of verdicts.

    Joined answers are removed from `answered`: the rest has no verdict.
    """
    gathered: dict[str, _Gathered] = {}
    for (
        prompt_id,
        index,
        source,
        difficulty,
        outcome,
        outcome_base,
        reasoning,
        detail,
    ) in shards.read_columns(path, *_VERDICT_COLUMNS):
        # A second verdict on an answer finds none either: it was removed with the first.
        answer = answered.pop((prompt_id, index), None)
        if answer is None:
            raise mismatch(
                path,
                f"the verdict on sample {index} of {prompt_id!r} has no answer, or is there twice",
            )
        if outcome not in OUTCOMES:
            raise mismatch(path, f"unknown outcome {outcome!r} at {prompt_id!r}")
        problem = gathered.setdefault(prompt_id, _Gathered(source, difficulty))
        if (problem.benchmark, problem.difficulty) != (source, difficulty):
            raise mismatch(path, f"{prompt_id!r} has more than one source or difficulty")
        tokens, finish_reason = answer
        problem.answers[index] = Answer(
            sample_index=index,
            tokens=tokens,
            finish_reason=finish_reason,
            outcome=outcome,
            outcome_base=outcome_base,
            reason=reason_of(detail),
            thought_ended={"ended": True, "unfinished": False}.get(reasoning),
        )
    return gathered, sum(len(problem.answers) for problem in gathered.values())


def _check_problems(
    path: Path,
    gathered: Mapping[str, _Gathered],
    asked: Mapping[str, Asked],
    samples_per_problem: int,
) -> None:
    unmatched = sorted(gathered.keys() ^ asked.keys())
    if unmatched:
        where = "verdicts" if unmatched[0] in gathered else "eval-prompts"
        raise mismatch(
            path,
            f"its problems are not those of eval-prompts: {unmatched[0]!r} is only in {where} "
            f"(such problems: {len(unmatched)})",
        )
    for problem_id, problem in gathered.items():
        posed = asked[problem_id]
        if (problem.benchmark, problem.difficulty) != (posed.benchmark, posed.difficulty):
            raise mismatch(
                path,
                f"{problem_id!r} is {problem.benchmark}/{problem.difficulty} here, "
                "not as in eval-prompts",
            )
        if len(problem.answers) != samples_per_problem:
            raise mismatch(
                path,
                f"{problem_id!r} has {len(problem.answers)} answers, "
                f"not evaluate.samples_per_problem {samples_per_problem}",
            )
