"""Steps of one model are drawn together, before anything else needs its devices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import recipes
from ssd_ray.artifacts import manifests
from ssd_ray.artifacts.facts import RowFacts
from ssd_ray.pipeline import graph
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.step import Step
from ssd_ray.progress import LineProgress
from tests.support.staged import Double, without_ray

RECIPE = recipes.load("quickstart")


def _double(name: str, act: Callable[[Path], Any], *inputs: Step, **options: Any) -> Double:
    verb = options.pop("verb", "generate")
    return Double(name=name, recipe=RECIPE, verb=verb, chosen={}, act=act, inputs=inputs, **options)


def _at_once(_: Path) -> RowFacts:
    return RowFacts(rows=1)


def _run(out: Path, *steps: Step) -> Run:
    run = Run(RECIPE, out, LineProgress())
    run._steps = list(steps)
    return run


def test_arms_of_the_base_come_before_any_training() -> None:
    choices = ["evaluate.sweep=[0.5, 1.0]", "evaluate.profiles=[strict, lcb-compat]"]
    controls = "evaluate.controls=[teacher, naive, accepted]"
    steps = graph.steps(recipes.load("quickstart", [*choices, controls, "sample.top_k=20"]))
    names = [step.name for step in steps]
    models = {step.name: step.engines for step in steps if step.engines is not None}
    first_training = min(names.index(name) for name in names if name.startswith("checkpoint"))
    for name, model in models.items():
        assert (names.index(name) < first_training) == (model == "base")
    assert {models[name] for name in ("samples", "samples-naive", "generations/teacher")} == {
        "base"
    }
    assert models["generations/ssd@T=0.5"] == "checkpoint"
    assert models["generations/naive@T=0.5"] == "checkpoint-naive"
    assert set(models.values()) == {
        "base",
        "checkpoint",
        "checkpoint-naive",
        "checkpoint-accepted",
    }
    graded = [name for name in names if name.startswith("verdicts") and "/base" in name]
    assert max(map(names.index, graded)) < first_training
    for step in steps:
        before = {before.name for before in (*step.inputs, *step.after)}
        assert all(names.index(name) < names.index(step.name) for name in before)


def test_steps_of_a_model_are_drawn_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for all of them to have begun, and the verdicts for the last of the answers."""
    without_ray(monkeypatch)
    met = threading.Barrier(4)

    def meet(_: Path) -> RowFacts:
        met.wait(30)
        return RowFacts(rows=1)

    prompts = _double("prompts", _at_once, verb="render")
    drawn = [
        _double(name, meet, prompts, needs_ray=True, engines="base")
        for name in ("samples", "generations/a", "generations/b")
    ]
    verdicts = _double("verdicts/b", meet, drawn[2], verb="grade", needs_ray=True, follows=drawn[2])
    report = _double("report", _at_once, *drawn, verdicts, verb="report")
    run = _run(tmp_path, prompts, *drawn, verdicts, report)
    run.make("report")
    assert all(state == "complete" for _, state in run.states())


def test_steps_of_another_model_or_with_open_inputs_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    begun: list[str] = []

    def note(out: Path) -> RowFacts:
        begun.append(out.name)
        return RowFacts(rows=1)

    def alone(out: Path) -> RowFacts:
        note(out)
        assert begun == ["samples"]
        return RowFacts(rows=1)

    prompts = _double("prompts", _at_once, verb="render")
    samples = _double("samples", alone, prompts, needs_ray=True, engines="base")
    checkpoint = _double("checkpoint", note, samples, verb="train", needs_ray=True)
    later = _double("generations/later", note, prompts, checkpoint, needs_ray=True, engines="base")
    student = _double(
        "generations/student", note, prompts, checkpoint, needs_ray=True, engines="checkpoint"
    )
    report = _double("report", note, later, student, verb="report")
    _run(tmp_path, prompts, samples, checkpoint, later, student, report).make("report")
    assert begun == ["samples", "checkpoint", "later", "student", "report"]


def test_a_run_announces_the_steps_that_engines_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    prompts = _double("prompts", _at_once, verb="render")
    drawn = [
        _double(name, _at_once, prompts, needs_ray=True, engines=model)
        for name, model in (
            ("samples", "base"),
            ("generations/arm", "base"),
            ("generations/ssd", "checkpoint"),
        )
    ]
    report = _double("report", _at_once, *drawn, verb="report")
    run = _run(tmp_path, prompts, *drawn, report)
    manifests.make(tmp_path / "prompts", prompts.identity, _at_once)
    manifests.make(tmp_path / "samples", drawn[0].identity, _at_once)
    announced: list[tuple[str, str]] = []
    monkeypatch.setattr(
        run._context.engines, "expect", lambda model, stage: announced.append((model, stage))
    )
    run.make("report")
    assert announced == [("base", "generations/arm"), ("checkpoint", "generations/ssd")]
