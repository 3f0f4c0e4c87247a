"""The cost of the sandbox: trivial isolated tests per second and core at each level.

    python benchmarks/grading.py --out figures.json

- The grader, its zygote and the programs share one core; then two graders share two cores.
- Peers in the same run: a bare interpreter per test, and a fork without any wall.
- Limits: 150 tests per second and core at L1, and 1.8 times as many on two cores.
- Also measured: the memory of a grader with 50 MB of input and a flood of output.

Reads nothing; writes the figures and the machine as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from machine import machine

from ssd_ray.evaluation.sandbox import Limits, Sandbox, best_level, call, levels

LIMITS = Limits(time_s=10, memory_mib=256, output_kib=64)
LEAST_PER_CORE, LEAST_SPEEDUP = 150.0, 1.8


def program(sandbox: Sandbox) -> None:
    """Run a trivial test of a stdin problem."""
    execution = sandbox.run_program("print(int(input()) + 1)", "1\n", LIMITS)
    assert execution.stdout == "2\n", execution


def function(sandbox: Sandbox) -> None:
    """Run a trivial test of a function problem."""
    with sandbox.converse(
        "calls", ["def f(x): return x + 1"], LIMITS, entry_point="f"
    ) as conversation:
        assert call(conversation, [1]).result == 2


def bare_interpreter(_: Sandbox) -> None:
    """Start a new interpreter for one test, as graders without a zygote do."""
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", "print(int(input()) + 1)"],
        input=b"1\n",
        stdout=subprocess.PIPE,
        check=True,
    )


def bare_fork(_: Sandbox) -> None:
    """Fork, execute the code, wait: the least that a test in its own process can cost."""
    pid = os.fork()
    if pid == 0:
        exec(compile("x = int('1') + 1", "program", "exec"), {})
        os._exit(0)
    os.waitpid(pid, 0)


def rate(act: Callable[[Sandbox], None], level: levels.Level, seconds: float) -> float:
    """Return how often a second `act` runs, one call after another."""
    with Sandbox(floor="L0", level=level) as sandbox:
        act(sandbox)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            act(sandbox)
            count += 1
        return count / (time.perf_counter() - began)


def _graders(core: int | None, name: str, seconds: float, start: Any, results: Any) -> None:
    os.sched_setaffinity(0, {core} if core is not None else os.sched_getaffinity(0))
    level = next(level for level in levels.candidates() if level.name == name)
    with Sandbox(floor="L0", level=level) as sandbox:
        program(sandbox)
        start.wait()
        results.put(rate(program, level, seconds))


def together(cores: list[int], name: str, seconds: float) -> float:
    """Return tests a second of all graders together, one on each core."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(len(cores)), context.Queue()
    graders = [
        context.Process(target=_graders, args=(core, name, seconds, start, results))
        for core in cores
    ]
    for grader in graders:
        grader.start()
    total = sum(results.get() for _ in graders)
    for grader in graders:
        grader.join()
    return float(total)


def memory() -> dict[str, float]:
    """Return by how many MiB this process grew.

    It sends 50 MB to one program, and cuts off the endless output of another.
    """
    limits = Limits(time_s=60, memory_mib=512, output_kib=1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Sandbox(floor="L0") as sandbox:
        text = "x" * 999 + "\n"
        execution = sandbox.run_program(
            "import sys; print(sum(len(line) for line in sys.stdin))", text * 50_000, limits
        )
        assert execution.stdout == "50000000\n", execution
        flood = sandbox.run_program("while True: print('x' * 10**6)", "", limits)
        assert flood.status == "output_limit"
    return {
        "grew_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "stdin_mb": 50.0,
    }


def main() -> None:
    """Measure; print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="in turns; medians count (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    arguments = parser.parse_args()
    around = {"machine": machine(), "best_level": best_level().name}
    figures: dict[str, Any] = {"memory": memory()}
    cores = sorted(os.sched_getaffinity(0))[:2]
    names = sorted(
        {"L1", best_level().name, *(level.name for level in levels.candidates() if level.gvisor)}
    )
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name in names:
            rates.setdefault(f"{name}, one core", []).append(
                together(cores[:1], name, arguments.seconds)
            )
            if len(cores) > 1:
                rates.setdefault(f"{name}, two cores", []).append(
                    together(cores, name, arguments.seconds)
                )
        os.sched_setaffinity(0, cores[:1])
        for act in (bare_interpreter, bare_fork, function):
            rates.setdefault(act.__name__, []).append(
                rate(act, best_level(), arguments.seconds / 2)
            )
        os.sched_setaffinity(0, cores)
    figures["tests_per_s"] = {name: round(median(values), 1) for name, values in rates.items()}
    for name, value in figures["tests_per_s"].items():
        ratio = value / figures["tests_per_s"]["bare_interpreter"]
        print(f"{name:>18}: {value:7.1f} a second, {ratio:5.2f} times a bare interpreter")
    per_core = figures["tests_per_s"]["L1, one core"]
    print(
        f"L1, a core: {per_core:.0f} a second, {per_core / LEAST_PER_CORE:.2f} of the "
        f"{LEAST_PER_CORE:.0f} wanted"
    )
    if len(cores) > 1:
        figures["speedup"] = round(figures["tests_per_s"]["L1, two cores"] / per_core, 2)
        print(f"two cores: {figures['speedup']:.2f} times one; {LEAST_SPEEDUP} wanted")
    print(
        "memory: 50 MB of input and a flood of output made the grader "
        f"{figures['memory']['grew_mib']:.0f} MiB larger"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(figures | around, indent=2) + "\n")


if __name__ == "__main__":
    main()
