"""Counting rows: what the answers and verdicts of an arm, and the samples of a run, add up to.

One idea: shards stream past, and what stays is a few numbers for each answer, never its text. Rows that contradict each
other (an answer without a verdict, a problem short of answers) are refused, because every score would be wrong by them.
Reads samples/, eval-prompts/, generations/<arm>/, verdicts/<arm>/ and checkpoint/loss.jsonl; writes nothing.
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
    """On EvalPlus's base tests alone; empty elsewhere, and where none was run."""
    reason: str = ""
    """What in a rejection is owed to the official grader that a profile follows, and not to the program."""
    thought_ended: bool | None = None
    """Whether its reasoning was ended; None for an answer without one."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One problem that every arm was to answer."""

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
        """Answers that were graded: an infrastructure error says nothing about an answer."""
        return sum(answer.outcome != "infrastructure_error" for answer in self.answers)

    @property
    def accepted(self) -> int:
        """Answers that passed every test."""
        return sum(answer.outcome == "accepted" for answer in self.answers)

    @property
    def accepted_base(self) -> int:
        """Graded answers that passed EvalPlus's base tests, whatever came after."""
        return sum(
            answer.outcome_base == "accepted"
            for answer in self.answers
            if answer.outcome != "infrastructure_error"
        )


@dataclass(frozen=True, kw_only=True)
class SampleCounts:
    """The self-samples: how many answers have each length in tokens, by finish reason."""

    lengths: Mapping[str, Counter[int]]

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(sum(lengths.values()) for lengths in self.lengths.values())


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of each optimiser step; a step that was repeated after a crash counts once, as last written."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass
class _Gathered:
    """Answers of one problem on their way into a ProblemResult."""

    benchmark: str
    difficulty: str
    answers: dict[int, Answer] = field(default_factory=dict)


def load(path: Path, rows: int | None = None) -> manifests.Artifact:
    """A whole artifact whose manifest counts `rows` rows, where both are known.

    Raises:
        UserError: it is not complete, or its manifest and its rows disagree.
    """
    artifact = manifests.load(path)
    stated = artifact.facts.get("rows")
    if rows is not None and stated is not None and stated != rows:
        raise UserError(
            f"{path}: the manifest counts {stated} rows, the shards hold {rows}; delete that directory and run again"
        )
    return artifact


def facts(path: Path) -> Mapping[str, Any]:
    """The facts of a whole artifact, its rows counted against its manifest.

    Raises:
        UserError: it is not complete, or its manifest and its rows disagree.
    """
    return load(path, sum(1 for _ in shards.read_columns(path, "prompt_id"))).facts


def problems_asked(run: Path) -> dict[str, Asked]:
    """The problems that every arm was to answer, by id.

    Raises:
        UserError: eval-prompts/ is not complete or names a problem twice.
    """
    path = run / "eval-prompts"
    found: dict[str, Asked] = {}
    for problem_id, source, difficulty in shards.read_columns(
        path, "prompt_id", "source", "difficulty"
    ):
        if problem_id in found:
            raise UserError(
                f"{path} holds the problem {problem_id!r} twice; delete that directory and run again"
            )
        found[problem_id] = Asked(benchmark=source, difficulty=difficulty)
    load(path, len(found))
    return found


def arm_results(
    generations: Path,
    verdicts: Path,
    asked: Mapping[str, Asked],
    samples_per_problem: int,
    *,
    partly: bool = False,
) -> dict[str, ProblemResult]:
    """What became of every answer of an arm, by problem id in sorted order.

    `partly` lets verdicts leave out whole benchmarks, which a second profile need not be able to grade.

    Raises:
        UserError: answers and verdicts do not match one to one, the problems are not those of `asked`, or a problem has
            another number of answers than `samples_per_problem`.
    """
    answered = _answered(generations)
    load(generations, len(answered))
    if partly:
        covered = {source for (source,) in shards.read_columns(verdicts, "source")}
        asked = {
            problem_id: problem
            for problem_id, problem in asked.items()
            if problem.benchmark in covered
        }
        answered = {key: answer for key, answer in answered.items() if key[0] in asked}
    gathered, rows = _graded(verdicts, answered)
    load(verdicts, rows)
    if answered:
        prompt_id, sample_index = min(answered)
        raise _mismatch(
            verdicts,
            f"answers without a verdict: {len(answered)}, such as {prompt_id!r} sample {sample_index}",
        )
    _check_problems(verdicts, gathered, asked, samples_per_problem)
    return {
        problem_id: ProblemResult(
            problem_id=problem_id,
            benchmark=found.benchmark,
            difficulty=found.difficulty,
            answers=tuple(found.answers[index] for index in sorted(found.answers)),
        )
        for problem_id, found in sorted(gathered.items())
    }


def _mismatch(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; delete that directory and run again")


_Answered = tuple[int, str]
"""Length in tokens, and finish reason."""


def _answered(path: Path) -> dict[tuple[str, int], _Answered]:
    """What is counted of each answer."""
    found: dict[tuple[str, int], _Answered] = {}
    columns = ("prompt_id", "sample_index", "output_token_ids", "finish_reason")
    for prompt_id, sample_index, token_ids, finish_reason in shards.read_columns(path, *columns):
        if (prompt_id, sample_index) in found:
            raise _mismatch(path, f"sample {sample_index} of {prompt_id!r} is there twice")
        if finish_reason not in FINISH_REASONS:
            raise _mismatch(path, f"unknown finish_reason {finish_reason!r} at {prompt_id!r}")
        found[prompt_id, sample_index] = (len(token_ids), finish_reason)
    return found


def _graded(
    path: Path, answered: dict[tuple[str, int], _Answered]
) -> tuple[dict[str, _Gathered], int]:
    """Verdicts joined with their answers, which are taken out of `answered`; and the number of verdicts."""
    gathered: dict[str, _Gathered] = {}
    columns = (
        "prompt_id",
        "sample_index",
        "source",
        "difficulty",
        "outcome",
        "outcome_base",
        "reasoning",
        "detail",
    )
    for (
        prompt_id,
        index,
        source,
        difficulty,
        outcome,
        outcome_base,
        reasoning,
        detail,
    ) in shards.read_columns(path, *columns):
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
    odd = sorted(gathered.keys() ^ asked.keys())
    if odd:
        where = "verdicts" if odd[0] in gathered else "eval-prompts"
        raise _mismatch(
            path,
            f"its problems are not those of eval-prompts: {odd[0]!r} is only in {where} (such problems: {len(odd)})",
        )
    for problem_id, found in gathered.items():
        if (found.benchmark, found.difficulty) != (
            asked[problem_id].benchmark,
            asked[problem_id].difficulty,
        ):
            raise _mismatch(
                path,
                f"{problem_id!r} is {found.benchmark}/{found.difficulty} here, not as in eval-prompts",
            )
        if len(found.answers) != samples_per_problem:
            raise _mismatch(
                path,
                f"{problem_id!r} has {len(found.answers)} answers, not evaluate.samples_per_problem {samples_per_problem}",
            )


def sample_counts(path: Path) -> SampleCounts:
    """The lengths of the self-samples in a directory by finish reason.

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
    """The loss of each step from loss.jsonl in a checkpoint's directory; None when it was not recorded.

    Raises:
        UserError: the file holds something else than one JSON object with `step` and `loss` a line.
    """
    path = checkpoint / "loss.jsonl"
    if not path.exists():
        return None
    found: dict[int, float] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record: dict[str, Any] = json.loads(line)
            found[int(record["step"])] = float(record["loss"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number} is not a line with step and loss; delete {path.parent} and train again"
            ) from error
    return Loss(steps=tuple(sorted(found)), losses=tuple(found[step] for step in sorted(found)))
