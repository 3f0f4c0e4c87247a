"""The option --cluster of `ssd-ray plan`: groups of a cluster, and the stages on them.

Reads the files of the cluster and the shipped recipes; writes nothing. `as_json` returns plain
values for JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray.artifacts.files import Json
from ssd_ray.cluster.cluster_files import DescribedCluster, read_cluster
from ssd_ray.cluster.groups import Group
from ssd_ray.config import Recipe
from ssd_ray.pipeline.cluster_fit import ACCELERATOR, StageFit
from ssd_ray.pipeline.described_cluster import stages_on
from ssd_ray.pipeline.preflight import known_architecture
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import GIB
from ssd_ray.roles import LABEL


def cluster_tables(recipe: Recipe, path: Path, assumed: Assumptions) -> RenderableType:
    """Return the groups of a cluster, the stages of a recipe on them, and what to change."""
    cluster = read_cluster(path)
    stages = stages_on(recipe, cluster, known_architecture(recipe), assumed)
    return Lines(
        _groups_table(cluster), _stages_table(recipe, cluster, stages), *_sentences(stages)
    )


def as_json(recipe: Recipe, path: Path, assumed: Assumptions) -> Json:
    """Return the same as plain values; None is a number without a limit."""
    cluster = read_cluster(path)
    stages = stages_on(recipe, cluster, known_architecture(recipe), assumed)
    groups = [
        {
            "name": group.name,
            "labels": dict(group.labels or {}),
            "resources": dict(group.resources),
            "most_nodes": int(group.nodes) if math.isfinite(group.nodes) else None,
            "priority": group.priority,
        }
        for group in cluster.groups
    ]
    return {
        "source": cluster.source,
        "kind": cluster.kind,
        "fits": all(stage.fits for stage in stages),
        "groups": groups,
        "stages": [asdict(stage) | {"fits": stage.fits} for stage in stages],
    }


def _groups_table(cluster: DescribedCluster) -> Table:
    table = Table(
        title=f"groups of {cluster.source}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("group", "role", f"{cluster.node_word}s", "GPUs", "cores", "GiB", "kind"):
        is_name = heading in ("group", "role", "kind")
        table.add_column(heading, justify="left" if is_name else "right", overflow="fold")
    for group in cluster.groups:
        table.add_row(*map(Text, _group_cells(group)))
    return table


def _group_cells(group: Group) -> Iterator[str]:
    labels = group.labels or {}
    resources = group.resources
    most = f"{group.nodes:g}" if math.isfinite(group.nodes) else "any"
    yield group.name
    yield labels.get(LABEL, "any")
    yield most if group.is_head else f"0 to {most}"
    yield f"{resources.get('GPU', 0):g}"
    yield f"{resources.get('CPU', 0):g}"
    yield f"{resources['memory'] / GIB:,.0f}" if "memory" in resources else "not stated"
    yield " ".join(filter(None, (labels.get("ray.io/market-type"), labels.get(ACCELERATOR))))


def _stages_table(recipe: Recipe, cluster: DescribedCluster, stages: tuple[StageFit, ...]) -> Table:
    table = Table(
        title=f"stages of {recipe.name}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for heading in ("stage", "role", "needs", f"{cluster.node_word}s of", "fits"):
        table.add_column(heading, overflow="fold")
    for stage in stages:
        nodes = ", ".join(f"{each.number} {each.group}" for each in stage.nodes)
        fits = Text("yes", "green") if stage.fits else Text("no", "red")
        if stage.fits and stage.notes:
            fits.append(f": {'; '.join(stage.notes)}", "default")
        table.add_row(stage.stage, stage.role.value, Text(stage.need), Text(nodes or "none"), fits)
    return table


def _sentences(stages: tuple[StageFit, ...]) -> Iterator[Text]:
    for stage in stages:
        if not stage.fits:
            yield Text(f" {stage.stage}: {stage.sentence}", "yellow")
    if all(stage.fits for stage in stages):
        yield Text(" every stage fits", "green")
