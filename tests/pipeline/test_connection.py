"""A run connects to Ray at the first need, and to a cluster before it downloads anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError

from ssd_ray import recipes
from ssd_ray.artifacts import manifests
from ssd_ray.artifacts.facts import RowFacts
from ssd_ray.errors import LastingError, UserError
from ssd_ray.pipeline import cluster_room, preflight
from ssd_ray.pipeline.cluster_room import Work
from ssd_ray.pipeline.run import Run
from ssd_ray.progress import LineProgress
from tests.support.machines import gpus, machine
from tests.support.staged import Double, without_ray

RECIPE = recipes.load("qwen3-4b-instruct")


def _at_once(_: Path) -> RowFacts:
    return RowFacts(rows=1)


def _steps(act: Callable[[Path], Any] = _at_once) -> list[Double]:
    prompts = Double(name="prompts", recipe=RECIPE, verb="render", chosen={}, act=act)
    common: dict[str, Any] = {"recipe": RECIPE, "chosen": {}, "act": act, "needs_ray": True}
    samples = Double(name="samples", verb="sample", inputs=(prompts,), **common)
    training = Double(name="checkpoint", verb="train", inputs=(samples,), **common)
    return [prompts, samples, Double(name="verdicts", verb="grade", inputs=(training,), **common)]


def _make(out: Path, steps: list[Double]) -> None:
    run = Run(RECIPE, out, LineProgress())
    closure = {step.name: step for step in steps[-1].closure()}
    run._steps = list(reversed(closure.values()))
    run.make("grade")


def test_grading_alone_asks_for_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    bare = machine(0, gpus=gpus(0, failure="Driver Not Loaded"))
    monkeypatch.setattr(preflight, "_on_cluster", lambda: False)
    monkeypatch.setattr(preflight, "read_machine", lambda: bare)
    steps = _steps()
    with pytest.raises(UserError, match="no GPU is visible"):
        _make(tmp_path, steps)
    for step in steps[-1].closure():
        if step.verb != "grade":
            manifests.make(tmp_path / step.name, step.identity, _at_once)
    _make(tmp_path, steps)
    assert (tmp_path / "verdicts" / "manifest.json").exists()


@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
def test_a_cluster_is_refused_before_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """A local Ray is compared with the run once the first step needs it."""
    events: list[str] = []
    without_ray(monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(preflight, "check", lambda *_, **__: events.append("machine"))

    def refuse(_recipe: object, work: Work, _say: object) -> None:
        events.append(f"cluster {work.draws} {work.trains} {work.grades}")
        raise UserError("no room")

    monkeypatch.setattr(cluster_room, "check_cluster", refuse)
    monkeypatch.setattr(Double, "check", lambda step, _: events.append(f"check {step.name}"))

    def act(out: Path) -> RowFacts:
        events.append(f"make {out.name}")
        return RowFacts(rows=1)

    with pytest.raises(UserError, match="no room"):
        _make(tmp_path, _steps(act))
    checks = [f"check {name}" for name in ("prompts", "samples", "checkpoint", "verdicts")]
    local = ["machine", *checks, "make prompts", "cluster False True True"]
    assert events == (["machine", "cluster False True True"] if address else local)


def test_a_gated_model_is_refused_on_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after an hour, on the pod of an engine."""

    def download(*_: object, **__: object) -> str:
        raise GatedRepoError("403", response=httpx.Response(403, request=httpx.Request("GET", "x")))

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(preflight, "check", lambda *_, **__: None)
    monkeypatch.setattr("ssd_ray.pipeline.run._Ray._connect", lambda _: None)
    monkeypatch.setattr("ssd_ray.pipeline.run._Ray.open_pools", pytest.fail)
    monkeypatch.setattr(Run, "_make", pytest.fail)
    with pytest.raises(LastingError, match=r"is gated, and the hub's token is missing .HF_TOKEN."):
        Run(RECIPE, tmp_path, LineProgress()).make("sample")
