"""What the sandbox costs: tests a second of `run_program` on a trivial program, as a ratio to starting a bare interpreter.

    python benchmarks/grading.py --out figures.json

Both are measured in turns, so that a busy machine slows both alike, and rates are of the median time; the ratio is the
figure to quote.
Reads nothing; writes the figures and the machine as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from machine import machine

from ssd_ray.evaluation.execution import FunctionCaller, Limits, isolation, run_program

LIMITS = Limits(time_s=10, memory_mib=256, output_kib=64)


def start_interpreter() -> None:
    """The yardstick: an interpreter started and ended with nothing done."""
    subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)


def run_test() -> None:
    """A trivial test of a stdin problem."""
    execution = run_program("print(int(input()) + 1)", "1\n", LIMITS)
    assert execution.stdout == "2\n", execution


def call_function() -> None:
    """A trivial test of a function problem."""
    with FunctionCaller(["def f(x): return x + 1"], "f", LIMITS) as caller:
        assert caller.call([1]).result == 2


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each act in each round, the acts taken in turns."""
    acts: dict[str, Callable[[], None]] = {"bare": start_interpreter, "stdin": run_test, "function": call_function}
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for round_index in range(-2, rounds):
        for name, act in acts.items():
            began = time.perf_counter()
            act()
            if round_index >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100, help="tests of each kind (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    arguments = parser.parse_args()
    around = {"machine": machine(), "isolation": dataclasses.asdict(isolation())}
    seconds = measure(arguments.rounds)
    median_s = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "tests_per_s": {name: round(1 / value, 2) for name, value in median_s.items()},
        "ratio_to_bare": {name: round(median_s["bare"] / value, 3) for name, value in median_s.items()},
        "seconds": {name: [round(value, 5) for value in sorted(values)] for name, values in seconds.items()},
    }
    for name, value in median_s.items():
        print(f"{name:>8}: {1 / value:6.1f} a second, median {value * 1e3:.1f} ms, {median_s['bare'] / value:.2f} of bare")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures | around, indent=2) + "\n")


if __name__ == "__main__":
    main()
