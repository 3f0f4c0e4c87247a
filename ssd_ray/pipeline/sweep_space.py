"""Space and hours of all trainings of a sweep, before the first one begins.

A run checks the space for the resume states of one training. A sweep keeps a model for each
student, so it checks the sum of those still to be exported. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssd_ray import models
from ssd_ray.artifacts import manifests
from ssd_ray.errors import OutsideError, UserError
from ssd_ray.machine.findings import gib
from ssd_ray.machine.storage import free_bytes
from ssd_ray.models import architecture
from ssd_ray.models.architecture import Architecture
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.step import Step
from ssd_ray.pipeline.training import Checkpoint
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import plan_training
from ssd_ray.recipes.sweeps import Design
from ssd_ray.reporting.words import counted

_BYTES = {"float32": 4, "bfloat16": 2}


def check_space(page: Step, context: RunContext) -> None:
    """Check that storage holds the models of all students to come.

    Raises:
        UserError: it has too little room.
    """
    every = {step.name: step for step in page.closure() if isinstance(step, Checkpoint)}
    pending = [
        step
        for step in every.values()
        if manifests.state_of(context.run / step.name, step.identity) != "complete"
    ]
    try:
        parameters = architecture.read(context.model).parameters
    except UserError:
        # Training supports more architectures than the planner, and checks each model by itself.
        return
    needed = sum(_exported(step) * parameters for step in pending)
    free = free_bytes(context.run)
    if free < needed:
        raise OutsideError(
            f"{context.run} has {gib(free)} GiB left, and the models of "
            f"{counted(len(pending), 'student')} need {gib(needed)} GiB: free some, give fewer "
            "values to the axes of sample and train, or choose another --out"
        )


def _exported(step: Checkpoint) -> int:
    """Return the bytes of all exports of a student for each parameter."""
    train = step.recipe.train
    exports = 1 if train.export_every is None else -(-train.steps // train.export_every)
    return exports * _BYTES[train.dtype]


def hours_line(design: Design) -> Iterator[str]:
    """Yield the planner's hours and money of all trainings; nothing on a CPU."""
    # The planner times no training on a CPU.
    if design.recipe.cluster.device == "cpu":
        return
    model = _architecture(design)
    if model is None:
        return
    try:
        plans = [
            plan_training(student.recipe, model, Assumptions()).requested
            for student in design.students
        ]
    except UserError as error:
        yield f"sweep: no hours of training are known: {error}"
        return
    refused = next((plan.refusal for plan in plans if plan.refusal), "")
    if refused:
        yield f"sweep: a training does not fit its cluster: {refused}"
        return
    hours = sum(plan.time.hours for plan in plans if plan.time is not None)
    usd = sum(plan.usd or 0 for plan in plans)
    yield (
        f"sweep: the planner expects {hours:,.1f} hours of training in all, {usd:,.0f} USD, with "
        "the assumptions of `ssd-ray plan`"
    )


def _architecture(design: Design) -> Architecture | None:
    """Return the architecture of the model, if it is known without a download."""
    model = design.recipe.model
    known = architecture.shipped(model.source)
    if known is not None:
        return known
    directory = models.local_directory(model)
    return None if directory is None else architecture.read(directory)
