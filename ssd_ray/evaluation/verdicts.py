"""A directory of verdicts in progress: graded keys, verdicts to grade again, facts.

The pool on Ray and the processes of `ssd-ray grade` fill a directory by the same rules. Reads
shards of verdicts. Deletes shards with errors of the machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ssd_ray.artifacts import manifests, shards, slices
from ssd_ray.artifacts.facts import Isolation, VerdictFacts
from ssd_ray.artifacts.shards import read_table
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.judging.outcomes import UNGRADABLE
from ssd_ray.evaluation.sandbox import levels
from ssd_ray.lcb_official import GRADER

SLICE_ROWS = 16
"""Completions in a slice, and so rows of a shard: the work that a crashed grader repeats."""


def graded_keys(out: Path) -> set[slices.Key]:
    """Return the keys with a verdict, and clear the way for the others; see `graded_shards`."""
    return {key for keys in graded_shards(out) for key in keys}


def graded_shards(out: Path) -> Iterator[list[slices.Key]]:
    """Yield the keys of each shard of verdicts, and clear the way for the others.

    - A shard with an `infrastructure_error` is deleted, and its completions are graded again.
    - Temporary files of crashed graders are deleted.
    """
    for partial in out.glob(".*.partial"):
        partial.unlink()
    for path in shards.shard_paths(out):
        table = read_table(path, ["prompt_id", "sample_index", "outcome"])
        prompt_ids, indices, outcomes = table.to_pydict().values()
        if "infrastructure_error" in outcomes:
            # A shard is the unit of work: its other rows come out the same when graded again.
            path.unlink()
        else:
            yield list(zip(prompt_ids, indices, strict=True))


def is_open(out: Path) -> bool:
    """Return True if complete verdicts hold errors of the machine.

    Grading again may settle those.
    """
    return (out / "manifest.json").exists() and bool(
        manifests.load_facts(out, VerdictFacts).infrastructure_errors
    )


def facts(spec: GradingSpec) -> VerdictFacts:
    """Return facts for the manifest: counts of outcomes and reasoning, rules, weakest sandbox.

    `infrastructure_errors` counts the errors of the machine. Errors of a problem are left out,
    because grading again would not settle them.
    """
    outcomes = Counter[str]()
    reasoning = Counter[str]()
    unsettled = 0
    for outcome, state, detail in shards.read_columns(spec.out, "outcome", "reasoning", "detail"):
        outcomes[outcome] += 1
        reasoning[state] += bool(state)
        unsettled += outcome == "infrastructure_error" and UNGRADABLE not in detail
    # Each grader recorded its machine's level. The weakest is the claim that holds for all rows.
    sandboxes = (spec.out / "sandbox").glob("*.json")
    reached = sorted((path.stem for path in sandboxes), key=levels.rank)
    weakest = reached[0] if reached else ""
    isolation = None
    if weakest:
        level = f"{weakest}: {levels.COVERS[weakest]}"
        isolation = Isolation(level=level, network=weakest != "L0")
    return VerdictFacts(
        rows=outcomes.total(),
        outcomes=dict(sorted(outcomes.items())),
        reasoning={state: reasoning[state] for state in sorted(reasoning) if state},
        infrastructure_errors=unsettled,
        profile=spec.rules.profile,
        official_grader=dict(GRADER) if spec.rules.profile == "lcb-compat" else None,
        sandbox_level=weakest,
        isolation=isolation,
    )
