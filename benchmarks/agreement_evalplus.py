r"""Our verdicts against EvalPlus's own, program by program, with every disagreement listed.

    python benchmarks/agreement_evalplus.py --problems HumanEvalPlus.jsonl.gz \
        --verdicts eval_results.json ... --out figures.json

Problems are EvalPlus's release files. Verdicts are the result files of its evaluator for the
same release. Programs that either side stopped for time are counted but left out of the
rates. Writes the figures and the machine as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from machine import machine

from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.progress import LineProgress
from ssd_ray.standalone.grade_files import Job, grade_files

TIME = {"time_limit", "timeout"}


def theirs(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return EvalPlus's rows by (task, index)."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    results = json.loads(path.read_text())["eval"]
    for task, answers in results.items():
        rows |= {(task, index): answer for index, answer in enumerate(answers)}
    return rows


def compare(problems: Path, path: Path, directory: Path, workers: int) -> dict[str, Any]:
    """Return counts of agreement for base and plus tests, and the disagreements."""
    known = theirs(path)
    completions = directory / f"{path.stem}.jsonl"
    lines = [
        json.dumps({"task_id": task, "index": index, "code": row["solution"]})
        for (task, index), row in known.items()
    ]
    completions.write_text("\n".join(lines) + "\n")
    rules = Rules(limits=Limits(time_s=1, memory_mib=4096, output_kib=65536))
    out = directory / path.stem
    grade_files(
        Job(problems=problems, completions=completions, out=out, rules=rules, workers=workers),
        LineProgress(),
    )
    counts = {"base": [0, 0, 0], "plus": [0, 0, 0]}
    disagreements = []
    for row in pq.read_table(out / "verdicts.parquet").to_pylist():
        other = known[row["problem_id"], row["index"]]
        ours = {"base": row["outcome_base"], "plus": row["outcome"]}
        for group, (agreed, differed, timed) in counts.items():
            status = other["base_status"] if group == "base" else other["plus_status"]
            status = "fail" if group == "plus" and other["base_status"] != "pass" else status
            if ours[group] in TIME or status in TIME:
                counts[group] = [agreed, differed, timed + 1]
            elif (ours[group] == "accepted") == (status == "pass"):
                counts[group] = [agreed + 1, differed, timed]
            else:
                counts[group] = [agreed, differed + 1, timed]
                disagreements.append(
                    {
                        "task": row["problem_id"],
                        "tests": group,
                        "ours": ours[group],
                        "theirs": status,
                        "detail": row["detail"],
                    }
                )
    return {
        **{
            group: dict(zip(("agreed", "differed", "timed_out"), numbers, strict=True))
            for group, numbers in counts.items()
        },
        "disagreements": disagreements,
    }


def main() -> None:
    """Compare every file; print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--verdicts", type=Path, nargs="+", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        for path in arguments.verdicts:
            figures[path.name] = compare(
                arguments.problems, path, Path(directory), arguments.workers
            )
            for group in ("base", "plus"):
                print(f"{path.name} {group}: {figures[path.name][group]}")
            for row in figures[path.name]["disagreements"]:
                print(f"  {row}")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"files": figures, "machine": machine()}, indent=1) + "\n"
        )
    sys.exit(any(each["disagreements"] for each in figures.values()))


if __name__ == "__main__":
    main()
