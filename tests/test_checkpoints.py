"""What a checkpoint leaves on disk: states that are whole, and a model directory that says how it is to be decoded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssd_ray.config import Decoding
from ssd_ray.training import checkpoints, resharding


def _engine(workers: int) -> Any:
    """An engine that writes a shard for each worker, as DeepSpeed's does."""

    def save_checkpoint(folder: str, tag: str, **_: Any) -> None:
        (Path(folder) / tag).mkdir(exist_ok=True)
        for rank in range(workers):
            (Path(folder) / tag / f"shard-{rank}.pt").write_text(f"of {workers}")

    return SimpleNamespace(global_rank=0, world_size=workers, save_checkpoint=save_checkpoint, zero_optimization_stage=lambda: 2)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)


def test_a_state_is_whole_or_absent_and_only_the_latest_stays(tmp_path: Path) -> None:
    (tmp_path / "resume").mkdir()
    assert checkpoints.latest(tmp_path) == (0, {})
    checkpoints.ask_to_leave(tmp_path)
    checkpoints.save(_engine(2), tmp_path, 5)
    assert not checkpoints.asked_to_leave(tmp_path)
    (tmp_path / "resume" / ".step-7.partial").mkdir()
    assert checkpoints.latest(tmp_path) == (5, {"step": 5, "num_workers": 2, "zero_stage": 2})
    checkpoints.save(_engine(2), tmp_path, 9)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-9"]


def test_half_a_state_of_more_workers_leaves_nothing_in_the_state_of_fewer(tmp_path: Path) -> None:
    half = tmp_path / "resume" / ".step-5.partial"
    half.mkdir(parents=True)
    (half / "shard-1.pt").write_text("cut off")
    checkpoints.save(_engine(1), tmp_path, 5)
    assert sorted(path.name for path in (tmp_path / "resume" / "step-5").iterdir()) == ["shard-0.pt", "state.json"]


@pytest.mark.parametrize(("workers", "stage", "read"), [(2, 2, "as it is"), (1, 2, "anew"), (2, 3, "anew")])
def test_shards_are_put_together_anew_for_other_workers_or_another_stage(
    workers: int, stage: int, read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resume").mkdir()
    checkpoints.save(_engine(2), tmp_path, 5)
    engine, found = _engine(workers), []
    engine.module, engine.zero_optimization = torch.nn.Linear(1, 1), lambda: True
    engine.zero_optimization_stage = lambda: stage
    engine.load_checkpoint = lambda *_, tag, **__: found.append(("as it is", tag))
    monkeypatch.setattr(resharding, "load", lambda _, directory, wrote: found.append(("anew", directory.name)) or wrote)
    assert checkpoints.restore(engine, tmp_path) == 5
    assert found == [(read, "step-5")]


@pytest.mark.parametrize(
    ("decoding", "stated"),
    [
        (Decoding(temperature=1.1, top_k=20, top_p=0.8), {"temperature": 1.1, "top_k": 20, "top_p": 0.8}),
        (Decoding(), {"temperature": 1.0, "top_k": 0, "top_p": 1.0}),
        (Decoding(temperature=0, top_k=20), {"temperature": 1.0, "top_k": 1, "top_p": 1.0}),
    ],
)
def test_the_model_says_how_it_is_to_be_decoded(decoding: Decoding, stated: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GenerationConfig

    base = {"eos_token_id": [2, 5], "pad_token_id": 0, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05}
    (tmp_path / "generation_config.json").write_text(json.dumps(base))
    checkpoints.state_decoding(tmp_path, decoding)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found == {"eos_token_id": [2, 5], "pad_token_id": 0, "do_sample": True, **stated}
    read = GenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(read, name) for name in stated} == stated
    read.save_pretrained(tmp_path)  # refuses what it holds for inconsistent


def test_a_base_without_generation_settings_gets_some(tmp_path: Path) -> None:
    checkpoints.state_decoding(tmp_path, Decoding(temperature=0.7))
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.7


def test_what_an_earlier_run_recorded_beside_its_model_is_not_taken_over(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    for name in ("tokenizer.json", "manifest.json", "fingerprint.json", "timing.json", "training.json", "loss.jsonl"):
        (base / name).write_text("{}")
    checkpoints._copy_others(base, out)
    assert [path.name for path in out.iterdir()] == ["tokenizer.json"]
