"""Fingerprints of shipped recipes stay byte-equal: existing runs resume.

`python tests/test_fingerprints.py` writes the golden file. Every change of it affects all
users: a stage's revision was raised, or a choice was added (docs/design.md).
"""

from __future__ import annotations

import json
from pathlib import Path

from ssd_ray import recipes
from ssd_ray.pipeline import graph

GOLDEN = Path(__file__).parent / "golden" / "fingerprints.json"
VARIANTS = {
    "quickstart, all controls": [
        "sample.top_k=20",
        "evaluate.controls=[teacher, naive, accepted]",
        "evaluate.profiles=[strict, lcb-compat]",
        "evaluate.sweep=[0.5, 1.0]",
        "prompts.contamination=drop",
    ],
    "quickstart, optional choices": [
        "model.end_tokens=[<|endoftext|>]",
        "prompts.template_date=2026-01-01",
        "prompts.over_length=truncate-left",
    ],
}
"""Overrides for choices that the quick start leaves at their defaults."""


def fingerprints() -> dict[str, dict[str, str]]:
    """Return the fingerprint of every artifact, by recipe."""
    cases = {name: recipes.load(name) for name in recipes.shipped()}
    cases |= {name: recipes.load("quickstart", overrides) for name, overrides in VARIANTS.items()}
    return {
        name: {step.name: step.identity.fingerprint for step in graph.steps(recipe)}
        for name, recipe in cases.items()
    }


def test_fingerprints_are_those_of_existing_runs() -> None:
    assert fingerprints() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    # Sorted, so that only changed fingerprints appear as changes of the file.
    GOLDEN.write_text(json.dumps(fingerprints(), indent=1, sort_keys=True) + "\n")
