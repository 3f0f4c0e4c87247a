"""Counts of rows: answers and verdicts of an arm, samples of a run.

One idea: shards stream past, and a few numbers of each answer are kept, never its text.
Contradictory rows (an answer without a verdict, a problem short of answers) are refused: they would
make every score wrong. Reads samples/, eval-prompts/, generations/<arm>/, verdicts/<arm>/ and
checkpoint/loss.jsonl; writes nothing.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ssd_ray.artifacts import manifests, shards
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
    """Cause of a rejection by the official grader, not by the program."""
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


@dataclass(frozen=True, kw_only=True)
class SampleCounts:
    """Lengths of the self-samples."""

    lengths: Mapping[str, Counter[int]]
    """Number of answers of each length in tokens, by finish reason."""

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(sum(lengths.values()) for lengths in self.lengths.values())


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of each optimizer step; one repeated after a crash counts once, as last written."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass
class _Gathered:
    """Answers of one problem on their way into a ProblemResult."""

    benchmark: str
    difficulty: str
    answers: dict[int, Answer] = field(default_factory=dict)


def load(path: Path, rows: int | None = None) -> Mapping[str, Any]:
    """Return the facts of a complete artifact after checking their rows against `rows`.

    Raises:
        UserError: it is not complete, or its manifest and its rows disagree.
    """
    manifests.load(path)
    recorded = manifests.read_manifest(path).facts
    stated = recorded.get("rows")
    if rows is not None and stated is not None and stated != rows:
        raise UserError(
            f"{path}: the manifest counts {stated} rows, the shards hold {rows}; "
            "delete that directory and run again"
        )
    return recorded


def facts(path: Path) -> Mapping[str, Any]:
    """Return the facts of a complete artifact after counting its rows against its manifest.

    Raises:
        UserError: it is not complete, or its manifest and its rows disagree.
    """
    return load(path, sum(1 for _ in shards.read_columns(path, "prompt_id")))


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
    load(path, len(problems))
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
    load(generations, len(answered))
    if partly:
        asked = _covered(verdicts, asked)
        answered = {key: answer for key, answer in answered.items() if key[0] in asked}
    gathered, rows = _graded(verdicts, answered)
    load(verdicts, rows)
    if answered:
        prompt_id, sample_index = min(answered)
        raise _mismatch(
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


def _mismatch(path: Path, problem: str) -> UserError:
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
            raise _mismatch(path, f"sample {sample_index} of {prompt_id!r} is there twice")
        if finish_reason not in FINISH_REASONS:
            raise _mismatch(path, f"unknown finish_reason {finish_reason!r} at {prompt_id!r}")
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
            raise _mismatch(
                path,
                f"the verdict on sample {index} of {prompt_id!r} has no answer, or is there twice",
            )
        if outcome not in OUTCOMES:
            raise _mismatch(path, f"unknown outcome {outcome!r} at {prompt_id!r}")
        problem = gathered.setdefault(prompt_id, _Gathered(source, difficulty))
        if (problem.benchmark, problem.difficulty) != (source, difficulty):
            raise _mismatch(path, f"{prompt_id!r} has more than one source or difficulty")
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
        raise _mismatch(
            path,
            f"its problems are not those of eval-prompts: {unmatched[0]!r} is only in {where} "
            f"(such problems: {len(unmatched)})",
        )
    for problem_id, problem in gathered.items():
        posed = asked[problem_id]
        if (problem.benchmark, problem.difficulty) != (posed.benchmark, posed.difficulty):
            raise _mismatch(
                path,
                f"{problem_id!r} is {problem.benchmark}/{problem.difficulty} here, "
                "not as in eval-prompts",
            )
        if len(problem.answers) != samples_per_problem:
            raise _mismatch(
                path,
                f"{problem_id!r} has {len(problem.answers)} answers, "
                f"not evaluate.samples_per_problem {samples_per_problem}",
            )


def sample_counts(path: Path) -> SampleCounts:
    """Count the lengths of the self-samples in a directory, by finish reason.

    Raises:
        UserError: it is not complete or its rows contradict its manifest.
    """
    lengths: dict[str, Counter[int]] = defaultdict(Counter)
    for token_ids, finish_reason in shards.read_columns(path, "output_token_ids", "finish_reason"):
        if finish_reason not in FINISH_REASONS:
            raise _mismatch(path, f"unknown finish_reason {finish_reason!r}")
        lengths[finish_reason][len(token_ids)] += 1
    counts = SampleCounts(lengths={reason: lengths[reason] for reason in FINISH_REASONS})
    load(path, counts.rows)
    return counts


def loss(checkpoint: Path) -> Loss | None:
    """Return the loss of each step from loss.jsonl of a checkpoint; None if not recorded.

    Raises:
        UserError: a line of the file is no JSON object with `step` and `loss`.
    """
    path = checkpoint / "loss.jsonl"
    if not path.exists():
        return None
    by_step: dict[int, float] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record: dict[str, Any] = json.loads(line)
            by_step[int(record["step"])] = float(record["loss"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number} is not a line with step and loss; "
                f"delete {path.parent} and train again"
            ) from error
    steps = tuple(sorted(by_step))
    return Loss(steps=steps, losses=tuple(by_step[step] for step in steps))
