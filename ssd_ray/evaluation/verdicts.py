"""A directory of verdicts that is being filled: what is graded in it, what has to be graded again, what it says of itself.

Both that fill one, the pool on Ray and the worker processes of the stand-alone door, do so by these rules. Reads shards of
verdicts, and deletes those that a failing machine spoilt.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import manifests, shards, slices
from ssd_ray.artifacts.shards import read_table
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.judging.outcomes import UNGRADABLE
from ssd_ray.evaluation.sandbox import levels
from ssd_ray.lcb_official import GRADER

SLICE_ROWS = 16
"""Completions in a slice: what a dead grader repeats, and the rows of a verdict shard."""


def graded_keys(out: Path) -> set[slices.Key]:
    """The keys of what is graded. Shards in which the machine failed, and files of dead graders, are deleted: they are redone."""
    for partial in out.glob(".*.partial"):
        partial.unlink()
    keys: set[slices.Key] = set()
    for path in shards.shard_paths(out):
        table = read_table(path, ["prompt_id", "sample_index", "outcome"])
        prompt_ids, indices, outcomes = table.to_pydict().values()
        if "infrastructure_error" in outcomes:
            path.unlink()
        else:
            keys.update(zip(prompt_ids, indices, strict=True))
    return keys


def is_open(out: Path) -> bool:
    """Whether whole verdicts have any that only a failing machine is to blame for, so that grading again may settle them."""
    return (out / "manifest.json").exists() and bool(
        manifests.load(out).facts["infrastructure_errors"]
    )


def facts(order: GradingSpec) -> dict[str, Any]:
    """Return rows, outcomes, reasoning, errors that grading again may settle, and the weakest sandbox of any grader."""
    outcomes, reasoning = Counter[str](), Counter[str]()
    unsettled = 0
    for outcome, state, detail in shards.read_columns(order.out, "outcome", "reasoning", "detail"):
        outcomes[outcome] += 1
        reasoning[state] += bool(state)
        unsettled += outcome == "infrastructure_error" and UNGRADABLE not in detail
    found = sorted((path.stem for path in (order.out / "sandbox").glob("*.json")), key=levels.rank)
    weakest = found[0] if found else ""
    return {
        "rows": outcomes.total(),
        "outcomes": dict(sorted(outcomes.items())),
        "reasoning": {state: reasoning[state] for state in sorted(reasoning) if state},
        "infrastructure_errors": unsettled,
        "profile": order.rules.profile,
        **({"official_grader": dict(GRADER)} if order.rules.profile == "lcb-compat" else {}),
        "sandbox_level": weakest,
        "isolation": {"level": f"{weakest}: {levels.COVERS[weakest]}", "network": weakest != "L0"}
        if weakest
        else None,
    }
