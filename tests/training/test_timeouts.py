"""Time-outs of collectives: a field of the recipe reaches every process group."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.training import trainer
from ssd_ray.training.model.engine import set_timeouts


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[list[Any]]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield [distributed.group.WORLD, distributed.new_group([0])]
    distributed.destroy_process_group()


def _timeout(group: Any) -> timedelta:
    return timedelta(
        seconds=group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    )


def test_the_time_out_reaches_every_group(groups: list[Any]) -> None:
    assert {_timeout(group) for group in groups} == {timedelta(seconds=1800)}
    set_timeouts(77)
    assert {_timeout(group) for group in groups} == {timedelta(seconds=77)}


@pytest.mark.parametrize(("field", "seconds"), [(None, 1800), (7200, 7200)])
def test_the_default_group_has_the_time_out_of_the_recipe(field: int | None, seconds: int) -> None:
    train = TrainConfig(collective_timeout_s=field)
    assert trainer._process_group(train, ClusterConfig()).timeout_s == seconds
