"""What a run would do, without a cluster: every choice with its source, every artifact with its state, what training takes.

Reads the recipe, the run directory's manifests and the model's config.json; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import to_jsonable_python
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray import config, models
from ssd_ray.artifacts import manifests
from ssd_ray.config import Recipe, Section
from ssd_ray.errors import UserError
from ssd_ray.models import architecture
from ssd_ray.pipeline.renewal import Outlook
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.step import Step
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import TrainingPlan, plan_training
from ssd_ray.planner.tables import plain, plan_tables
from ssd_ray.progress import LineProgress

_SHOWN = {"complete": "green", "partial": "yellow", "missing": "default", "stale": "red"}


def origin(recipe: Recipe, name: str, overrides: Sequence[str]) -> str:
    """Where the value of a dotted field comes from: the command line, a named source, the recipe file, or the default.

    A source that the recipe states for a whole section is that of the fields which it sets, not of those left at their default.
    """
    given, parents = (
        _is_set(recipe, name),
        [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)],
    )
    overridden = {override.partition("=")[0] for override in overrides}
    if name in overridden or (given and overridden.intersection(parents)):
        return "--set"
    for stated in (name, *(parents if given else ())):
        if stated in recipe.sources:
            return recipe.sources[stated]
    return "recipe" if given else "default"


def _is_set(recipe: Recipe, name: str) -> bool:
    node: Any = recipe
    for part in name.split("."):
        if isinstance(node, Section) and part not in node.model_fields_set:
            return False
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return True


def choices_table(recipe: Recipe, overrides: Sequence[str]) -> Table:
    """Every field of the recipe: its value, and where that comes from."""
    table = _table(f"choices of {recipe.name}", "field", "value", "source")
    for name, value, source in _choices(recipe, overrides):
        told = (
            "none"
            if value is None
            else ", ".join(map(str, value))
            if isinstance(value, tuple)
            else str(value)
        )
        table.add_row(*(Text(cell) for cell in (name, told, source)))
    return table


def _choices(recipe: Recipe, overrides: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    for name, value, _ in config.fields(recipe):
        if name not in {"sources", "description"}:
            yield name, value, origin(recipe, name, overrides)


def fields_table() -> Table:
    """Show every field of a recipe, the default that counts where a recipe leaves it out, and what it does."""
    table = _table("fields of a recipe", "field", "default", "what it does")
    for field in config.defaults(Recipe):
        table.add_row(Text(field.name), Text(as_written(field.value)), Text(field.documentation))
    return table


def as_written(value: Any) -> str:
    """Write a value as a recipe's YAML and `--set` take it."""
    text = yaml.safe_dump(
        to_jsonable_python(value), default_flow_style=True, width=math.inf, allow_unicode=True
    )
    return text.removesuffix("...\n").rstrip("\n")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, style in zip(headings, ("bold", "cyan", "default", "default"), strict=False):
        table.add_column(heading, style=style, overflow="fold")
    return table


def steps_table(recipe: Recipe, out: Path) -> Table:
    """Every artifact of the run: its state and what would be done."""
    table = _table(
        f"what a run would do in {out}", "artifact", "verb", "state", "what would be done"
    )
    for step, state, outlook, reason in Run(recipe, out, LineProgress()).outlooks():
        deed = _deed(out, step, outlook, reason)
        table.add_row(Text(step.name), step.verb, Text(state, style=_SHOWN[state]), Text(deed))
    return table


def training(recipe: Recipe, out: Path, assumed: Assumptions) -> TrainingPlan:
    """What training the recipe's model takes: memory, clusters, time and money.

    Raises:
        UserError: the model's configuration is not on this machine, or its architecture is none that the planner knows.
    """
    model = architecture.shipped(recipe.model.source)
    if model is None and (directory := models.present(recipe.model)) is not None:
        model = architecture.read(directory)
    if model is None:
        source = recipe.model.source
        remedy = (
            "run `ssd-ray render`, which converts the file"
            if source.endswith(".gguf")
            else "give a directory as model.source"
        )
        raise UserError(f"the configuration of {source} is not on this machine: {remedy}")
    dataset = out / "dataset"
    counted = manifests.load(dataset).facts if (dataset / "manifest.json").exists() else None
    return plan_training(recipe, model, assumed, counted)


def training_tables(recipe: Recipe, out: Path, assumed: Assumptions) -> RenderableType:
    """The plan of the training as tables, or one line that says why there is none."""
    try:
        return plan_tables(training(recipe, out, assumed), recipe.name)
    except UserError as error:
        return Text(f"no plan for the training: {error}", "yellow")


def as_json(
    recipe: Recipe, overrides: Sequence[str], out: Path, assumed: Assumptions
) -> dict[str, Any]:
    """Everything that the tables show: choices, steps and the training, which is null with a reason where it is unknown."""
    try:
        told: dict[str, Any] = {"training": plain(training(recipe, out, assumed))}
    except UserError as error:
        told = {"training": None, "training_unknown": str(error)}
    choices = [
        {"field": name, "value": value, "source": source}
        for name, value, source in _choices(recipe, overrides)
    ]
    steps = [
        {
            "artifact": step.name,
            "verb": step.verb,
            "state": state,
            "deed": _deed(out, step, outlook, reason),
        }
        for step, state, outlook, reason in Run(recipe, out, LineProgress()).outlooks()
    ]
    return {"recipe": recipe.name, "choices": choices, "steps": steps, **told}


def _deed(out: Path, step: Step, outlook: Outlook, reason: str) -> str:
    if outlook == "keep":
        return f"nothing; made again {reason}" if reason else "nothing"
    if outlook == "refuse":
        return f"refused: it {reason}, and took GPU time; choose another --out or delete it"
    begin = {"make": "", "resume": "go on with: ", "make again": f"made again, for it {reason}: "}[
        outlook
    ]
    return begin + step.preview(out)
