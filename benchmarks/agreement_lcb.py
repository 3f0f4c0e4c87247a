"""Agreement of lcb-compat with LiveCodeBench on a model's programs and official verdicts.

    python benchmarks/agreement_lcb.py problems.jsonl verdicts.json --out figures.json
    python benchmarks/agreement_lcb.py problems.jsonl verdicts.json --official CHECKOUT

- Problems are rows in LiveCodeBench's format. Verdicts are one of its submissions
  (`question_id`, `code_list`, `graded_list`).
- Every officially accepted program that is rejected here is printed with the reason.
- Programs accepted only here are counted. Fewer or other tests than the official ones
  explain them.
- With a checkout of LiveCodeBench, its grader judges the same programs on the same rows.
  Every difference, either way, is printed.

Reads the two files; writes the figures and the machine as JSON.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import official_lcb
from machine import machine

from ssd_ray.evaluation.judging.lcb_compat import grade_lcb
from ssd_ray.evaluation.judging.outcomes import Result
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.problems.benchmarks import read_problems
from ssd_ray.schema import Problem


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One program with its official verdict."""

    problem: Problem
    code: str
    accepted: bool


def read_samples(problems: Path, verdicts: Path) -> Iterator[Sample]:
    """Yield every program with its problem and its official verdict."""
    by_id = {problem.problem_id: problem for problem in read_problems(problems)}
    for row in json.loads(verdicts.read_text()):
        problem = by_id[row["question_id"]]
        for code, accepted in zip(row["code_list"], row["graded_list"], strict=True):
            yield Sample(problem=problem, code=code, accepted=accepted)


def grade_all(samples: list[Sample], limits: Limits, workers: int) -> list[Result]:
    """Return verdicts of lcb-compat in the order of the samples, one sandbox per worker."""
    local = threading.local()

    def grade(sample: Sample) -> Result:
        if not hasattr(local, "sandbox"):
            local.sandbox = Sandbox()
        return grade_lcb(sample.problem, sample.code, limits, local.sandbox)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(grade, samples))


def main() -> None:
    """Grade and compare; print every exception and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("problems", type=Path)
    parser.add_argument("verdicts", type=Path)
    parser.add_argument(
        "--workers", type=int, default=1, help="sandboxes at once (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=6,
        help="seconds for each test (default: %(default)s, as in the official grader)",
    )
    parser.add_argument("--limit", type=int, help="number of programs to grade (default: all)")
    parser.add_argument(
        "--official",
        type=Path,
        help="a checkout of LiveCodeBench, whose grader judges the programs too (slow)",
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    arguments = parser.parse_args()
    samples = list(read_samples(arguments.problems, arguments.verdicts))[: arguments.limit]
    limits = Limits(time_s=arguments.timeout_s, memory_mib=4096, output_kib=65536)
    began = time.monotonic()
    graded = grade_all(samples, limits, arguments.workers)
    figures = compare(samples, graded) | {
        "wall_s": round(time.monotonic() - began, 1),
        "machine": machine(),
    }
    if arguments.official:
        figures |= compare_to_grader(
            samples, graded, official_lcb.load(arguments.official, int(arguments.timeout_s))
        )
    print({name: value for name, value in figures.items() if isinstance(value, int | float)})
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def compare(samples: list[Sample], graded: list[Result]) -> dict[str, object]:
    """Return counts of agreement with the published verdicts; print the exceptions."""
    exceptions = {}
    num_official = num_more = num_tests = 0
    for sample, ours in zip(samples, graded, strict=True):
        num_official += sample.accepted
        num_more += not sample.accepted and ours.outcome == "accepted"
        num_tests += ours.num_passed + (ours.failed_test >= 0)
        if sample.accepted and ours.outcome != "accepted":
            exceptions[sample.problem.problem_id] = f"{ours.outcome}: {ours.detail}"
            print(f"{sample.problem.problem_id}: {exceptions[sample.problem.problem_id]}")
    return {
        "programs": len(samples),
        "tests_run": num_tests,
        "accepted_officially": num_official,
        "of_these_accepted": num_official - len(exceptions),
        "share": round(1 - len(exceptions) / max(1, num_official), 5),
        "accepted_here_only": num_more,
        "exceptions": exceptions,
    }


def compare_to_grader(
    samples: list[Sample], graded: list[Result], check: official_lcb.Check
) -> dict[str, object]:
    """Return the differences to the official grader on the same tests; print each."""
    differences = {}
    for sample, ours in zip(samples, graded, strict=True):
        official = check(sample.problem, sample.code)
        if official != (ours.outcome == "accepted"):
            verdict = "accepted" if official else "rejected"
            differences[sample.problem.problem_id] = (
                f"officially {verdict}, here {ours.outcome}: {ours.detail}"
            )
            print(f"{sample.problem.problem_id}: {differences[sample.problem.problem_id]}")
    return {"same_as_grader": len(samples) - len(differences), "differences": differences}


if __name__ == "__main__":
    main()
