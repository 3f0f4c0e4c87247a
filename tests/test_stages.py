"""What a run keeps to between its stages, whatever changes outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from ssd_ray import recipes
from ssd_ray.progress import LineProgress
from ssd_ray.stages import Stages


def test_a_run_stays_with_the_commit_that_it_got_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    head = ["first"]

    def download(source: str, revision: str | None, **_: Any) -> str:
        asked.append(revision)
        return str(tmp_path / "snapshots" / (revision or head[0]))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    recipe = recipes.load("qwen3-4b-instruct")
    assert Stages(recipe, tmp_path / "run", LineProgress())._directory.name == "first"
    head[0] = "second"
    assert Stages(recipe, tmp_path / "run", LineProgress())._directory.name == "first"
    assert Stages(recipe, tmp_path / "other", LineProgress())._directory.name == "second"
    pinned = recipes.load("qwen3-4b-instruct", ["model.revision=chosen"])
    assert Stages(pinned, tmp_path / "run", LineProgress())._directory.name == "chosen"
    assert asked == [None, "first", None, "chosen"]
