"""What the command line shows of grading: the stand-alone door's table, the sandbox's levels and self-test.

Reads and writes what `standalone` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.sandbox import Limits, levels
from ssd_ray.evaluation.sandbox.selftest import findings
from ssd_ray.evaluation.sandbox.supervisor import best_level, working_levels
from ssd_ray.extraction import Rule
from ssd_ray.progress import Progress
from ssd_ray.reporting import words
from ssd_ray.schema import Profile
from ssd_ray.standalone.grade_files import Job, grade_files

_NAMED = 10
"""Problems that a table names before it stops."""


def grade_from_command_line(
    *,
    problems: Path,
    completions: Path,
    out: Path,
    progress: Progress,
    profile: str = "strict",
    extract: str = "last-block",
    workers: int | None = None,
    time_limit_s: float = 6.0,
    memory_limit_mib: int = 1024,
    output_limit_kib: int = 1024,
    sandbox_floor: str = "L1",
    skip_bad_rows: bool = False,
    thinking: bool = False,
) -> Table:
    """Grade the files and return the table of scores.

    Raises:
        UserError: an unknown name of a profile, rule or level; the rest as `grade_files`.
    """
    for option, value, known in (
        ("--profile", profile, get_args(Profile)),
        ("--extract", extract, get_args(Rule)),
        ("--sandbox-floor", sandbox_floor, levels.LEVELS),
    ):
        if value not in known:
            raise UserError(f"{option} {value!r} is unknown: use {', '.join(known)}")
    limits = Limits(time_s=time_limit_s, memory_mib=memory_limit_mib, output_kib=output_limit_kib)
    rules = Rules(limits=limits, profile=profile, extract=extract)  # type: ignore[arg-type]
    job = Job(
        problems=problems,
        completions=completions,
        out=out,
        rules=rules,
        floor=sandbox_floor,
        workers=workers or os.cpu_count() or 1,
        skip_bad_rows=skip_bad_rows,
        thinking=thinking,
    )
    return scores_table(grade_files(job, progress))


def scores_table(scores: dict[str, Any]) -> Table:
    """Scores by benchmark and difficulty, and how the rest ended."""
    table = Table(
        title=f"{scores['rows']} completions, profile {scores['profile']}, sandbox {scores['sandbox_level']}"
    )
    for column in ("benchmark", "problems", "score", "95 % interval"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    notes = [
        ", ".join(
            f"{count} {outcome.replace('_', ' ')}" for outcome, count in scores["outcomes"].items()
        )
    ]
    for source, found in scores["benchmarks"].items():
        for name, facts in (
            (source, found["all"]),
            *((f"  {name}", facts) for name, facts in found["difficulties"].items()),
        ):
            _add_rows(table, name, facts)
        if found["without_completion"]:
            whole = found["without_completion"] + found["all"]["problems"]
            notes.append(
                f"{source}: {found['without_completion']} of {whole} problems have no completion and are not counted"
            )
    if scores["public_only"]:
        notes.append(
            f"{scores['public_only']} problems have public tests only: scores are too high"
        )
    notes += _left_out(scores)
    if scores["bad_rows"]:
        notes.append(f"{len(scores['bad_rows'])} bad rows were left out, listed in scores.json")
    table.caption = "\n".join(notes)
    return table


def _left_out(scores: dict[str, Any]) -> list[str]:
    """Name the problems that are no part of the score because no program can be graded on them."""
    problems = [row["problem_id"] for row in scores["problems_left_out"]]
    if not problems:
        return []
    names = ", ".join(problems[:_NAMED]) + (", …" if problems[_NAMED:] else "")
    completions = (
        f"{scores['completions_left_out']} completions"
        if scores["completions_left_out"] != 1
        else "1 completion"
    )
    return [
        f"not in the score: {len(problems)} problem{'s' * (len(problems) > 1)} that cannot be graded ({names}), with "
        f"{completions}; reasons in scores.json"
    ]


def _add_rows(table: Table, name: str, facts: dict[str, Any]) -> None:
    """Add one row a metric: percentages, or of few problems counts."""
    if "refused" in facts:
        table.add_row(name, str(facts["problems"]), "refused", facts["refused"])
    for metric, interval in facts.items():
        if "pass@" in metric:
            found = {**interval, "problems": facts["problems"]}
            table.add_row(
                name,
                str(facts["problems"]),
                f"{metric} {words.score(found)}",
                words.score_range(found, unit=""),
            )


def sandbox_tables() -> Iterator[tuple[Table, bool]]:
    """The levels of this machine, then the claims of its best ones, each with whether all is as it should be."""
    best = best_level()
    table = Table(title=f"sandbox level {best.name}")
    for column in ("level", "here", "what it covers"):
        table.add_column(column)
    tested = [best]
    for level, why_not in working_levels():
        table.add_row(level.name, f"no: {why_not[:90]}" if why_not else "yes", level.covers)
        if level == levels.L4 and not why_not:
            tested.insert(0, level)
    table.caption = "L4, a kernel of its own (gVisor), is used only where evaluate.sandbox_floor asks for it: it is slower"
    yield table, True
    for level in tested:
        yield _claims(level)


def _claims(level: levels.Level) -> tuple[Table, bool]:
    """Every claim of a level, tried."""
    claims = Table(title=f"self-test at {level.name}")
    for column in ("claim", "holds", "what the probe saw"):
        claims.add_column(column)
    sound = True
    for finding in findings(level):
        word = (
            "not claimed at this level" if finding.held is None else "yes" if finding.held else "NO"
        )
        sound &= finding.held is not False
        claims.add_row(finding.probe.claim, word, finding.detail)
    return claims, sound
