"""Blocks of answers that are no program for their problem: other languages, and demonstrations.

The rule of extraction decides which block is run, and its verdict counts. Where that block fails
every test, these signs tell a block that was never meant as the program from a program that fails.
Pure; nothing is parsed.
"""

from __future__ import annotations

import dataclasses
import re

from ssd_ray.evaluation.judging.outcomes import MAX_DETAIL, Graded
from ssd_ray.extraction import Extraction, Rule, names_other_language
from ssd_ray.schema import Problem

_READS = re.compile(r"\binput[ \t]*[(,)]|\bstdin\b|\bfileinput\b|\b(?:open|read)\([ \t]*0\b")


def named(graded: Graded, problem: Problem, found: Extraction, rule: Rule) -> Graded:
    """Name a verdict `wrong_block` if the block passed no test and is no program for it."""
    if graded.num_passed or graded.outcome in ("accepted", "infrastructure_error"):
        return graded
    reason = wrong_block(problem, found, rule)
    if not reason:
        return graded
    detail = f"{reason} ({graded.outcome.replace('_', ' ')}: {graded.detail})"[:MAX_DETAIL]
    base = "wrong_block" if graded.outcome_base else ""
    return dataclasses.replace(graded, outcome="wrong_block", detail=detail, outcome_base=base)


def wrong_block(problem: Problem, found: Extraction, rule: Rule) -> str:
    """Return why the extracted block is no program for the problem, empty if nothing says so."""
    here, there = ("first", "a later") if rule == "first-block" else ("last", "an earlier")
    if names_other_language(found.language):
        return f"the {here} block is marked {found.language:.20}, not Python"
    if problem.kind == "stdin":
        sign, lack = _READS, "reads no input"
    else:
        name = (problem.entry_point or "").rpartition("().")[2]
        sign, lack = _definition(name), f"does not define {name}"
    shown = sign.search(found.code or "") is not None
    if shown or not any(map(sign.search, found.others)):
        return ""
    return f"the {here} block {lack}, {there} one does"


def _definition(name: str) -> re.Pattern[str]:
    """Return the sign of a definition; bounded repeats keep a hostile text from taking long."""
    name = re.escape(name)
    signs = (
        rf"\b(?:def|class)[ \t]+{name}\b",
        rf"^[ \t]*{name}[ \t]*(?::[^=\n]*)?=",
        rf"^[ \t]*(?:from[ \t].{{1,200}})?import[ \t].{{0,200}}\b{name}\b",
    )
    return re.compile("|".join(signs), re.MULTILINE)
