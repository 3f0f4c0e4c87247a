r"""Take the figures out of a directory of students, into one file that is committed.

    python benchmarks/evidence/collect.py build/evidence/smollm2 \
        --out benchmarks/evidence/data/smollm2-135m.json

Reads the directory that `distributions.py` has filled. `page.py` writes docs/results.md from the
files of benchmarks/evidence/data.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssd_ray import extraction, recipes
from ssd_ray.artifacts.shards import read_rows
from ssd_ray.schema import Completion
from ssd_ray.statistics.means import ratio_interval

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import machine

CONFIDENCE = 0.95
_SIGNALS = (
    "gap_closed",
    "temperature_reached",
    "tail_removed",
    "lock_sharpening",
    "fork_spreading",
)
_DECODED = ("explained", "tokens_changed", "tokens_left", "tokens_explained")


def interval(value: dict[str, Any] | None) -> list[float] | None:
    """Return an interval as estimate, low, high."""
    return (
        None if value is None else [round(value[name], 6) for name in ("estimate", "low", "high")]
    )


def students(probe: Path) -> list[dict[str, Any]]:
    """Return the signals of all students of a probe, by domain."""
    document = json.loads((probe / "probe.json").read_text())
    return [
        {
            "name": student["name"],
            "signals": {
                each["domain"]: {
                    "problems": each["problems"],
                    "positions": each["positions"],
                    **{name: interval(each[name]) for name in _SIGNALS},
                }
                for each in student["signals"]
            },
            "decoding": student["decoding"]["setting"],
            **{
                name: interval(student["decoding"][name])
                for name in _DECODED
                if name in student["decoding"]
            },
        }
        for student in document["students"]
    ]


def loss_identity(probe: Path) -> dict[str, Any]:
    """Compare the loss of the drawn tokens with its expectation by Eq. 15, under the base."""
    document = json.loads((probe / "probe.json").read_text())
    columns = ["problem_id", "log_probability", "cross_entropy"]
    rows = pq.read_table(
        probe / "positions.parquet",
        columns=columns,
        filters=pc.field("model") == document["base"],
    )
    problem = rows["problem_id"].to_numpy(zero_copy_only=False)
    _, place = np.unique(problem, return_inverse=True)
    drawn = -rows["log_probability"].to_numpy().astype(float)
    expected = rows["cross_entropy"].to_numpy().astype(float)
    sizes = np.bincount(place).astype(float)
    gap = ratio_interval(np.bincount(place, drawn - expected), sizes, confidence=CONFIDENCE)
    return {
        "setting": document["settings"]["training"],
        "positions": len(drawn),
        "problems": len(sizes),
        "drawn": round(float(drawn.mean()), 6),
        "expected": round(float(expected.mean()), 6),
        "difference": interval(asdict(gap)),
    }


def sweep(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a sweep of distributions: rows, columns and their values."""
    document = json.loads(path.read_text())
    columns = {each["name"]: each["temperature"] for each in document["columns"]}
    trained = {each["name"]: each["t_train"] for each in document["rows"]}
    cells: dict[str, dict[str, Any]] = {}
    for metric in (each for every in document["sets"].values() for each in every):
        for cell in metric["cells"]:
            row = cells.setdefault(
                cell["cell"],
                {
                    "row": cell["row"],
                    "t_train": trained[cell["row"]],
                    "t_eval": columns.get(cell["column"]),
                    "problems": metric["problems"],
                    "values": {},
                },
            )
            row["values"][metric["metric"]] = interval(cell["value"])
    return list(cells.values())


def without_program(samples: Path) -> dict[str, int]:
    """Count the answers of a directory of samples without a program."""
    rows = list(read_rows(samples, Completion))
    missing = sum(extraction.extract_code(row.text) is None for row in rows)
    return {"answers": len(rows), "without_program": missing}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="directory of samples and students")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    directory = options.directory
    recipe = recipes.load(directory / "recipe.yaml")
    probes = sorted(directory.glob("probe-T=*"))
    figures = {
        "recipe": recipe.name,
        "model": recipe.model.source,
        "measured": date.today().isoformat(),
        "machine": machine(),
        "samples": {
            path.name: without_program(path) for path in sorted((directory / "samples").iterdir())
        },
        "students": students(directory / "probe"),
        "own": {path.name.removeprefix("probe-"): students(path)[0] for path in probes},
        "loss": [loss_identity(path) for path in probes],
        "sweeps": {
            name: sweep(directory / f"sweep-{name}.json") for name in ("truncated", "plain")
        },
        "train": {
            name: getattr(recipe.train, name)
            for name in ("steps", "global_batch_size", "learning_rate", "heldout_samples")
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
