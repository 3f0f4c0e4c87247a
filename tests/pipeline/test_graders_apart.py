"""A run with graders apart announces its orders, and copies the tokenizer for them."""

from __future__ import annotations

import json
from pathlib import Path

from ssd_ray import recipes
from ssd_ray.evaluation import orders
from ssd_ray.models import answers
from ssd_ray.pipeline import graph
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.grading import announce
from ssd_ray.progress import LineProgress
from ssd_ray.reasoning import ReasoningFormat

APART = "cluster.graders=apart"


def test_the_place_of_graders_changes_no_fingerprint() -> None:
    here, apart = (
        {step.name: step.identity.fingerprint for step in graph.steps(recipes.load(*arguments))}
        for arguments in (("quickstart", []), ("quickstart", [APART]))
    )
    assert here == apart


def test_a_run_announces_its_orders_and_makes_their_mounts(tmp_path: Path) -> None:
    for overrides in ([], [APART]):
        recipe = recipes.load("quickstart", overrides)
        steps = graph.steps(recipe)
        announce(steps, RunContext(recipe, tmp_path, LineProgress()))
        assert orders.announced(tmp_path) == (
            {
                step.name: step.identity.fingerprint
                for step in steps
                if step.name.startswith("verdicts/")
            }
            if overrides
            else None
        )
    assert {path.name for path in tmp_path.iterdir()} == set(orders.MOUNTED)


def test_grading_apart_needs_no_ray() -> None:
    needs = {
        override: {
            step.name
            for step in graph.steps(recipes.load("quickstart", [override]))
            if step.needs_ray and step.verb == "grade"
        }
        for override in (APART, "cluster.graders=ray")
    }
    assert needs == {APART: set(), "cluster.graders=ray": {"verdicts/base", "verdicts/ssd"}}


def test_graders_get_a_copy_of_the_tokenizer_if_they_need_one(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("tokenizer.json", "config.json", "merges.txt"):
        (model / name).write_text(json.dumps(name))
    (model / "model.safetensors").write_bytes(b"weights")
    prompts = tmp_path / "eval-prompts"
    prompts.mkdir()
    plain = ReasoningFormat(tokenizer=model)
    assert answers.for_graders(plain, prompts).tokenizer is None
    marked = ReasoningFormat(special={7: "</think>"}, tokenizer=model)
    for _ in range(2):
        assert answers.for_graders(marked, prompts).tokenizer == prompts / "tokenizer"
    assert [path.name for path in prompts.iterdir()] == ["tokenizer"]
    copied = {path.name for path in (prompts / "tokenizer").iterdir()}
    assert copied == {"tokenizer.json", "config.json", "merges.txt"}
