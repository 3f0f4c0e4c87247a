"""Up to five example answers behind the numbers, chosen by rule and not by hand.

1. The shortest accepted answer.
2. A wrong answer.
3. A failure of another kind.
4. An answer cut off or without code.
5. The shortest accepted answer of the baseline.
6. Any other answers, if some of these kinds did not occur.

Where several answers fit, the first by benchmark, problem and sample is taken. Each arm shows a
problem once.

Reads eval-prompts/, generations/ and verdicts/; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import shards
from ssd_ray.config import Recipe, arms
from ssd_ray.reporting.numbers.counts import Answer, ProblemResult
from ssd_ray.schema import Verdict

MAX_EXAMPLES = 5
MAX_CHARACTERS = 6000

OTHER_FAILURES = ("runtime_error", "time_limit", "memory_limit", "output_limit")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One answer with its problem and verdict, its texts cut to about 6,000 characters.

    An answer keeps its beginning and its end, since its program follows its reasoning.
    """

    title: str
    arm: str
    problem_id: str
    benchmark: str
    difficulty: str
    sample_index: int
    tokens: int
    finish_reason: str
    outcome: str
    num_tests: int
    num_passed: int
    prompt: str
    answer: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class _Choice:
    title: str
    arm: str
    problem: ProblemResult
    answer: Answer


def shown_arm(recipe: Recipe) -> str:
    """Return the arm to show answers of: the first with the ssd model, else the baseline."""
    return next(
        (name for name, arm in arms.arms(recipe).items() if arm.model == "ssd"),
        arms.baseline(recipe),
    )


def examples(
    recipe: Recipe, run: Path, results: Mapping[str, Mapping[str, ProblemResult]]
) -> list[Example]:
    """Return up to five answers by the rules above."""
    arm = shown_arm(recipe)
    baseline = arms.baseline(recipe)
    # Title, arm, condition, and True for the shortest answer instead of the first.
    rules: list[tuple[str, str, Callable[[Answer], bool], bool]] = [
        ("Shortest accepted answer", arm, lambda answer: answer.outcome == "accepted", True),
        ("A wrong answer", arm, lambda answer: answer.outcome == "wrong_answer", False),
        (
            "A failure of another kind",
            arm,
            lambda answer: answer.outcome in OTHER_FAILURES,
            False,
        ),
        (
            "Cut off, or without code",
            arm,
            lambda a: a.finish_reason == "length" or a.outcome == "no_code",
            False,
        ),
        ("Shortest accepted answer", baseline, lambda answer: answer.outcome == "accepted", True),
        # These fill the places of kinds that did not occur.
        ("Another answer", arm, lambda answer: True, False),
        ("Another answer", baseline, lambda answer: True, False),
    ]
    chosen: list[_Choice] = []
    for title, name, wanted, shortest in rules:
        candidates = [
            choice
            for choice in _candidates(title, name, results[name], wanted)
            if not _taken(choice, chosen)
        ]
        if shortest:
            candidates.sort(key=lambda choice: choice.answer.tokens)
        if candidates and len(chosen) < MAX_EXAMPLES:
            chosen.append(candidates[0])
    return _with_texts(run, arms.VERDICTS[recipe.evaluate.profiles[0]], chosen)


def _candidates(
    title: str, arm: str, problems: Mapping[str, ProblemResult], wanted: Callable[[Answer], bool]
) -> Iterator[_Choice]:
    for problem in sorted(
        problems.values(), key=lambda problem: (problem.benchmark, problem.problem_id)
    ):
        for answer in problem.answers:
            if wanted(answer):
                yield _Choice(title=title, arm=arm, problem=problem, answer=answer)


def _taken(choice: _Choice, chosen: list[_Choice]) -> bool:
    # A problem is shown once for an arm: examples should differ.
    return any(
        (choice.arm, choice.problem.problem_id) == (other.arm, other.problem.problem_id)
        for other in chosen
    )


def _with_texts(run: Path, directory: str, chosen: list[_Choice]) -> list[Example]:
    """Return the chosen answers with their texts, read in one pass over each directory."""
    # Texts are large: keep those of the chosen answers alone.
    wanted = {choice.problem.problem_id for choice in chosen}
    columns = shards.read_columns(run / "eval-prompts", "prompt_id", "text")
    prompts = {prompt_id: text for prompt_id, text in columns if prompt_id in wanted}
    texts: dict[tuple[str, str, int], str] = {}
    verdicts: dict[tuple[str, str, int], Verdict] = {}
    for arm in {choice.arm for choice in chosen}:
        keys = {
            (choice.problem.problem_id, choice.answer.sample_index)
            for choice in chosen
            if choice.arm == arm
        }
        for prompt_id, index, text in shards.read_columns(
            run / "generations" / arm, "prompt_id", "sample_index", "text"
        ):
            if (prompt_id, index) in keys:
                texts[arm, prompt_id, index] = text
        for verdict in shards.read_rows(run / directory / arm, Verdict):
            if (verdict.prompt_id, verdict.sample_index) in keys:
                verdicts[arm, verdict.prompt_id, verdict.sample_index] = verdict
    return [_example(choice, prompts, texts, verdicts) for choice in chosen]


def _example(
    choice: _Choice,
    prompts: Mapping[str, str],
    texts: Mapping[tuple[str, str, int], str],
    verdicts: Mapping[tuple[str, str, int], Verdict],
) -> Example:
    key = (choice.arm, choice.problem.problem_id, choice.answer.sample_index)
    verdict = verdicts[key]
    return Example(
        title=choice.title,
        arm=choice.arm,
        problem_id=choice.problem.problem_id,
        benchmark=choice.problem.benchmark,
        difficulty=choice.problem.difficulty,
        sample_index=choice.answer.sample_index,
        tokens=choice.answer.tokens,
        finish_reason=choice.answer.finish_reason,
        outcome=choice.answer.outcome,
        num_tests=verdict.num_tests,
        num_passed=verdict.num_passed,
        prompt=_shortened(prompts[choice.problem.problem_id]),
        answer=_shortened(texts[key], keep_end=True),
        detail=_shortened(verdict.detail),
    )


def _shortened(text: str, *, keep_end: bool = False) -> str:
    excess = len(text) - MAX_CHARACTERS
    if excess <= 0:
        return text
    if not keep_end:
        return f"{text[:MAX_CHARACTERS]}\n[… {excess:,} more characters, not shown here]"
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n[… {excess:,} characters, not shown here …]\n{text[-half:]}"
