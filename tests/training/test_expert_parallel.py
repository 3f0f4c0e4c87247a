"""Workers that divide experts train as workers with all of them do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ssd_ray.config import TrainConfig
from tests.support import engine_cases
from tests.support.reference_step import reference
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.real

TRAIN: dict[str, Any] = {
    "steps": 1,
    "global_batch_size": 8,
    "micro_batch_tokens": 80,
    "learning_rate": 1e-4,
    "min_learning_rate": 1e-4,
    "warmup_steps": 0,
    "max_grad_norm": 0.5,
    "dtype": "float32",
    "zero_stage": 3,
    "gradient_checkpointing": False,
    "loss_chunk_tokens": 16,
}
RELEASED = {
    "stage3_param_persistence_threshold": 0,
    "stage3_model_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 30_000,
    "reduce_bucket_size": 30_000,
}
AS_ON_A_GPU = {"accumulate_locally": False, "gradient_checkpointing": True, "packing": True}
STEP: dict[str, dict[str, Any]] = {
    "2 of 2 workers": {"train": {"expert_parallel_size": 2}},
    "2 of 2 workers, as on a GPU": {
        "train": {"expert_parallel_size": 2, **AS_ON_A_GPU},
        "zero": RELEASED,
    },
    "2 of 4 workers": {"train": {"expert_parallel_size": 2, "accumulate_locally": False}},
    "4 of 4 workers": {"train": {"expert_parallel_size": 4}},
}
BALANCED = {"router_aux_loss": 0.1}
ROUTER: dict[str, dict[str, Any]] = {
    "router loss, all experts": {"train": BALANCED},
    "router loss, 2 of 2 workers": {"train": {**BALANCED, "expert_parallel_size": 2}},
}
STEPS, FIRST, SECOND = 3, 1, 2
LONG = {
    "steps": STEPS,
    "learning_rate": 1e-3,
    "heldout_samples": 2,
    "evaluate_every": 1,
}
LAYOUTS: dict[str, list[tuple[int, int]]] = {
    "all experts": [(2, 1)],
    "2 of 2": [(2, 2)],
    "bfloat16, 2 of 2": [(2, 2)],
    "bfloat16, 2 of 2, interrupted": [(2, 2), (2, 2), (2, 2)],
    "2 of 2, then 1, then 2 of 4": [(2, 2), (1, 1), (4, 2)],
    "2 of 4, then 4 of 4, then all": [(4, 2), (4, 4), (2, 1)],
}
"""Workers, and the workers that divide experts, from the first step, and from `FIRST` and `SECOND`
on."""
SMALL = {"sub_group_size": 20_000}


def _world(name: str) -> int:
    return 4 if "of 4" in name else 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_cases.write_examples(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), "qwen3_moe")


@pytest.fixture(scope="module")
def trained(dataset: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    rounds: list[dict[int, dict[str, Any]]] = [{2: {}, 4: {}}, {}, {}]
    for name, case in (STEP | ROUTER).items():
        rounds[0][_world(name)][name] = {**case, "model": str(model)}
    for name, layouts in LAYOUTS.items():
        stops = [FIRST, SECOND, STEPS] if len(layouts) > 1 else [STEPS]
        for cases, (workers, size), stop in zip(rounds, layouts, stops, strict=False):
            cases.setdefault(workers, {})[name] = {
                "train": {
                    **LONG,
                    "expert_parallel_size": size,
                    "dtype": "bfloat16" if "bfloat16" in name else "float32",
                },
                "model": str(model),
                "zero": SMALL,
                "stop": stop,
            }
    engine_cases.run_groups(rounds, out, dataset=str(dataset), train=TRAIN)
    return out


def _log(out: Path, name: str = "loss.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


@pytest.mark.parametrize("name", STEP)
def test_one_step_equals_that_of_the_reference(
    name: str, trained: Path, dataset: Path, model: Path
) -> None:
    train = TrainConfig(**{**TRAIN, **STEP[name]["train"]})
    loss, norm, network = reference(model, dataset, train)
    (line,) = _log(trained / name)
    assert line["loss"] == pytest.approx(loss, abs=1e-6)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert line["grad_norm"] > train.max_grad_norm
    after, before = (
        load_file(trained / name / "model.safetensors"),
        load_file(model / "model.safetensors"),
    )
    assert {key: (value.shape, value.dtype) for key, value in after.items()} == {
        key: (value.shape, value.dtype) for key, value in before.items()
    }
    loaded = AutoModelForCausalLM.from_pretrained(trained / name).state_dict()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(loaded[key], value, atol=1e-5, rtol=0)
    experts = [key for key in after if ".experts." in key]
    assert len(experts) == 3 * 3 * 8
    moved = [float((after[key] - before[key]).abs().max()) for key in experts]
    assert min(moved) > 5e-5


def test_the_router_loss_is_that_of_whole_layers(trained: Path) -> None:
    (whole,), (divided,) = (_log(trained / name) for name in ROUTER)
    (plain,) = _log(trained / "2 of 2 workers")
    assert divided["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert divided["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
    assert divided["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-4)


def test_load_and_held_out_measures_are_those_of_whole_layers(trained: Path) -> None:
    whole, divided = (_log(trained / name) for name in ("all experts", "2 of 2"))
    for ours, theirs in zip(divided, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["expert_imbalance"] == pytest.approx(theirs["expert_imbalance"], abs=0.05)
    assert divided[0]["expert_imbalance"] == whole[0]["expert_imbalance"]
    measures = [_log(trained / name, "heldout.jsonl") for name in ("2 of 2", "all experts")]
    for ours, theirs in zip(*measures, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert measures[0][-1]["kl_to_base"] > 1e-3


def test_the_same_workers_go_on_bit_for_bit(trained: Path) -> None:
    names = ("step", "loss", "grad_norm", "expert_imbalance", "tokens")
    cut, undisturbed = (
        [[line[key] for key in names] for line in _log(trained / run)]
        for run in ("bfloat16, 2 of 2, interrupted", "bfloat16, 2 of 2")
    )
    assert cut == undisturbed
    losses = [line["loss"] for line in _log(trained / "2 of 2")]
    assert [line[1] for line in cut] == pytest.approx(losses, rel=0.02)
    ours, theirs = (
        load_file(trained / run / "model.safetensors")
        for run in ("bfloat16, 2 of 2, interrupted", "bfloat16, 2 of 2")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # The model of float32 is exported from the master weights.
    assert {value.dtype for value in ours.values()} == {torch.float32}


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "then" in name])
def test_another_division_restores_every_saved_bit(name: str, trained: Path) -> None:
    for step in (FIRST, SECOND):
        saved, restored = (
            torch.load(trained / name / f"{what}-{step}.pt") for what in ("saved", "restored")
        )
        assert saved.pop("steps") == restored.pop("steps") == {float(step)}
        decays = {frozenset(state.pop("weight_decays")) for state in (saved, restored)}
        assert decays == {frozenset({0.1, 0.0})}
        assert saved.keys() == restored.keys()
        for key, whole in saved.items():
            for ours, theirs in zip(restored[key], whole, strict=True):
                assert torch.equal(ours, theirs), key
                assert ours.abs().max() > 0
    losses, expected = ([line["loss"] for line in _log(trained / run)] for run in (name, "2 of 2"))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]
