"""The group of training workers starts no process it does not need."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize("is_own", [False, True])
def test_training_starts_no_actor_without_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    """An actor for the cleanup of workers' places outlives a killed driver, on any cluster."""
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from ssd_ray.training import worker_group
    from ssd_ray.training.worker_group import SizedTrainer

    monkeypatch.setattr(worker_group, "is_own", lambda: is_own)

    trainer = SizedTrainer(
        print,
        allowed=[1],
        out=tmp_path,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="train", storage_path=str(tmp_path)),
    )
    ours, rays = (
        {type(each).__name__ for each in kind._create_default_callbacks(trainer)}
        for kind in (SizedTrainer, TorchTrainer)
    )
    assert rays - ours == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
