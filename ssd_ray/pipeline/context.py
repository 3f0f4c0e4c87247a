"""Resources shared by the steps of a run: directory, model, engines, graders, progress.

Reads the model. Writes `model-revision`, the commit of the model for all later steps.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray import models
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.facts import RowFacts
from ssd_ray.config import Recipe
from ssd_ray.progress import Progress

if TYPE_CHECKING:
    from ssd_ray.evaluation.pool import GraderPool
    from ssd_ray.inference.engines import EnginePools
    from ssd_ray.problems.prompting import Prompting


class RunContext:
    """The shared resources of a run's steps; safe to use from threads."""

    def __init__(self, recipe: Recipe, run: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.run = run
        self.progress = progress
        self.stopped = threading.Event()
        self._fetching = threading.Lock()

    @property
    def logs(self) -> Path:
        """Directory of the logs of engines, workers and Ray."""
        return self.run / "logs"

    @functools.cached_property
    def engines(self) -> EnginePools:
        """The pools of engines of all steps; a run opens them once Ray has started."""
        from ssd_ray.inference.engines import EnginePools

        return EnginePools(self.run / ".engines", self.logs, self.progress)

    @functools.cached_property
    def graders(self) -> GraderPool:
        """The pool of graders of all steps; a run opens it once Ray has started."""
        from ssd_ray.evaluation.ray_pool import pool_on_ray

        return pool_on_ray(self.recipe.cluster, self.logs)

    @functools.cached_property
    def prompting(self) -> Prompting:
        """The renderers of prompts, sharing a model and a clock."""
        from ssd_ray.problems.prompting import Prompting

        return Prompting(self.recipe, self.model, self.run, self.progress.say)

    @property
    def model(self) -> Path:
        """Directory of the base model, fetched and checked at the first use."""
        # Steps that overlap ask from several threads at once.
        with self._fetching:
            return self._model

    @functools.cached_property
    def _model(self) -> Path:
        model = self.recipe.model
        from_hub = "hub" in models.identify(model)
        if models.local_directory(model) is None:
            action = "downloading" if from_hub else "converting"
            self.progress.say(f"model: {action} {model.source}, once on this machine")
        if not from_hub or model.revision:
            return models.fetch(model)
        # A branch of the hub moves on; a run keeps the commit that it got first.
        note = self.run / "model-revision"
        if note.exists():
            return models.fetch(model.model_copy(update={"revision": note.read_text().strip()}))
        directory = models.fetch(model)
        files.write_atomic(note, f"{directory.name}\n")
        return directory

    def num_rows(self, stage: str) -> int:
        """Return the number of rows of a complete artifact."""
        return manifests.load_facts(self.run / stage, RowFacts).rows
