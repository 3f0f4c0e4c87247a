"""Blocks of answers never meant as the program: other languages, demonstrations.

The rule of extraction picks the block to run, and the verdict on it counts. If the block fails
every test, signs in the text separate a block of another purpose from a wrong program. The
functions are pure and parse nothing.
"""

from __future__ import annotations

import dataclasses
import re

from ssd_ray.evaluation.judging.outcomes import MAX_DETAIL, Result
from ssd_ray.extraction import Extraction, Rule, names_other_language
from ssd_ray.schema import Problem

_READS = re.compile(r"\binput[ \t]*[(,)]|\bstdin\b|\bfileinput\b|\b(?:open|read)\([ \t]*0\b")
"""Signs of reading standard input."""


def relabel(result: Result, problem: Problem, extraction: Extraction, rule: Rule) -> Result:
    """Return the result with outcome `wrong_block` if its block was never meant as the program.

    A block with a passed test is the program.
    """
    if result.num_passed or result.outcome in ("accepted", "infrastructure_error"):
        return result
    reason = wrong_block(problem, extraction, rule)
    if not reason:
        return result
    detail = f"{reason} ({result.outcome.replace('_', ' ')}: {result.detail})"[:MAX_DETAIL]
    base = "wrong_block" if result.outcome_base else ""
    return dataclasses.replace(result, outcome="wrong_block", detail=detail, outcome_base=base)


def wrong_block(problem: Problem, extraction: Extraction, rule: Rule) -> str:
    """Return why the extracted block is not a program for the problem; empty without a sign.

    - Its fence names another language than Python.
    - The problem calls a function, and only another block defines it.
    - The problem is about standard input, and only another block reads it.
    """
    block, other = ("first", "a later") if rule == "first-block" else ("last", "an earlier")
    if names_other_language(extraction.language):
        return f"the {block} block is marked {extraction.language:.20}, not Python"
    if problem.kind == "stdin":
        sign = _READS
        lack = "reads no input"
    else:
        # `Solution().name` is looked for by its method.
        name = (problem.entry_point or "").rpartition("().")[2]
        sign = _definition(name)
        lack = f"does not define {name}"
    has_sign = sign.search(extraction.code or "") is not None
    if has_sign or not any(map(sign.search, extraction.others)):
        return ""
    return f"the {block} block {lack}, {other} one does"


def _definition(name: str) -> re.Pattern[str]:
    """Return a pattern for the definition of a name: by def, class, assignment or import."""
    # Repeats are bounded: the text is a model's and could make an open repeat take hours.
    name = re.escape(name)
    signs = (
        rf"\b(?:def|class)[ \t]+{name}\b",
        rf"^[ \t]*{name}[ \t]*(?::[^=\n]*)?=",
        rf"^[ \t]*(?:from[ \t].{{1,200}})?import[ \t].{{0,200}}\b{name}\b",
    )
    return re.compile("|".join(signs), re.MULTILINE)
