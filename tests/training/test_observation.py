"""Observation of training: destinations of its numbers, and the share of peak FLOPS."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssd_ray.config import TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.models.architecture import read
from ssd_ray.training.model.moe import ExpertLoad
from ssd_ray.training.observe import trackers
from ssd_ray.training.observe.observer import PEAK_TFLOPS, Observer, peak_flops
from tests.support.tiny import tiny_model


class _Wandb(types.ModuleType):
    """W&B's `init`, `log` and `finish` with their arguments, kept in memory."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def init(
        self, *, project: str, id: str, name: str, dir: str, config: dict[str, Any], resume: str
    ) -> _Wandb:
        self.started = {
            "project": project,
            "id": id,
            "name": name,
            "dir": dir,
            "config": config,
            "resume": resume,
        }
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


class _MLflow(types.ModuleType):
    """MLflow's functions as far as training calls them, kept in memory."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.calls: list[tuple[str, Any]] = []

    def set_experiment(self, name: str) -> None:
        self.calls.append(("experiment", name))

    def start_run(self, *, run_name: str) -> None:
        self.calls.append(("run", run_name))

    def log_params(self, values: dict[str, Any]) -> None:
        self.calls.append(("params", values))

    def log_metrics(self, values: dict[str, float], *, step: int) -> None:
        self.calls.append((f"step {step}", values))

    def end_run(self) -> None:
        self.calls.append(("end", None))


def test_every_tracker_takes_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, mlflow = _Wandb(), _MLflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    directory = tmp_path / "quickstart" / "logs"
    made = trackers.trackers(
        ("tensorboard", "wandb", "mlflow"), "checkpoint", directory, {"steps": 5}, 3
    )
    for tracker in made:
        tracker.log({"train/loss": 0.5}, 4)
        tracker.close()
    assert wandb.started["name"] == "quickstart/checkpoint"
    assert (wandb.logged, wandb.finished) == ([(4, {"train/loss": 0.5})], True)
    assert mlflow.calls == [
        ("experiment", "ssd-ray"),
        ("run", "quickstart/checkpoint"),
        ("params", {"steps": 5, "begin": 3}),
        ("step 4", {"train/loss": 0.5}),
        ("end", None),
    ]
    again = trackers.trackers(("wandb",), "checkpoint", directory, {}, 4)
    again[0].close()
    assert wandb.started["resume"] == "allow"  # the same run is resumed


def test_steps_logged_after_the_resumed_state_are_hidden(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, steps in ((0, (0, 1)), (0, (0, 1, 2, 3, 4)), (2, (3, 4))):
        (tracker,) = trackers.trackers(("tensorboard",), "checkpoint", tmp_path, {}, begin)
        for step in steps:
            tracker.log({"train/loss": begin + step / 10}, step)
        tracker.close()
    events = (
        EventAccumulator(str(tmp_path / "tensorboard" / "checkpoint"))
        .Reload()
        .Scalars("train/loss")
    )
    assert [(event.step, round(event.value, 1)) for event in events] == [
        (0, 0.0),
        (1, 0.1),
        (2, 0.2),
        (3, 2.3),
        (4, 2.4),
    ]


def test_held_out_samples_are_not_counted_as_load_of_the_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: None)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model(tmp_path, "qwen3_moe"), dtype=torch.float32
    )
    load, ids = ExpertLoad(model), torch.arange(3, 40)[None]
    model.train()(input_ids=ids)
    alone = load.imbalance()
    model.eval()(input_ids=ids[:, :5])
    model.train()(input_ids=ids)
    assert load.imbalance() == alone
    assert load.imbalance() is None


def test_padding_is_not_counted_as_load_of_the_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: None)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model(tmp_path, "qwen3_moe"), dtype=torch.float32
    ).train()
    load, ids = ExpertLoad(model), torch.stack([torch.arange(3, 40), torch.arange(50, 87)])
    model(input_ids=ids)
    alone = load.imbalance()
    padded = torch.cat([ids, torch.zeros(2, 30, dtype=torch.long)], dim=1)
    load.real = (padded != 0).flatten()
    model(input_ids=padded)
    assert load.imbalance() == alone
    load.real = None
    model(input_ids=padded)
    assert load.imbalance() != alone


def test_a_tracker_without_its_package_is_refused_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trackers.check(("tensorboard",))
    monkeypatch.setitem(trackers._PACKAGES, "wandb", "nowhere_installed")
    with pytest.raises(
        UserError,
        match=r"has 'wandb', and its package is not installed: pip install nowhere_installed",
    ):
        trackers.check(("tensorboard", "wandb"))


def test_a_cpu_has_no_peak_unless_the_recipe_sets_one() -> None:
    assert peak_flops(TrainConfig(), "cpu") is None
    assert peak_flops(TrainConfig(peak_tflops=2.5), "cpu") == 2.5e12


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_name(
    name: str, tflops: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(TrainConfig(), "cuda:0") == (None if tflops is None else tflops * 1e12)
    assert set(PEAK_TFLOPS.values()) >= ({tflops} if tflops else set())
    assert peak_flops(TrainConfig(dtype="float32"), "cuda:0") is None  # those peaks are bfloat16's
    assert peak_flops(TrainConfig(dtype="float32", peak_tflops=60), "cuda:0") == 60e12


def test_utilization_is_relative_to_the_peak_of_all_devices(tmp_path: Path) -> None:
    observer = Observer.__new__(Observer)
    observer._model = read(tiny_model(tmp_path, "qwen3"))
    observer._adapters = None
    observer._peak = 1e9
    observer._engine = types.SimpleNamespace(world_size=2)
    prompts, responses = np.array([3, 5, 7, 90]), np.array([10, 20, 30, 0])
    observer._examples = types.SimpleNamespace(
        num_prompt_tokens=prompts, response_lengths=responses
    )  # type: ignore[assignment]
    batch: Any = types.SimpleNamespace(
        rows=np.array([0, 3, 2])
    )  # the row without a response is not computed
    operations = observer._model.flops(3, 10) + observer._model.flops(7, 30)
    assert observer._utilization(batch, 0.5) == pytest.approx(operations / 0.5 / 2e9, abs=1e-4)
    observer._peak = None
    assert observer._utilization(batch, 0.5) is None


def test_tensorboard_and_no_held_out_sample_are_the_default() -> None:
    assert TrainConfig().trackers == ("tensorboard",)
    assert TrainConfig().heldout_samples == 0
