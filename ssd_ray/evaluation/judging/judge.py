"""From an answer to a verdict: extract the program, run its tests under a profile; safe in any process.

Reads and writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from ssd_ray.evaluation.judging import blocks
from ssd_ray.evaluation.judging.comparison import numeric_answer, same_answer
from ssd_ray.evaluation.judging.lcb_compat import grade_lcb
from ssd_ray.evaluation.judging.outcomes import Graded
from ssd_ray.evaluation.judging.strict import grade_strict, require_gradable
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.extraction import Rule, extract
from ssd_ray.reasoning import TEXT_MARKS, AnswerParser, Content
from ssd_ray.schema import Completion, Problem, Profile, Verdict

BY_TEXT = AnswerParser(TEXT_MARKS)
_UNFINISHED = "the answer ends within its reasoning"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How answers are graded: what a test may use, how programs are run and compared, where in the answer the program is."""

    limits: Limits
    profile: Profile = "strict"
    extract: Rule = "last-block"


def grade_completion(
    problem: Problem,
    completion: Completion,
    rules: Rules,
    sandbox: Sandbox,
    parser: AnswerParser = BY_TEXT,
) -> Verdict:
    """The verdict on one sampled answer; `parser` tells its reasoning from what it says.

    Raises:
        UserError: the problem cannot be graded. Never a pass, and nothing that a program could bring about.
    """
    require_gradable(problem)
    content = parser.content(completion)
    if problem.kind == "numeric":
        made = verdict(problem, completion, None, _grade_number(problem, content), sandbox)
    else:
        found = extract(completion.text, content, rules.extract)
        if found.code is None:
            graded = _nothing(content, "no code in the answer, by the rule of extraction")
        else:
            graded = grade_code(problem, found.code, rules, sandbox)
            graded = blocks.named(graded, problem, found, rules.extract)
        made = verdict(problem, completion, found.code, graded, sandbox)
    return dataclasses.replace(made, reasoning=content.reasoning)


def verdict(
    problem: Problem, completion: Completion, code: str | None, graded: Graded, sandbox: Sandbox
) -> Verdict:
    """The row that records what became of a program."""
    return Verdict(
        prompt_id=completion.prompt_id,
        sample_index=completion.sample_index,
        source=completion.source,
        difficulty=completion.difficulty,
        outcome=graded.outcome,
        num_tests=len(problem.tests),
        num_passed=graded.num_passed,
        time_s=graded.time_s,
        code=code or "",
        detail=graded.detail,
        failed_test=graded.failed_test,
        peak_bytes=graded.peak_bytes,
        sandbox_level=sandbox.level,
        outcome_base=graded.outcome_base,
    )


def grade_code(problem: Problem, code: str, rules: Rules, sandbox: Sandbox) -> Graded:
    """Run the tests of a problem on a program; kinds that LiveCodeBench does not have are graded strictly in any profile.

    Raises:
        UserError: as for `grade_completion`.
    """
    if rules.profile == "lcb-compat" and problem.comparison == "lcb":
        return grade_lcb(problem, code, rules.limits, sandbox)
    return grade_strict(problem, code, rules.limits, sandbox)


def _nothing(content: Content, lack: str) -> Graded:
    """Return the verdict on an answer without a program or number."""
    detail = _UNFINISHED if content.text is None else lack
    return Graded(outcome="no_code", num_passed=0, time_s=0.0, detail=detail)


def _grade_number(problem: Problem, content: Content) -> Graded:
    answer = content.text
    if answer is None or numeric_answer(answer) is None:
        return _nothing(content, "no number in the answer")
    if same_answer(answer, problem.tests[0].output):
        return Graded(outcome="accepted", num_passed=1, time_s=0.0, detail="")
    detail = f"answered {numeric_answer(answer)!s:.60} and should have answered {problem.tests[0].output:.60}"
    return Graded(outcome="wrong_answer", num_passed=0, time_s=0.0, detail=detail, failed_test=0)


def check_references(problems: Iterable[Problem], rules: Rules, sandbox: Sandbox) -> list[str]:
    """One line for every problem whose own reference solution is not accepted, or that has none; empty when all is well."""
    complaints = []
    for problem in problems:
        if problem.reference is None:
            complaints.append(f"{problem.problem_id}: no reference solution")
            continue
        graded = grade_code(problem, problem.reference, rules, sandbox)
        if graded.outcome != "accepted":
            complaints.append(f"{problem.problem_id}: {graded.outcome}, {graded.detail}")
    return complaints
