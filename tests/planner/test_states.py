"""Resume states in a plan: sizes, seconds, and the time of training that they take."""

from __future__ import annotations

import pytest
from rich.console import Console

from ssd_ray.errors import UserError
from ssd_ray.planner.clusters import GIB, TrainingPlan
from ssd_ray.planner.tables import plain, plan_tables
from tests.support.planner_cases import plan_of

LOCAL = (
    "cluster.local_states=/local",
    "train.steps=1000",
    "train.checkpoint_every=300",
)
FAST = ("local_disk_gb_s=10", "shared_volume_gb_s=5")


def _text(plan: TrainingPlan) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(plan_tables(plan, "a recipe"))
    return " ".join(capture.get().split())


def test_a_state_of_30b_has_366_gb() -> None:
    states = plan_of("qwen3-30b-instruct", assume=FAST).requested.states
    assert states.state_bytes == pytest.approx(366e9, rel=2e-3)
    assert states.volume_bytes == 3 * states.state_bytes
    assert states.volume_s == pytest.approx(366 / 5, rel=2e-3)
    assert (states.disk_bytes, states.disk_s) == (0, 0)


def test_training_waits_for_every_state_without_a_local_disk() -> None:
    requested = plan_of("qwen3-30b-instruct", *LOCAL[1:], assume=FAST).requested
    states, time = requested.states, requested.time
    assert time is not None
    # After 300, 600, 900 and 1000 steps.
    assert states.number == 4
    assert states.waiting_s == pytest.approx(4 * states.volume_s)
    assert states.waiting_share == pytest.approx(
        4 * states.volume_s / (3600 * time.hours + 4 * states.volume_s)
    )


def test_with_a_local_disk_training_waits_for_the_last_copy() -> None:
    states = plan_of("qwen3-30b-instruct", *LOCAL, assume=FAST).requested.states
    # Each of two nodes holds half of a state.
    assert states.disk_bytes == states.state_bytes // 2
    assert states.disk_s == pytest.approx(366 / 2 / 10, rel=2e-3)
    assert states.waiting_s == pytest.approx(3 * states.disk_s + states.volume_s)


def test_a_copy_slower_than_the_steps_makes_the_next_state_wait() -> None:
    slow = ("local_disk_gb_s=10", "shared_volume_gb_s=0.1")
    requested = plan_of("qwen3-30b-instruct", *LOCAL, assume=slow).requested
    states, time = requested.states, requested.time
    assert time is not None
    between_s = 0.3 * 3600 * time.hours
    assert states.volume_s > between_s
    assert states.waiting_s == pytest.approx(
        3 * (states.disk_s + states.volume_s - between_s) + states.volume_s
    )


@pytest.mark.parametrize(
    ("overrides", "bytes_a_parameter"),
    [
        (("train.zero_stage=3",), 12),
        (("train.zero_stage=2",), 14),
        (("train.zero_stage=1", "train.dtype=float32", "train.attention=sdpa"), 16),
    ],
)
def test_the_stage_decides_the_size(overrides: tuple[str, ...], bytes_a_parameter: int) -> None:
    packed = ("train.packing=false", "train.sequence_parallel_size=1")
    plan = plan_of("qwen3-4b-instruct", *packed, *overrides)
    states = plan.requested.states
    assert states.state_bytes == bytes_a_parameter * plan.model.parameters


def test_adapters_alone_are_in_a_state() -> None:
    plan = plan_of("qwen3-4b-instruct", "train.lora.rank=16")
    trained = plan.requested.setting.lora_parameters
    assert trained is not None
    assert plan.requested.states.state_bytes == 12 * trained


def test_the_plan_prints_sizes_seconds_and_cost() -> None:
    text = _text(plan_of("qwen3-30b-instruct", *LOCAL, assume=FAST))
    assert "a resume state has 341.2 GiB: 18 s to local disks, then 73 s to the run" in text
    assert "in the background; 4 of them take" in text
    assert "the run directory needs 1,023.7 GiB for states, a node's local disk 170.6 GiB" in text
    assert "shared_volume_gb_s" in text
    direct = _text(plan_of("qwen3-30b-instruct", assume=FAST))
    assert "a resume state has 341.2 GiB: 73 s to the run directory; 10 of them take" in direct
    assert "local disk " not in direct.partition("assumed (")[0]
    on_cpu = _text(plan_of("quickstart"))
    assert "a resume state has 1.5 GiB: 2 s to the run directory the run" in on_cpu
    states = plain(plan_of("quickstart"))["clusters"][0]["states"]
    assert states["state_bytes"] == pytest.approx(1.5 * GIB, rel=0.01)
    assert states["waiting_s"] is None


def test_a_relative_local_disk_is_refused() -> None:
    with pytest.raises(UserError, match="local_states 'disk' is no absolute path"):
        plan_of("quickstart", "cluster.local_states=disk")
