r"""Write the training prompts of the evidence: MBPP without MBPP+, and the built-in ones.

    python benchmarks/evidence/prompts.py --mbpp mbpp.jsonl --mbpp-plus MbppPlus.jsonl.gz \
        --out build/evidence/prompts.jsonl

- MBPP+ takes problems of all splits of MBPP. All of them are left out, since it is the evaluation.
- Tests and references go along: the forecast grades answers, and the arm `accepted` selects them.
- Rows whose tests cannot cross to a program's own process are left out, as everywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from ssd_ray.problems import sources
from ssd_ray.problems.benchmarks import read_problems
from ssd_ray.problems.benchmarks.files import list_files, read_rows
from ssd_ray.schema import Problem


def number_of(problem_id: str) -> str:
    """Return the number of a problem of MBPP or MBPP+: `Mbpp/2` and `mbpp/2` are one."""
    return problem_id.rpartition("/")[2]


def mbpp_plus(path: Path) -> set[str]:
    """Return the numbers of the problems of MBPP+."""
    rows = [row for file in list_files(path, "--mbpp-plus") for _, row in read_rows(file)]
    return {number_of(str(row["task_id"])) for row in rows if isinstance(row, dict)}


def problems(mbpp: Path, plus: Path) -> Iterator[Problem]:
    """Yield the problems to train on, those of MBPP first."""
    left_out = mbpp_plus(plus)
    for problem in read_problems(mbpp, skip_bad_rows=True):
        if number_of(problem.problem_id) not in left_out:
            yield problem
    yield from sources.builtin("train")


def row(problem: Problem) -> dict[str, object]:
    """Return a problem as a row of prompts."""
    return {
        "problem_id": problem.problem_id,
        "question": problem.statement,
        "starter_code": problem.starter_code,
        "kind": problem.kind,
        "entry_point": problem.entry_point,
        "tests": [_test(problem.kind, each.input, each.output) for each in problem.tests],
        "reference": problem.reference,
    }


def _test(kind: str, call: str, expected: str) -> dict[str, str]:
    return {"check": call} if kind == "asserts" else {"input": call, "output": expected}


def main() -> None:
    """Write the file and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbpp", type=Path, required=True, help="rows of MBPP, the full set")
    parser.add_argument("--mbpp-plus", type=Path, required=True, help="MbppPlus.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    lines = [json.dumps(row(each)) for each in problems(options.mbpp, options.mbpp_plus)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} prompts: {options.out}")


if __name__ == "__main__":
    main()
