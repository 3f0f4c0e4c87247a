"""The job of a training: everything that its workers need to know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ssd_ray.config import ClusterConfig, Decoding, TrainConfig
from ssd_ray.training.state import export
from ssd_ray.training.state.export import Serving

UNCHANGED = Decoding()
"""Decoding that draws from the model as it is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know; paths are absolute and on storage that every worker sees.

    `sampling` is how the data set was drawn, which the held-out measures are against; `serving` is how the trained model is to
    be used, which its directory then says; `model_digest` names the base in a resume state.
    """

    dataset: Path
    model: Path
    out: Path
    logs: Path
    train: TrainConfig
    cluster: ClusterConfig
    seed: int
    sampling: Decoding = UNCHANGED
    serving: Serving = export.AS_THE_BASE
    model_digest: str = ""

    def with_workers(self, number: int) -> Job:
        """The job for as many workers as there are at the moment."""
        return replace(self, cluster=self.cluster.model_copy(update={"train_workers": number}))
