"""An interrupted run continues exactly, also with another number of workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssd_ray.planner.states import state_bytes
from tests.support import engine_cases
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.real

STEPS, FIRST, SECOND = 9, 3, 6
TRAIN: dict[str, Any] = {
    "steps": STEPS,
    "global_batch_size": 6,
    "micro_batch_tokens": 80,
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "warmup_steps": 2,
    "max_grad_norm": 0.5,
    "dtype": "float32",
    "gradient_checkpointing": False,
    "loss_chunk_tokens": 16,
    "trackers": [],
}
SMALL = {
    "sub_group_size": 20_000
}  # ZeRO-3 updates weights in pieces of this many elements, cut from a worker's shard
CASES: dict[str, dict[str, Any]] = {
    "ZeRO-0": {"train": {"zero_stage": 0}},
    # The one worker in between may train at another stage.
    "ZeRO-1, then 3": {"train": {"zero_stage": 1}, "then": {"zero_stage": 3}, "zero": SMALL},
    "ZeRO-2": {"train": {"zero_stage": 2}},
    "ZeRO-3": {"train": {"zero_stage": 3}, "zero": SMALL},
    "ZeRO-3, LoRA": {"train": {"zero_stage": 3, "lora": {"rank": 3}}, "zero": SMALL},
    "ZeRO-2, then 3, LoRA": {
        "train": {"zero_stage": 2, "lora": {"rank": 3}},
        "then": {"zero_stage": 3, "lora": {"rank": 3}},
    },
    "ZeRO-3, experts": {"train": {"zero_stage": 3}, "zero": SMALL},
    "ZeRO-2, three workers": {"train": {"zero_stage": 2}},
    "ZeRO-3, three workers": {"train": {"zero_stage": 3}, "zero": SMALL},
    "ZeRO-1, bfloat16": {"train": {"zero_stage": 1, "dtype": "bfloat16"}},
    "ZeRO-3, bfloat16": {"train": {"zero_stage": 3, "dtype": "bfloat16"}},
    "ZeRO-3, by a local disk": {"train": {"zero_stage": 3}, "zero": SMALL, "local_states": True},
    # Two workers throughout, whose shards are cut in another way in between, as on another device.
    "ZeRO-3, other groups": {
        "train": {"zero_stage": 3},
        "zero": SMALL,
        "then_zero": {"sub_group_size": 7_000},
    },
}
# Two workers throughout.
SAME: dict[str, dict[str, Any]] = {
    "the same, ZeRO-0": {"train": {"zero_stage": 0}},
    "the same, ZeRO-1": {"train": {"zero_stage": 1}},
    "the same, ZeRO-2, bfloat16, LoRA": {
        "train": {"zero_stage": 2, "dtype": "bfloat16", "lora": {"rank": 3}}
    },
    "the same, ZeRO-2, by a local disk": {"train": {"zero_stage": 2}, "local_states": True},
    "the same, ZeRO-3, by a local disk": {
        "train": {"zero_stage": 3},
        "zero": SMALL,
        "local_states": True,
    },
    "the same, ZeRO-3, bfloat16, experts": {
        "train": {"zero_stage": 3, "dtype": "bfloat16"},
        "zero": SMALL,
    },
}


def _model(name: str) -> str:
    return "qwen3_moe" if "experts" in name else "llama"


TRAINING = ("train", "zero")
SAVING = (*TRAINING, "local_states")


def _first_alike(name: str, keys: tuple[str, ...]) -> str:
    """Return the first case with the model and the values of `keys` of this one."""
    cases = CASES | SAME

    def values(case: str) -> tuple[Any, ...]:
        return _model(case), *(cases[case].get(key) for key in keys)

    return next(other for other in cases if values(other) == values(name))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run each case on two workers, undisturbed and interrupted twice.

    - Between the interruptions a case has one, two or three workers.
    - Cases alike in the beginning share their undisturbed run and their first steps.
    """
    out, dataset = (
        tmp_path_factory.mktemp("runs"),
        engine_cases.write_examples(tmp_path_factory.mktemp("dataset")),
    )
    models = {
        name: str(tiny_model(tmp_path_factory.mktemp("model"), name))
        for name in ("llama", "qwen3_moe")
    }
    cases = {name: case | {"model": models[_model(name)]} for name, case in (CASES | SAME).items()}
    constant = {name for name in cases if "the same" in name or "groups" in name}
    grown = {name for name in cases if "three" in name}
    references = sorted({_first_alike(name, TRAINING) for name in cases})
    firsts = {_first_alike(name, SAVING) for name in cases}

    def cut(names: set[str], stop: int) -> dict[str, Any]:
        parts = {}
        for name, case in cases.items():
            if name not in names:
                continue
            parts[name] = case | {"stop": stop}
            if stop == SECOND:
                then = {"train": "then", "zero": "then_zero"}
                parts[name] |= {key: case[new] for key, new in then.items() if new in case}
                if name not in firsts:
                    parts[name] |= {"begin_as": _first_alike(name, SAVING)}
        return parts

    undisturbed = {f"{name}, undisturbed": cases[name] for name in references}
    shrunk = set(cases) - grown - constant
    rounds = [
        {2: undisturbed | cut(firsts, FIRST)},
        {1: cut(shrunk, SECOND), 2: cut(constant, SECOND), 3: cut(grown, SECOND)},
        {2: cut(set(cases), STEPS)},
    ]
    engine_cases.run_groups(rounds, out, dataset=str(dataset), train=TRAIN)
    return out


def _undisturbed(runs: Path, name: str) -> Path:
    return runs / f"{_first_alike(name, TRAINING)}, undisturbed"


def _log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_a_detour_to_other_workers_or_stages_trains_the_same(name: str, runs: Path) -> None:
    changed, undisturbed = _log(runs / name), _log(_undisturbed(runs, name))
    assert [line["step"] for line in changed] == list(range(1, STEPS + 1))
    rounding = 2e-3 if "bfloat16" in name else 1e-5
    for ours, theirs in zip(changed, undisturbed, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=rounding)
        assert (ours["tokens"], ours["learning_rate"]) == (
            theirs["tokens"],
            theirs["learning_rate"],
        )
    assert changed[-1]["loss"] < changed[0]["loss"] - 0.01


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", [FIRST, SECOND])
def test_other_workers_or_stages_restore_every_saved_bit(name: str, step: int, runs: Path) -> None:
    saved, restored = (
        torch.load(runs / name / f"{what}-{step}.pt") for what in ("saved", "restored")
    )
    assert saved.keys() == restored.keys()
    assert saved.pop("steps") == restored.pop("steps") == {float(step)}
    assert (
        saved.pop("weight_decays")
        == restored.pop("weight_decays")
        == ([0.1] if "LoRA" in name else [0.1, 0.0])
    )
    for key, whole in saved.items():
        for ours, theirs in zip(restored[key], whole, strict=True):
            assert torch.equal(ours, theirs), key
            assert ours.abs().max() > 0


@pytest.mark.parametrize("name", SAME)
def test_the_same_number_of_workers_continues_bit_for_bit(name: str, runs: Path) -> None:
    costs = {"seconds", "peak_gib", "memory_gib", "tokens_per_s"}
    cut, undisturbed = (
        [{key: value for key, value in line.items() if key not in costs} for line in _log(run)]
        for run in (runs / name, _undisturbed(runs, name))
    )
    assert cut == undisturbed
    assert len(cut) == STEPS
    ours, theirs = (
        load_file(run / "model.safetensors") for run in (runs / name, _undisturbed(runs, name))
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", CASES | SAME)
def test_a_state_has_the_planned_size(name: str, runs: Path) -> None:
    case = (CASES | SAME)[name]
    train = case["train"] | case.get("then", {})
    parameters = torch.load(runs / name / f"saved-{SECOND}.pt")
    tensors = (parameters[key][0] for key in parameters if key not in {"steps", "weight_decays"})
    trained = sum(tensor.numel() for tensor in tensors)
    width = 2 if train.get("dtype") == "bfloat16" else 4
    planned = state_bytes(trained, train["zero_stage"], width)
    files = (runs / name / "resume" / f"step-{SECOND}").glob("*.pt")
    size = sum(path.stat().st_size for path in files)
    # Names, shapes and padding, which do not grow with the model.
    assert planned <= size < planned + 400_000
