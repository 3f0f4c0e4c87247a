"""Engines on several logical GPUs under real Ray: one bundle a worker, and no leftovers.

The double below acts like vLLM's Ray executor: a worker actor in each bundle of its group.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from ssd_ray.config import EngineConfig
from ssd_ray.inference.vllm.arguments import engine_arguments, has_exact_sampler
from ssd_ray.inference.vllm.placement import PlacementGroups, engine_resources, packing
from tests.support.processes import is_alive

EIGHT = EngineConfig(tensor_parallel_size=4, pipeline_parallel_size=2, expert_parallel=True)


def test_one_device_is_reserved_plainly() -> None:
    assert engine_resources(EngineConfig(cpus=2), "cpu").remote_args == {"num_cpus": 2}
    assert engine_resources(EngineConfig(), "cuda").remote_args == {"num_cpus": 1, "num_gpus": 1}


def test_several_devices_get_a_bundle_each_under_ray(tmp_path: Path) -> None:
    from ssd_ray.config import ModelConfig

    resources = engine_resources(EIGHT, "cuda")
    assert resources.groups is not None
    assert [bundle["GPU"] for bundle in resources.groups.bundles] == [1] * 8
    assert (resources.gpus, resources.remote_args["num_gpus"]) == (8, 0)
    arguments = engine_arguments(tmp_path, ModelConfig(source="x"), EIGHT, "cuda")
    assert arguments["distributed_executor_backend"] == "ray"
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (4, 2)
    assert arguments["enable_expert_parallel"]
    assert arguments["logits_processors"] == [
        "ssd_ray.inference.vllm.adaptive_v2:AdaptiveV2",
        "ssd_ray.inference.vllm.sampler_v2:ExactTopKTopPV2",
    ]
    alone = engine_arguments(
        tmp_path, ModelConfig(source="x"), EngineConfig(extra={"seed": 3}), "cuda"
    )
    assert "distributed_executor_backend" not in alone
    assert alone["seed"] == 3, "extra arguments win"


@pytest.mark.parametrize(
    ("chosen", "device", "expected"), [(None, "cpu", 64), (None, "cuda", 256), (7, "cuda", 7)]
)
def test_the_batch_of_an_engine_follows_its_device(
    tmp_path: Path, chosen: int | None, device: Literal["cpu", "cuda"], expected: int
) -> None:
    """An engine holds enough units at a time to fill this batch."""
    from ssd_ray.config import ClusterConfig, ModelConfig
    from ssd_ray.inference.engines import EngineSettings, _size
    from ssd_ray.inference.pool import concurrent_units

    model, engine = ModelConfig(source="x"), EngineConfig(max_num_seqs=chosen)
    assert engine_arguments(tmp_path, model, engine, device)["max_num_seqs"] == expected
    settings = EngineSettings(directory=tmp_path, model=model, engine=engine, device=device)
    pool = _size(settings, ClusterConfig(device=device), 16)
    assert pool.concurrent_units == concurrent_units(expected, 16)


def test_cpu_engines_share_prompts_in_blocks_of_32_by_default(
    tmp_path: Path,
) -> None:
    from ssd_ray.config import ModelConfig

    for extra, expected in (({}, 32), ({"block_size": 128}, 128)):
        assert (
            engine_arguments(tmp_path, ModelConfig(source="x"), EngineConfig(extra=extra), "cpu")[
                "block_size"
            ]
            == expected
        )
    assert "block_size" not in engine_arguments(
        tmp_path, ModelConfig(source="x"), EngineConfig(), "cuda"
    )


def test_extra_arguments_cannot_contradict_the_recipe() -> None:
    for name in ("model", "max_model_len", "tensor_parallel_size"):
        with pytest.raises(
            ValidationError, match=rf"extra sets '{name}', which (model|engine)\.\w+ decides"
        ):
            EngineConfig(extra={name: 2})
    for name in ("generation_config", "override_generation_config"):
        with pytest.raises(
            ValidationError,
            match=rf"extra sets '{name}', which the model's generation_config.json decides",
        ):
            EngineConfig(extra={name: "vllm"})
    own = EngineConfig(extra={"logits_processors": ["mine:Own"]})
    assert has_exact_sampler(EngineConfig())
    assert not has_exact_sampler(own), (
        "without its processor, requests have to ask vLLM to truncate"
    )
    assert not has_exact_sampler(EngineConfig(sampler="vllm"))
    with pytest.raises(
        ValidationError, match="sampler 'exact' does not work with 'speculative_config'"
    ):
        EngineConfig(sampler="exact", extra={"speculative_config": {}})


class EngineDouble:
    """An engine with a worker in each bundle of its group, as vLLM's Ray executor does."""

    def __init__(self, meeting: Path | None = None, engines: int = 1) -> None:
        """Answer only once `engines` of them are at `meeting`, however slowly they start."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._meeting, self._engines = meeting, engines

        class Worker:
            def pid(self) -> int:
                return os.getpid()

        group = ray.util.get_current_placement_group()
        assert group is not None
        self.group = group.id.hex()
        self.workers = [
            ray.remote(Worker)
            .options(
                num_cpus=0,
                num_gpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
            )
            .remote()
            for index in range(group.bundle_count)
        ]
        self.pids = ray.get([worker.pid.remote() for worker in self.workers])
        if meeting is not None:
            (meeting / self.group).touch()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._meeting is not None:
            meeting = self._meeting
            assert _within(60, lambda: len(list(meeting.iterdir())) == self._engines)
        return {"group": [self.group], "workers": [len(self.pids)]}

    def processes(self) -> tuple[int, list[int], str]:
        return os.getpid(), self.pids, self.group


def _within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def four_gpus() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def groups(four_gpus: None) -> Iterator[PlacementGroups]:
    groups = engine_resources(EngineConfig(tensor_parallel_size=2), "cuda").groups
    assert groups is not None
    yield groups
    groups.release()


def _free() -> float:
    import ray

    return float(ray.available_resources().get("GPU", 0))


@pytest.mark.parametrize(
    ("gpus", "expected"), [([8], "STRICT_PACK"), ([4, 4], "PACK"), ([4, 8], "STRICT_PACK")]
)
def test_an_engine_keeps_to_one_node_where_one_can_hold_it(gpus: list[int], expected: str) -> None:
    groups = engine_resources(EIGHT, "cuda").groups
    assert groups is not None
    assert (
        packing(groups.bundles, [{"CPU": 8.0, "GPU": float(count)} for count in gpus]) == expected
    )
    assert packing(groups.bundles, [{"CPU": 0.0, "GPU": 8.0}]) == "PACK"


@pytest.mark.real
def test_ray_data_gives_each_engine_a_group_and_gets_it_back(
    groups: PlacementGroups, tmp_path: Path
) -> None:
    import ray.data

    rows = (
        ray.data.from_items(list(range(8)), override_num_blocks=8)
        .map_batches(
            EngineDouble,
            fn_constructor_args=(tmp_path, 2),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=1,
            num_gpus=0,
            ray_remote_args_fn=groups,
        )
        .take_all()
    )
    assert {row["workers"] for row in rows} == {2}
    assert len({row["group"] for row in rows}) == 2
    groups.release()
    assert _within(20, lambda: _free() == 4)


@pytest.mark.real
def test_a_killed_engines_successor_inherits_its_group(
    groups: PlacementGroups,
) -> None:
    import ray

    engine = (
        ray.remote(EngineDouble)
        .options(num_cpus=1, num_gpus=0, max_restarts=1, max_task_retries=1, **groups())
        .remote()
    )
    pid, workers, group = ray.get(engine.processes.remote())
    os.kill(pid, signal.SIGKILL)
    assert _within(10, lambda: not any(map(is_alive, [pid, *workers])))
    _, successors, same = ray.get(engine.processes.remote())
    assert same == group
    assert not set(successors) & set(workers)


@pytest.mark.real
def test_only_the_group_of_a_returned_engine_is_removed(
    groups: PlacementGroups,
) -> None:
    import ray

    first, second = (
        ray.remote(EngineDouble).options(num_cpus=1, num_gpus=0, **groups()).remote()
        for _ in range(2)
    )
    ray.get([first.processes.remote(), second.processes.remote()])
    assert groups.reap(young_s=0) == 0
    assert _free() == 0
    del first  # as Ray Data's pool does
    assert _within(20, lambda: groups.reap(young_s=0) == 1)
    assert _within(20, lambda: _free() == 2)
    assert ray.get(second.processes.remote())
