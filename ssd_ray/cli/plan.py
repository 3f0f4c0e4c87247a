"""The plan of a run: choices with sources, artifacts with states, the cost of training.

Reads the recipe, the manifests of the run directory, config.json of the model and the GPUs of this
machine; writes nothing. Needs no cluster.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import to_jsonable_python
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray import config, models
from ssd_ray.artifacts import manifests
from ssd_ray.artifacts.dataset_facts import SequenceFacts
from ssd_ray.artifacts.files import Json
from ssd_ray.cli import cluster
from ssd_ray.config import Recipe, Section
from ssd_ray.errors import UserError
from ssd_ray.machine.gpus import Gpu, read_gpus
from ssd_ray.models import architecture, quantized
from ssd_ray.pipeline.remedies import Hardware, shipped_recipe
from ssd_ray.pipeline.renewal import Outlook
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.step import Step
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import GIB, TrainingPlan, plan_training
from ssd_ray.planner.tables import plain, plan_tables
from ssd_ray.progress import LineProgress

_STYLES = {"complete": "green", "partial": "yellow", "missing": "default", "stale": "red"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A recipe to plan, with the options of the command."""

    recipe: Recipe
    overrides: tuple[str, ...]
    out: Path
    assumed: Assumptions
    cluster: Path | None
    """Files of a cluster to hold the stages against, if any."""


def parts(subject: Subject) -> Iterator[RenderableType]:
    """Yield the parts of the plan: choices, steps, the stages on a cluster, the training.

    Raises:
        UserError: the files of the cluster cannot be read, or there is no plan for the training.
    """
    recipe, assumed = subject.recipe, subject.assumed
    on_cluster: list[RenderableType] = []
    if subject.cluster is not None:
        on_cluster = [cluster.cluster_tables(recipe, subject.cluster, assumed)]
    yield choices_table(recipe, subject.overrides)
    yield steps_table(recipe, subject.out)
    try:
        planned = training_tables(recipe, subject.out, assumed)
    except UserError as error:
        yield from on_cluster
        raise UserError(f"no plan for the training: {error}") from error
    yield planned
    yield from on_cluster


def json_text(subject: Subject) -> Iterator[str]:
    """Yield the same as one JSON document.

    Raises:
        UserError: as in `parts`.
    """
    tables = as_json(subject.recipe, subject.overrides, subject.out, subject.assumed)
    if subject.cluster is not None:
        tables["cluster"] = cluster.as_json(subject.recipe, subject.cluster, subject.assumed)
    yield json.dumps(tables, indent=1, default=str)
    if unknown := tables.get("training_unknown"):
        raise UserError(f"no plan for the training: {unknown}")


def origin(recipe: Recipe, name: str, overrides: Sequence[str]) -> str:
    """Return the origin of a field's value: `--set`, a stated source, the recipe or the default.

    `name` is dotted, as in `sample.temperature`. A source stated for a section covers the fields
    set in the recipe, not those left at their defaults.
    """
    is_set = _is_set(recipe, name)
    sections = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
    overridden = {override.partition("=")[0] for override in overrides}
    if name in overridden or (is_set and overridden.intersection(sections)):
        return "--set"
    # The innermost statement counts: that of the field, then those of its sections outwards.
    for stated in (name, *(sections if is_set else ())):
        if stated in recipe.sources:
            return recipe.sources[stated]
    return "recipe" if is_set else "default"


def _is_set(recipe: Recipe, name: str) -> bool:
    node: Any = recipe
    for part in name.split("."):
        if isinstance(node, Section) and part not in node.model_fields_set:
            return False
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return True


def choices_table(recipe: Recipe, overrides: Sequence[str]) -> Table:
    """Return a table of every field of the recipe: its value and the value's origin."""
    table = _table(f"choices of {recipe.name}", "field", "value", "source")
    for name, value, source in _choices(recipe, overrides):
        # Text, not str: rich would take brackets in a value for markup.
        table.add_row(*(Text(cell) for cell in (name, _value_text(value), source)))
    return table


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _choices(recipe: Recipe, overrides: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    for name, value, _ in config.fields(recipe):
        if name not in {"sources", "description"}:
            yield name, value, origin(recipe, name, overrides)


def fields_table() -> Table:
    """Return a table of every field of a recipe: its default and its meaning."""
    table = _table("fields of a recipe", "field", "default", "meaning")
    for field in config.defaults(Recipe):
        table.add_row(Text(field.name), Text(as_written(field.value)), Text(field.documentation))
    return table


def as_written(value: Any) -> str:
    """Format a value as a recipe's YAML and `--set` take it."""
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
    """Return a table of every artifact of the run: its state and the work of a run now."""
    table = _table(f"work of a run in {out}", "artifact", "verb", "state", "work")
    for step, state, outlook, reason in Run(recipe, out, LineProgress()).outlooks():
        work = Text(_work(out, step, outlook, reason))
        table.add_row(Text(step.name), step.verb, Text(state, style=_STYLES[state]), work)
    return table


def training(recipe: Recipe, out: Path, assumed: Assumptions) -> TrainingPlan:
    """Plan the training of the recipe's model: memory, clusters, time and money.

    Raises:
        UserError: the model's configuration is not on this machine, or the planner does not know
            its architecture.
    """
    model = architecture.shipped(recipe.model.source)
    if model is None and (directory := models.local_directory(recipe.model)) is not None:
        model = architecture.read(directory)
    if model is None:
        source = recipe.model.source
        remedy = f"load it with `hf download {source} config.json`"
        if source.endswith(".gguf"):
            remedy = "run `ssd-ray render`, which converts the file"
        raise UserError(f"the configuration of {source} is not on this machine: {remedy}")
    # A finished data set has the lengths of its sequences; before that the planner assumes them.
    dataset = out / "dataset"
    counted = None
    if (dataset / "manifest.json").exists():
        counted = manifests.load_facts(dataset, SequenceFacts)
    return plan_training(recipe, model, assumed, counted)


def training_tables(recipe: Recipe, out: Path, assumed: Assumptions) -> RenderableType:
    """Return the plan of the training as tables.

    Raises:
        UserError: there is no plan, as in `training`.
    """
    reason, remedy = quantized.untrainable(recipe.model)
    lines = [Text(f"no training as it is: {reason}: {remedy}", "red")] if reason else []
    if name := recipe_for(recipe, read_gpus().visible, assumed):
        lines.append(Text(f"shipped recipe that fits this machine: {name}", "green"))
    return Group(plan_tables(training(recipe, out, assumed), recipe.name), *lines)


def recipe_for(recipe: Recipe, gpus: Sequence[Gpu], assumed: Assumptions) -> str:
    """Return the shipped recipe for these GPUs, with the same choices.

    Of several, it is the one that trains on the most GPUs. Returns "" without GPUs, or if none
    fits.
    """
    model = architecture.shipped(recipe.model.source)
    if model is None or not gpus:
        return ""
    memory = min(gpu.total for gpu in gpus) / GIB
    here = assumed.model_copy(
        update={"gpus_per_node": len(gpus), **({"gpu_memory_gib": memory} if memory else {})}
    )
    return shipped_recipe(recipe, model, Hardware(num_gpus=len(gpus), assumed=here))


def as_json(recipe: Recipe, overrides: Sequence[str], out: Path, assumed: Assumptions) -> Json:
    """Return choices, steps and the training as plain values.

    Without a plan, `training` is None and `training_unknown` is the reason.
    """
    try:
        planned: Json = {"training": plain(training(recipe, out, assumed))}
    except UserError as error:
        planned = {"training": None, "training_unknown": str(error)}
    planned["training_refused"] = ": ".join(filter(None, quantized.untrainable(recipe.model)))
    planned["recipe_for_this_machine"] = recipe_for(recipe, read_gpus().visible, assumed)
    choices = [
        {"field": name, "value": value, "source": source}
        for name, value, source in _choices(recipe, overrides)
    ]
    steps = [
        {
            "artifact": step.name,
            "verb": step.verb,
            "state": state,
            "work": _work(out, step, outlook, reason),
        }
        for step, state, outlook, reason in Run(recipe, out, LineProgress()).outlooks()
    ]
    return {"recipe": recipe.name, "choices": choices, "steps": steps, **planned}


def _work(out: Path, step: Step, outlook: Outlook, reason: str) -> str:
    if outlook == "keep":
        return f"nothing; made again {reason}" if reason else "nothing"
    if outlook == "refuse":
        return f"refused: it {reason}, and took GPU time; choose another --out or delete it"
    beginnings = {
        "make": "",
        "resume": "resume: ",
        "make again": f"made again, because it {reason}: ",
    }
    return beginnings[outlook] + step.preview(out)
