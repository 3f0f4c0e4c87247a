"""Job of a training, sent to every worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ssd_ray import models
from ssd_ray.config import ClusterConfig, Decoding, ModelConfig, TrainConfig
from ssd_ray.machine import storage
from ssd_ray.models import local_copies
from ssd_ray.training.state import export
from ssd_ray.training.state.export import Serving

UNCHANGED = Decoding()
"""Decoding that draws from the model as it is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Inputs, outputs and choices of one training.

    All paths but `model` are on storage that every worker sees.
    """

    dataset: Path
    """Directory of Example shards."""
    model: Path
    """Hugging Face directory of the base model."""
    base: ModelConfig | None = None
    """Section of the recipe with the base model, for workers that do not see `model`."""
    out: Path
    """Directory of the artifact: loss log, resume states, and the trained model at its top."""
    logs: Path
    """Directory of the workers' output and heartbeat."""
    train: TrainConfig
    cluster: ClusterConfig
    seed: int
    sampling: Decoding = UNCHANGED
    """Decoding that drew the data set; held-out measurements refer to its distribution."""
    serving: Serving = export.AS_THE_BASE
    """Prompting and decoding to state in the trained model's directory."""
    model_digest: str = ""
    """Digest of the base, recorded in resume states."""
    weights: Path | None = None
    """Directory to load the base from, if that is a copy on a disk of this node."""

    def resolved(self) -> Job:
        """Return the job with absolute paths."""
        return replace(
            self,
            dataset=self.dataset.resolve(),
            model=self.model.resolve(),
            out=self.out.resolve(),
            logs=self.logs.resolve(),
        )

    def on_this_machine(self) -> Job:
        """Return the job with this machine's copy of the base model.

        Raises:
            UserError: the model is not here and cannot be fetched, or not copied to a local disk.
        """
        model = self.model
        if self.base is not None:
            model = models.on_this_machine(self.base, model)
        disk = storage.disk_for_copies(self.cluster.local_weights, model)
        weights = None if disk is None else local_copies.local_copy(model, disk)
        return replace(self, model=model, weights=weights)

    def with_workers(self, number: int) -> Job:
        """Return the job for the current number of workers."""
        return replace(self, cluster=self.cluster.model_copy(update={"train_workers": number}))
