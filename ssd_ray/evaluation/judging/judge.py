"""From an answer to a verdict: extract the program, run its tests under a profile.

The functions are safe to call in any process. Accesses no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from ssd_ray.evaluation.judging import blocks
from ssd_ray.evaluation.judging.comparison import numeric_answer, same_answer
from ssd_ray.evaluation.judging.lcb_compat import grade_lcb
from ssd_ray.evaluation.judging.outcomes import Result
from ssd_ray.evaluation.judging.strict import grade_strict, require_gradable
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.extraction import Rule, extract
from ssd_ray.reasoning import TEXT_MARKS, AnswerParser, Content
from ssd_ray.schema import Completion, Problem, Profile, Verdict

BY_TEXT = AnswerParser(TEXT_MARKS)
_UNFINISHED = "the answer ends within its reasoning"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules for grading answers."""

    limits: Limits
    """Limits of one test."""
    profile: Profile = "strict"
    """The way to run programs and compare outputs."""
    extract: Rule = "last-block"
    """The place of the program in the answer."""


def grade_completion(
    problem: Problem,
    completion: Completion,
    rules: Rules,
    sandbox: Sandbox,
    parser: AnswerParser = BY_TEXT,
) -> Verdict:
    """Return the verdict on one sampled answer; `parser` splits off its reasoning.

    Raises:
        UserError: the problem cannot be graded. No program can cause this.
    """
    require_gradable(problem)
    content = parser.content(completion)
    if problem.kind == "numeric":
        # Nothing is run: the number is read from the text.
        row = verdict(problem, completion, None, _grade_number(problem, content), sandbox)
    else:
        # The rule `lcb` reads the text, the others the content.
        extraction = extract(completion.text, content, rules.extract)
        if extraction.code is None:
            result = _no_code(content, "no code in the answer, by the rule of extraction")
        else:
            result = grade_code(problem, extraction.code, rules, sandbox)
            result = blocks.relabel(result, problem, extraction, rules.extract)
        row = verdict(problem, completion, extraction.code, result, sandbox)
    return dataclasses.replace(row, reasoning=content.reasoning)


def verdict(
    problem: Problem, completion: Completion, code: str | None, result: Result, sandbox: Sandbox
) -> Verdict:
    """Return the row for the result of a program."""
    return Verdict(
        prompt_id=completion.prompt_id,
        sample_index=completion.sample_index,
        source=completion.source,
        difficulty=completion.difficulty,
        outcome=result.outcome,
        num_tests=len(problem.tests),
        num_passed=result.num_passed,
        time_s=result.time_s,
        code=code or "",
        detail=result.detail,
        failed_test=result.failed_test,
        peak_bytes=result.peak_bytes,
        sandbox_level=sandbox.level,
        outcome_base=result.outcome_base,
    )


def grade_code(problem: Problem, code: str, rules: Rules, sandbox: Sandbox) -> Result:
    """Run the tests of a problem on a program.

    Problems of other benchmarks than LiveCodeBench are graded strictly under any profile.

    Raises:
        UserError: as for `grade_completion`.
    """
    # LiveCodeBench's problems have the comparison `lcb`.
    if rules.profile == "lcb-compat" and problem.comparison == "lcb":
        return grade_lcb(problem, code, rules.limits, sandbox)
    return grade_strict(problem, code, rules.limits, sandbox)


def _no_code(content: Content, lack: str) -> Result:
    """Return the result of an answer without a program or number."""
    detail = _UNFINISHED if content.text is None else lack
    return Result(outcome="no_code", detail=detail)


def _grade_number(problem: Problem, content: Content) -> Result:
    """Compare the number at the end of an answer with the gold one."""
    answer = content.text
    if answer is None or numeric_answer(answer) is None:
        return _no_code(content, "no number in the answer")
    gold = problem.tests[0].output
    if same_answer(answer, gold):
        return Result(outcome="accepted", num_passed=1)
    detail = f"answered {numeric_answer(answer)!s:.60} and should have answered {gold:.60}"
    return Result(outcome="wrong_answer", detail=detail, failed_test=0)


def check_references(problems: Iterable[Problem], rules: Rules, sandbox: Sandbox) -> list[str]:
    """Return a line for each problem whose reference solution is missing or not accepted."""
    complaints = []
    for problem in problems:
        if problem.reference is None:
            complaints.append(f"{problem.problem_id}: no reference solution")
            continue
        result = grade_code(problem, problem.reference, rules, sandbox)
        if result.outcome != "accepted":
            complaints.append(f"{problem.problem_id}: {result.outcome}, {result.detail}")
    return complaints
