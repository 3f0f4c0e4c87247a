"""Problems graded per second: lcb-compat and strict against LiveCodeBench's own grader.

    python benchmarks/lcb_speed.py --official CHECKOUT --out figures.json

Rows have 1, 20 and 45 trivial tests, by standard input or by call. All graders alternate in
one process and one thread, so that a busy machine slows all alike. Rates use the median
time; quote the ratios. Reads the official grader from a checkout of LiveCodeBench; writes
the figures and the machine as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import official_lcb
from machine import machine

from ssd_ray.evaluation.judging.lcb_compat import grade_lcb
from ssd_ray.evaluation.judging.strict import grade_strict
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.schema import Problem, Test

LIMITS = Limits(time_s=6, memory_mib=1024, output_kib=1024)
CODE = {
    "stdin": "print(int(input()) + 1)",
    "function": "class Solution:\n    def f(self, x):\n        return x + 1",
}


def row(kind: str, num_tests: int) -> Problem:
    """Return a trivial problem."""
    stdin = kind == "stdin"
    tests = [Test(input=f"{n}" if stdin else f"[{n}]", output=f"{n + 1}") for n in range(num_tests)]
    return Problem(
        problem_id=f"{kind}-{num_tests}",
        source="speed",
        statement="",
        kind="stdin" if stdin else "function",
        entry_point=None if stdin else "f",
        comparison="lcb",
        tests=tuple(tests),
    )


def measure(acts: dict[str, Callable[[], bool]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each act, alternating, after two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(-2, rounds):
        for name, act in acts.items():
            began = time.perf_counter()
            assert act(), f"{name} does not accept the trivial program"
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--official", type=Path, required=True, help="a checkout of LiveCodeBench/LiveCodeBench"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=30,
        help="gradings of each row by each grader (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    arguments = parser.parse_args()
    check = official_lcb.load(arguments.official, int(LIMITS.time_s))
    figures: dict[str, object] = {"machine": machine()}
    with Sandbox() as sandbox:
        figures["sandbox_level"] = sandbox.level
        for kind in CODE:
            for num_tests in (1, 20, 45):
                problem, code = row(kind, num_tests), CODE[kind]
                median_s = measure(_acts(problem, code, sandbox, check), arguments.rounds)
                ratios = {
                    name: round(median_s["official"] / value, 2) for name, value in median_s.items()
                }
                figures[problem.problem_id] = {
                    "median_ms": {name: round(value * 1e3, 2) for name, value in median_s.items()},
                    "problems_per_s": {
                        name: round(1 / value, 1) for name, value in median_s.items()
                    },
                    "times_official": ratios,
                }
                shown = ", ".join(
                    f"{name} {value * 1e3:.1f} ms ({ratios[name]:.2f}x)"
                    for name, value in median_s.items()
                )
                print(f"{problem.problem_id:>12}: {shown}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def _acts(
    problem: Problem, code: str, sandbox: Sandbox, check: official_lcb.Check
) -> dict[str, Callable[[], bool]]:
    return {
        "official": partial(check, problem, code),
        "lcb-compat": lambda: grade_lcb(problem, code, LIMITS, sandbox).outcome == "accepted",
        "strict": lambda: grade_strict(problem, code, LIMITS, sandbox).outcome == "accepted",
    }


if __name__ == "__main__":
    main()
