"""Jobs and tables of `ssd-ray grade` without a recipe, and tables of `ssd-ray sandbox`.

The work, and all I/O, is in `standalone`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar, get_args

from rich.table import Table

from ssd_ray.cli.options import GradeOptions
from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.sandbox import Limits, levels
from ssd_ray.evaluation.sandbox.selftest import findings
from ssd_ray.evaluation.sandbox.supervisor import best_level, try_levels
from ssd_ray.extraction import Rule
from ssd_ray.progress import Progress
from ssd_ray.reporting import words
from ssd_ray.schema import Profile
from ssd_ray.standalone.follow import FollowJob, follow
from ssd_ray.standalone.grade_files import Job
from ssd_ray.standalone.scores import FileScores, GroupScores
from ssd_ray.statistics.metrics import Score

_NUM_NAMED = 10
"""Maximum number of problems named in the notes of a table."""

T = TypeVar("T")


def files_job(options: GradeOptions) -> Job:
    """Return the job of grading files, with a default for each option left out.

    Raises:
        UserError: an option is missing or has no use without a recipe, or the name of a profile,
            rule or level is unknown.
    """
    problems, completions, out = _paths(options)
    if options.overrides:
        raise UserError("--set overrides a recipe's fields, and there is no recipe")
    profile = _or_default(options.profile, "strict")
    extract = _or_default(options.extract, "last-block")
    floor = _or_default(options.sandbox_floor, "L1")
    _require_known("--profile", profile, get_args(Profile))
    _require_known("--extract", extract, get_args(Rule))
    _require_known("--sandbox-floor", floor, levels.LEVELS)
    limits = Limits(
        time_s=_or_default(options.time_limit_s, 6.0),
        memory_mib=_or_default(options.memory_limit_mib, 1024),
        output_kib=_or_default(options.output_limit_kib, 1024),
    )
    return Job(
        problems=problems,
        completions=completions,
        out=out,
        rules=Rules(limits=limits, profile=profile, extract=extract),  # type: ignore[arg-type]
        floor=floor,
        workers=options.workers or os.cpu_count() or 1,
        skip_bad_rows=bool(options.skip_bad_rows),
        thinking=bool(options.thinking),
    )


def follow_run(options: GradeOptions, show: Progress) -> list[str]:
    """Grade apart from a run, and return the directories of verdicts.

    Raises:
        UserError: an option comes from the run, or `follow` finds a mistake.
    """
    assert options.follow is not None
    if names := options.not_for_following():
        raise UserError(
            f"with --follow, {', '.join(names)} come from the run that is followed: leave out all "
            "options but --workers and --quiet"
        )
    job = FollowJob(run=options.follow, workers=options.workers or os.cpu_count() or 1)
    return [str(place) for place in follow(job, show)]


def _paths(options: GradeOptions) -> tuple[Path, Path, Path]:
    """Return the paths of problems, completions and results, all of them required."""
    problems, completions, out = options.problems, options.completions, options.out
    if problems is None or completions is None or out is None:
        paths = {"--problems": problems, "--completions": completions, "--out": out}
        missing = ", ".join(option for option, path in paths.items() if path is None)
        raise UserError(
            f"without a recipe, --problems, --completions and --out are needed; missing: {missing}"
        )
    if not problems.exists():
        raise UserError(
            f"--problems {str(problems)!r}: there is no such file or directory, and names of "
            "benchmarks work in recipes only; give a JSONL or Parquet file, or a directory of them"
        )
    return problems, completions, out


def _or_default(value: T | None, default: T) -> T:
    return default if value is None else value


def _require_known(option: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"{option} {value!r} is unknown: use {', '.join(known)}")


def scores_table(scores: FileScores) -> Table:
    """Return a table of scores by benchmark and difficulty, with the counts of outcomes below."""
    table = Table(
        title=f"{scores.rows} completions, profile {scores.profile}, sandbox {scores.sandbox_level}"
    )
    for column in ("benchmark", "problems", "score", "95 % interval"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    notes = [
        ", ".join(
            f"{count} {outcome.replace('_', ' ')}" for outcome, count in scores.outcomes.items()
        )
    ]
    for source, benchmark in scores.benchmarks.items():
        _add_rows(table, source, benchmark.all)
        for difficulty, group in benchmark.difficulties.items():
            _add_rows(table, f"  {difficulty}", group)
        # A score over the other problems would hide these.
        if unanswered := benchmark.without_completion:
            total = unanswered + benchmark.all.problems
            notes.append(
                f"{source}: {unanswered} of {total} problems have no completion and are not counted"
            )
    if scores.public_only:
        notes.append(f"{scores.public_only} problems have public tests only: scores are too high")
    notes += _left_out(scores)
    if scores.bad_rows:
        notes.append(f"{len(scores.bad_rows)} bad rows were left out, listed in scores.json")
    table.caption = "\n".join(notes)
    return table


def _left_out(scores: FileScores) -> list[str]:
    """Return a note on the problems left out because no program can be graded on them."""
    problems = [problem.problem_id for problem in scores.problems_left_out]
    if not problems:
        return []
    names = ", ".join(problems[:_NUM_NAMED]) + (", …" if problems[_NUM_NAMED:] else "")
    counted = words.counted(len(problems), "problem")
    completions = words.counted(scores.completions_left_out, "completion")
    return [
        f"not in the score: {counted} that cannot be graded ({names}), with {completions}; "
        "reasons in scores.json"
    ]


def _add_rows(table: Table, name: str, group: GroupScores) -> None:
    """Add a row for each metric: a percentage, or a count if there are few problems."""
    if group.refused is not None:
        table.add_row(name, str(group.problems), "refused", group.refused)
    for metric, interval in group.metrics.items():
        score = Score(
            estimate=interval.estimate,
            low=interval.low,
            high=interval.high,
            problems=group.problems,
        )
        table.add_row(
            name,
            str(group.problems),
            f"{metric} {words.score(score)}",
            words.score_range(score),
        )


def sandbox_tables() -> Iterator[tuple[Table, bool]]:
    """Yield the levels, then the claims of each tested level: a table, and True if they hold."""
    best = best_level()
    table = Table(title=f"sandbox level {best.name}")
    for column in ("level", "here", "covers"):
        table.add_column(column)
    tested = [best]
    for level, obstacle in try_levels():
        table.add_row(level.name, f"no: {obstacle[:90]}" if obstacle else "yes", level.covers)
        # L4 is tested too, although it is never chosen as the best: it has to be asked for.
        if level == levels.L4 and not obstacle:
            tested.insert(0, level)
    table.caption = (
        "L4, a kernel of its own (gVisor), is used only where evaluate.sandbox_floor asks for it: "
        "it is slower"
    )
    yield table, True
    for level in tested:
        yield _claims(level)


def _claims(level: levels.Level) -> tuple[Table, bool]:
    """Return the table of a level's claims after a test of each, and True if none is broken."""
    claims = Table(title=f"self-test at {level.name}")
    for column in ("claim", "holds", "probe's observation"):
        claims.add_column(column)
    answers = {None: "not claimed at this level", True: "yes", False: "NO"}
    none_broken = True
    for finding in findings(level):
        none_broken &= finding.held is not False
        claims.add_row(finding.probe.claim, answers[finding.held], finding.detail)
    return claims, none_broken
