"""Held-out samples: their choice, their absence from training, and their measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd_ray.artifacts.shards import write_shard
from ssd_ray.config import Decoding
from ssd_ray.errors import UserError
from ssd_ray.schema import Example
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.observe.heldout import cut_held_out, read_held_out, split
from tests.support.engine_cases import run_groups
from tests.support.sample_rows import write_sequences
from tests.support.tiny import tiny_model

SAMPLING = Decoding(temperature=1.3, top_k=20, top_p=0.9)
SEED = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen prompts with two samples each, in two shards."""
    return write_sequences(tmp_path_factory.mktemp("dataset"), samples=2)


def test_held_out_prompts_and_the_rest_are_the_data_set(dataset: Path) -> None:
    whole = Examples(dataset)
    trained, held = split(whole, 5, SEED)
    assert held is not None
    assert len(held) == 6  # five asked for, two samples a prompt
    assert not set(trained.prompt_ids()) & set(held.prompt_ids())
    names = [part.name(index) for part in (trained, held) for index in range(len(part))]
    assert sorted(names) == sorted(whole.name(index) for index in range(30))
    for part in (trained, held):
        for index in range(len(part)):
            assert (
                len(part.row(index))
                == part.lengths[index]
                == part.num_prompt_tokens[index] + part.response_lengths[index]
            )
            place = next(place for place in range(30) if whole.name(place) == part.name(index))
            assert np.array_equal(part.row(index), whole.row(place))


def test_seed_and_prompts_alone_decide_which_are_held_out(dataset: Path) -> None:
    first, again = (split(Examples(dataset), 6, SEED)[1] for _ in range(2))
    other = split(Examples(dataset), 6, SEED + 1)[1]
    fewer = split(Examples(dataset), 4, SEED)[1]
    assert first is not None
    assert again is not None
    assert other is not None
    assert fewer is not None
    assert first.prompt_ids() == again.prompt_ids() != other.prompt_ids()
    assert set(fewer.prompt_ids()) < set(first.prompt_ids())
    assert split(Examples(dataset), 0, SEED)[1] is None
    with pytest.raises(UserError, match="heldout_samples 30 leaves nothing of 30 sequences"):
        split(Examples(dataset), 30, SEED)


def test_measurements_after_the_resume_state_are_cut(tmp_path: Path) -> None:
    (tmp_path / "heldout.jsonl").write_text('{"step": 0}\n{"step": 4}\n{"step": 8}\n{"st')
    assert [line["step"] for line in read_held_out(tmp_path)] == [0, 4, 8]
    cut_held_out(tmp_path, 4)
    assert [line["step"] for line in read_held_out(tmp_path)] == [0, 4]
    cut_held_out(tmp_path, 0)  # without a state the base is measured again
    assert read_held_out(tmp_path) == []


def test_a_part_without_a_response_is_refused(tmp_path: Path) -> None:
    def rows(masked: set[int]) -> Examples:
        out = tmp_path / str(sorted(masked))
        made = [
            Example(
                prompt_id=f"p{index}",
                sample_index=0,
                input_ids=(5, 6, 7),
                num_prompt_tokens=1,
                masked=index in masked,
            )
            for index in range(3)
        ]
        write_shard(out, "part-00000", made, Example)
        return Examples(out)

    held = split(rows(set()), 1, SEED)[1]
    assert held is not None
    (first,) = (int(prompt.removeprefix("p")) for prompt in held.prompt_ids())
    with pytest.raises(
        UserError,
        match="heldout_samples 1 holds out no token that counts, only masked sequences: raise it",
    ):
        split(rows({first}), 1, SEED)
    with pytest.raises(
        UserError, match="heldout_samples 1 leaves nothing of 3 sequences to train on"
    ):
        split(rows({0, 1, 2} - {first}), 1, SEED)


TRAIN: dict[str, Any] = {
    "steps": 6,
    "global_batch_size": 8,
    "micro_batch_tokens": 80,
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "warmup_steps": 1,
    "dtype": "float32",
    "checkpoint_every": 100,
    "gradient_checkpointing": True,
    "loss_chunk_tokens": 16,
    "heldout_samples": 5,
    "evaluate_every": 4,
}
CASES: dict[str, dict[str, Any]] = {
    "ZeRO-0": {"zero_stage": 0},
    "ZeRO-2, packed": {"zero_stage": 2, "packing": True},
    "ZeRO-3, adapters": {"zero_stage": 3, "lora": {"rank": 2}},
    # Last: it wraps transformers' attention for the rest of the process.
    "ZeRO-3, sequence parallel 2": {"zero_stage": 3, "sequence_parallel_size": 2},
}


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """Train tiny models on two workers.

    - `often` and `rarely` are measured every fourth step, and at the first and the last.
    - The cases train one step.
    """
    folder = tmp_path_factory.mktemp("runs")
    base, llama = tiny_model(folder / "qwen3", "qwen3"), tiny_model(folder / "llama", "llama")
    long = {
        name: {
            "train": {"evaluate_every": every},
            "model": str(base),
            "sampling": SAMPLING.model_dump(),
        }
        for name, every in (("often", 4), ("rarely", 100))
    }
    one_step = {"steps": 1, "evaluate_every": 1, "trackers": []}
    short = {
        name: {"train": one_step | train, "model": str(llama)} for name, train in CASES.items()
    }
    run_groups([{2: long | short}], folder, dataset=str(dataset), train=TRAIN)
    return base, {name: folder / name for name in long | short}


def _measured(base: Path, trained: Path, dataset: Path) -> dict[str, float | None]:
    """Return the measures by plain transformers, from full logits of one sequence at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    from ssd_ray.training.observe.distributions import measure, summarize

    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (trained, base)
    )
    held, expected = split(Examples(dataset), 5, SEED)[1], []
    assert held is not None
    for row in range(len(held)):
        ids, start = torch.tensor(held.row(row).astype("int64")), int(held.num_prompt_tokens[row])
        with torch.no_grad():
            logits, base_logits = (
                model(input_ids=ids[None]).logits[0, start - 1 : -1] for model in (ours, theirs)
            )
        expected.append(measure(logits, base_logits, ids[start:], SAMPLING))
    tokens = sum(map(len, expected))
    return {"tokens": tokens, **summarize(torch.cat(expected).sum(0), tokens)}


@pytest.mark.real
def test_held_out_measures_match_both_models(
    runs: tuple[Path, dict[str, Path]], dataset: Path
) -> None:
    model, made = runs
    lines = read_held_out(made["often"])
    assert [line["step"] for line in lines] == [0, 4, 6]
    for line, trained in ((lines[0], model), (lines[-1], made["often"])):
        expected = _measured(model, trained, dataset)
        for name, value in expected.items():
            assert line[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
    for name in ("kl_to_base", "alignment", "gap_closed", "tail_removed"):
        assert lines[0][name] == pytest.approx(0, abs=1e-9), name
        assert lines[-1][name] != 0, name
    assert lines[0]["temperature_reached"] == pytest.approx(1, abs=1e-9)
    assert lines[-1]["kl_to_base"] > 1e-3
    assert lines[0]["floor"] == lines[-1]["floor"]


@pytest.mark.real
def test_measuring_does_not_change_the_trained_weights(runs: tuple[Path, dict[str, Path]]) -> None:
    import torch
    from safetensors.torch import load_file

    _, made = runs
    often, rarely = (load_file(made[name] / "model.safetensors") for name in ("often", "rarely"))
    assert all(torch.equal(often[name], rarely[name]) for name in often)
    assert [line["step"] for line in read_held_out(made["rarely"])] == [0, 6]


@pytest.mark.real
def test_no_step_sees_a_held_out_sample(runs: tuple[Path, dict[str, Path]], dataset: Path) -> None:
    lines = [
        json.loads(line) for line in (runs[1]["often"] / "loss.jsonl").read_text().splitlines()
    ]
    trained, _ = split(Examples(dataset), 5, SEED)
    assert sum(line["tokens"] for line in lines[:3]) == int(
        trained.lengths.sum()
    )  # 3 steps of 8 are the 24 rows once
    assert [line["epoch"] for line in lines] == pytest.approx(
        [8 * (step + 1) / 24 for step in range(6)]
    )
    for line in lines:
        assert line["tokens_per_s"] == pytest.approx(line["tokens"] / line["seconds"], rel=0.01)
        assert line["mfu"] is None
        assert line["peak_gib"] >= line["memory_gib"] > 0.1


@pytest.mark.real
def test_tensorboard_holds_the_same_curves(runs: tuple[Path, dict[str, Path]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs[1]["often"] / "tensorboard" / "often")).Reload()
    lines = [
        json.loads(line) for line in (runs[1]["often"] / "loss.jsonl").read_text().splitlines()
    ]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(
        [line["loss"] for line in lines]
    )
    assert [event.step for event in events.Scalars("heldout/nll")] == [0, 4, 6]
    assert "train/mfu" not in events.Tags()["scalars"]


def _require_near(
    name: str, line: dict[str, float | None], expected: dict[str, float | None], tolerance: float
) -> None:
    """Require equal measures; one without a meaning, such as a gap of q to itself, is None."""
    assert line.keys() == expected.keys()
    for measure, value in line.items():
        reference = expected[measure]
        if value is None or reference is None:
            assert value is reference, (name, measure)
            continue
        near = pytest.approx(reference, rel=tolerance, abs=tolerance / 100)
        assert value == near, (name, measure)


@pytest.mark.real
def test_measures_do_not_depend_on_how_training_is_divided(
    runs: tuple[Path, dict[str, Path]],
) -> None:
    lines = {name: read_held_out(runs[1][name]) for name in CASES}
    for name, (base, trained) in lines.items():
        assert base["kl_to_base"] == pytest.approx(0, abs=1e-9)
        assert trained["kl_to_base"] > 0
        _require_near(name, base, lines["ZeRO-0"][0], 1e-4)
        if "adapters" not in name:  # all others train the same step
            _require_near(name, trained, lines["ZeRO-0"][1], 1e-3)
