"""Trackers of a training's numbers: TensorBoard, W&B and MLflow.

- The recipe chooses them in `train.trackers`. Each takes the same flat numbers by step.
- TensorBoard's event files are in the run directory.
- W&B and MLflow take address and key from their own environment variables.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ssd_ray.errors import UserError

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """Destination of numbers by step."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`; a step may be logged in several parts."""

    def close(self) -> None:
        """Write what is buffered."""


def check(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing, before any work.

    Raises:
        UserError: the package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise UserError(
                f"train.trackers has {name!r}, and its package is not installed: "
                f"pip install {_PACKAGES[name]}"
            )


def trackers(
    names: Sequence[str], run: str, directory: Path, choices: Mapping[str, object], begin: int
) -> list[Tracker]:
    """Open trackers for a training.

    Args:
        names: kinds of trackers.
        run: name of the training.
        directory: parent of the trackers' files.
        choices: choices of the training, recorded with it.
        begin: step of the resume state, 0 for a new training.
    """
    kinds: dict[str, type[TensorBoard] | type[WeightsAndBiases] | type[MLflow]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "mlflow": MLflow,
    }
    return [kinds[name](run, directory, choices, begin) for name in names]


class TensorBoard:
    """Event files in `DIRECTORY/tensorboard/RUN`.

    Numbers of an earlier attempt after step `begin` are hidden, and all of them if `begin` is 0.
    """

    def __init__(
        self, run: str, directory: Path, choices: Mapping[str, object], begin: int
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # From step 0 the base is measured again, so its old measurement is hidden too.
        kept = begin + 1 if begin else 0
        self._writer: Any = SummaryWriter(
            str(directory / "tensorboard" / run), flush_secs=10, purge_step=kept
        )
        self._writer.add_text(
            "choices", "\n".join(f"    {name}: {value}" for name, value in choices.items()), begin
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class WeightsAndBiases:
    """W&B run, named after the run directory and resumed with the training."""

    def __init__(
        self, run: str, directory: Path, choices: Mapping[str, object], begin: int
    ) -> None:
        import wandb

        identity = hashlib.sha256(f"{directory}/{run}".encode()).hexdigest()[:16]
        name = f"{directory.parent.name}/{run}"
        self._run: Any = wandb.init(
            project="ssd-ray",
            id=identity,
            name=name,
            dir=str(directory),
            config=dict(choices),
            resume="allow",
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is buffered."""
        self._run.finish()


class MLflow:
    """MLflow run in the experiment `ssd-ray`, a new one for each attempt."""

    def __init__(
        self, run: str, directory: Path, choices: Mapping[str, object], begin: int
    ) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment("ssd-ray")
        mlflow.start_run(run_name=f"{directory.parent.name}/{run}")
        mlflow.log_params({**choices, "begin": begin})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers."""
        self._mlflow.log_metrics(
            {name.replace("@", "_at_"): value for name, value in values.items()}, step=step
        )

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()
