"""Ten thousand completions through the stand-alone grader: rate, and memory of the driver.

    python benchmarks/grading_at_size.py --out figures.json

Limit: the driver stays under 1 GiB at the peak of its own resident size. Graders are
separate processes. The peer in the same run is one grader fed directly, without files; the
ratio is the cost of files, shards and processes. Writes a temporary directory, the figures
and the machine as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
from machine import machine

from ssd_ray.evaluation.sandbox import Limits, Sandbox

LIMIT_GIB = 1.0
CODE = "print(2 * int(input()))"
PROBLEMS = 100


def write(directory: Path, count: int) -> tuple[Path, Path]:
    """Write a file of trivial problems with two tests each, and a file of right answers."""
    problems, completions = directory / "problems.jsonl", directory / "completions.jsonl"
    tests = [{"input": "1\n", "output": "2\n"}, {"input": "2\n", "output": "4\n"}]
    with problems.open("w") as file:
        for number in range(PROBLEMS):
            row = {
                "problem_id": f"p{number}",
                "statement": "Double it.",
                "kind": "stdin",
                "tests": tests,
            }
            file.write(json.dumps(row) + "\n")
    with completions.open("w") as file:
        for number in range(count):
            text = f"{'word ' * 200}\n```python\n{CODE}  # {number}\n```\n"
            file.write(
                json.dumps(
                    {
                        "problem_id": f"p{number % PROBLEMS}",
                        "index": number // PROBLEMS,
                        "text": text,
                    }
                )
                + "\n"
            )
    return problems, completions


def main() -> None:
    """Measure; print and write the figures. Exit status 1 above the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        problems, completions = write(Path(name), arguments.completions)
        command = [
            sys.executable,
            "-m",
            "ssd_ray",
            "grade",
            "--quiet",
            "--workers",
            str(arguments.workers),
        ]
        command += [
            "--problems",
            str(problems),
            "--completions",
            str(completions),
            "--out",
            f"{name}/out",
        ]
        began, peak = time.perf_counter(), 0
        driver = psutil.Popen(command)
        while driver.poll() is None:
            try:
                peak = max(peak, driver.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
        wall_s = time.perf_counter() - began
        if driver.wait():
            sys.exit("the grader failed")
    limits = Limits(time_s=6, memory_mib=256, output_kib=64)
    with Sandbox() as sandbox:
        sandbox.run_program(CODE, "1\n", limits)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 3:
            sandbox.run_program(CODE, "1\n", limits)
            count += 1
        direct = count / (time.perf_counter() - began)
    tests_per_s = 2 * arguments.completions / wall_s
    figures = {
        "completions": arguments.completions,
        "workers": arguments.workers,
        "wall_s": wall_s,
        "tests_per_s": tests_per_s,
        "one_grader_tests_per_s": direct,
        "ratio": tests_per_s / direct,
        "driver_peak_gib": peak / 2**30,
        "limit_gib": LIMIT_GIB,
    }
    for key, value in figures.items():
        print(f"{key:>24}: {value:.3g}" if isinstance(value, float) else f"{key:>24}: {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps({**figures, "machine": machine()}, indent=1) + "\n")
    sys.exit(figures["driver_peak_gib"] > LIMIT_GIB)


if __name__ == "__main__":
    main()
