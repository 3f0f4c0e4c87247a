"""A recipe on a described cluster: the stages that fit, and changes that make others fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from ssd_ray import recipes
from ssd_ray.cluster import growth, room
from ssd_ray.cluster.cluster_files import DescribedCluster, read_cluster
from ssd_ray.cluster.groups import Group, quantity
from ssd_ray.cluster.growth import Growth
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.models.architecture import shipped
from ssd_ray.pipeline.cluster_fit import Change, StageFit
from ssd_ray.pipeline.cluster_room import Work, check_cluster
from ssd_ray.pipeline.described_cluster import stages_on
from ssd_ray.planner.assumptions import assumptions
from ssd_ray.roles import LABEL

TOP = Path(__file__).parents[2]
GIB = 2**30


def group(name: str, role: str = "", nodes: float = 1, **resources: float) -> Group:
    return Group(
        name=name,
        resources={key: value for key, value in resources.items() if value},
        most=nodes,
        labels={LABEL: role} if role else {},
    )


HEAD = replace(group("head", "driver", 0, CPU=0, memory=16 * GIB), is_head=True)
SPOT = group("sampler-spot", "sampler", 8, CPU=8, GPU=2, memory=200 * GIB)
TRAINER = group("trainer", "trainer", 2, CPU=64, GPU=8, memory=1800 * GIB)
GRADER = group("grader", "grader", 4, CPU=8, memory=24 * GIB)


def cluster(*groups: Group, most_nodes: float = math.inf) -> DescribedCluster:
    return DescribedCluster(source="here", kind="kuberay", groups=groups, most_nodes=most_nodes)


def fits(
    recipe: Recipe | str, on: DescribedCluster, assumed: tuple[str, ...] = ()
) -> Mapping[str, StageFit]:
    loaded = recipes.load(recipe) if isinstance(recipe, str) else recipe
    stages = stages_on(loaded, on, shipped(loaded.model.source), assumptions(assumed))
    return {stage.stage: stage for stage in stages}


def changed(on: DescribedCluster, change: Change) -> DescribedCluster:
    """Apply a change as a user would."""

    def apply(each: Group) -> Group:
        if each.name != change.group:
            return each
        if change.field == on.size_field:
            return replace(each, most=int(change.value))
        if change.field.startswith("labels."):
            key = change.field.removeprefix("labels.")
            return replace(each, labels={**(each.labels or {}), key: change.value})
        key = {"memory": "memory", "the cores (CPU)": "CPU"}[change.field]
        return replace(each, resources={**each.resources, key: quantity(change.value)})

    if change.group == "the cluster":
        return replace(on, most_nodes=int(change.value))
    return replace(on, groups=tuple(map(apply, on.groups)))


def test_every_stage_of_the_papers_recipe_fits_its_own_group() -> None:
    stages = fits("qwen3-30b-instruct", cluster(HEAD, SPOT, TRAINER, GRADER))
    assert all(stage.fits for stage in stages.values())
    taken = {
        name: [(each.group, each.number) for each in stage.nodes] for name, stage in stages.items()
    }
    assert taken == {
        "render": [("head", 1)],
        "sample": [("sampler-spot", 4)],
        "train": [("trainer", 2)],
        "grade": [("grader", 4)],
    }
    assert stages["train"].notes[0].endswith("USD")


SMALL = {
    "too few pods": ("train", [HEAD, SPOT, replace(TRAINER, most=1), GRADER]),
    "none": ("train", [HEAD, SPOT, replace(TRAINER, most=0), GRADER]),
    "memory": (
        "train",
        [HEAD, SPOT, replace(TRAINER, resources={"CPU": 64, "GPU": 8, "memory": 64 * GIB}), GRADER],
    ),
    "pods and memory": (
        "train",
        [
            HEAD,
            SPOT,
            replace(TRAINER, most=1, resources={"CPU": 64, "GPU": 8, "memory": 64 * GIB}),
            GRADER,
        ],
    ),
    "cores": ("train", [HEAD, SPOT, replace(TRAINER, resources={"CPU": 0, "GPU": 8}), GRADER]),
    "label": ("grade", [HEAD, SPOT, TRAINER, replace(GRADER, labels={})]),
    "head": ("render", [replace(HEAD, labels={}), SPOT, TRAINER, GRADER]),
    "sampler": ("sample", [HEAD, replace(SPOT, most=0), TRAINER, GRADER]),
}


@pytest.mark.parametrize(("stage", "groups"), SMALL.values(), ids=SMALL)
def test_the_stated_change_makes_the_stage_fit(stage: str, groups: list[Group]) -> None:
    on = cluster(*groups)
    before = fits("qwen3-30b-instruct", on)
    assert [name for name, each in before.items() if not each.fits] == [stage]
    assert before[stage].changes
    for change in before[stage].changes:
        on = changed(on, change)
    assert all(each.fits for each in fits("qwen3-30b-instruct", on).values())


@pytest.mark.parametrize("field", ["most", "memory"])
def test_the_stated_change_is_the_smallest(field: str) -> None:
    small = {"CPU": 64, "GPU": 8, "memory": 64 * GIB}
    trainer = replace(TRAINER, most=0) if field == "most" else replace(TRAINER, resources=small)
    on = cluster(HEAD, SPOT, trainer, GRADER)
    (change,) = fits("qwen3-30b-instruct", on)["train"].changes
    digits = change.value.removesuffix("Gi")
    less = replace(change, value=change.value.replace(digits, str(int(digits) - 1)))
    assert not fits("qwen3-30b-instruct", changed(on, less))["train"].fits


def test_a_gang_that_is_too_large_has_two_remedies() -> None:
    train = fits("qwen3-30b-instruct", cluster(HEAD, SPOT, replace(TRAINER, most=1), GRADER))[
        "train"
    ]
    assert train.sentence == (
        "training needs 16 workers of 1 GPU and 1 core each, and trainer holds 8: set maxReplicas "
        "of trainer to 2, or `ssd-ray run qwen3-30b-instruct-8gpu` has the same choices and fits"
    )


def test_a_recipe_for_gpus_needs_groups_with_gpus() -> None:
    cpus = group("workers", nodes=3, CPU=8, memory=24 * GIB)
    stages = fits("qwen3-4b-instruct", cluster(replace(HEAD, labels={}), cpus))
    assert stages["sample"].sentence == (
        "sampling needs 1 engine of 1 GPU, and head + workers has no GPU: add a group with GPUs, "
        "or take a recipe for CPUs"
    )
    assert not stages["train"].fits
    assert stages["grade"].fits
    assert all(each.fits for each in fits("quickstart", cluster(HEAD_ANY, cpus)).values())


HEAD_ANY = replace(HEAD, labels={})


def test_a_role_without_a_group_is_named() -> None:
    train = fits("qwen3-4b-instruct", cluster(HEAD, SPOT, GRADER))["train"]
    assert train.sentence == (
        "training needs 8 workers of 1 GPU and 1 core each, and no group has the label "
        "ssd-ray/role=trainer: add a group and the label ssd-ray/role=trainer, or set "
        "cluster.roles=off"
    )
    off = recipes.load("qwen3-4b-instruct", ["cluster.roles=off"])
    assert fits(off, cluster(HEAD, SPOT, GRADER))["train"].fits
    required = recipes.load("quickstart", ["cluster.roles=required"])
    render = fits(required, cluster(HEAD_ANY, group("any", nodes=2, CPU=8)))["render"]
    assert "no group has the label ssd-ray/role: label the groups" in render.sentence


def test_gpus_are_those_of_the_label_or_of_the_assumption() -> None:
    small = replace(TRAINER, labels={LABEL: "trainer", "ray.io/accelerator-type": "L4"})
    on = cluster(HEAD, SPOT, small, GRADER)
    train = fits("qwen3-30b-instruct", on)["train"]
    assert "too little memory (each GPU needs 51.9 of 22.5 GiB)" in train.sentence
    assert fits("qwen3-30b-instruct", on, ("gpu_memory_gib=79",))["train"].fits


def test_weights_beyond_a_gpu_are_divided() -> None:
    small = replace(SPOT, labels={LABEL: "sampler", "ray.io/accelerator-type": "L4"})
    sample = fits("qwen3-30b-instruct", cluster(HEAD, small, TRAINER, GRADER))["sample"]
    assert sample.sentence.endswith("run with --set engine.tensor_parallel_size=4")
    wider = recipes.load("qwen3-30b-instruct", ["engine.tensor_parallel_size=4"])
    assert fits(wider, cluster(HEAD, small, TRAINER, GRADER))["sample"].fits


def test_engines_spread_over_pods_are_noted() -> None:
    single = replace(SPOT, resources={"CPU": 8, "GPU": 1})
    sample = fits("qwen3-30b-instruct", cluster(HEAD, single, TRAINER, GRADER))["sample"]
    assert sample.fits
    assert sample.notes == ("an engine is spread over 2 pods: slow",)
    assert [each.number for each in sample.nodes] == [8]
    fewer = replace(single, most=5)
    sample = fits("qwen3-30b-instruct", cluster(HEAD, fewer, TRAINER, GRADER))["sample"]
    assert sample.notes[1] == "2 of cluster.max_engines 4"


def test_groups_of_higher_priority_come_first() -> None:
    fallback = replace(SPOT, name="sampler")
    spot = replace(SPOT, priority=10, most=3)
    sample = fits("qwen3-30b-instruct", cluster(HEAD, fallback, spot, TRAINER, GRADER))["sample"]
    assert [(each.group, each.number) for each in sample.nodes] == [
        ("sampler-spot", 3),
        ("sampler", 1),
    ]


def test_an_elastic_training_takes_the_workers_that_fit() -> None:
    elastic = recipes.load(
        "qwen3-4b-instruct", ["cluster.train_workers=32", "cluster.min_train_workers=8"]
    )
    train = fits(elastic, cluster(HEAD, SPOT, TRAINER, GRADER))["train"]
    assert train.fits
    assert "on 16 GPUs" in train.notes[0]


def test_cpu_pods_need_memory_for_engines_and_workers() -> None:
    small = group("any", nodes=2, CPU=2, memory=GIB / 2)
    stages = fits("quickstart", cluster(HEAD_ANY, small))
    assert [name for name, each in stages.items() if not each.fits] == ["sample", "train"]
    on = cluster(HEAD_ANY, small)
    for name in ("sample", "train"):
        (change,) = stages[name].changes
        assert change.field == "memory"
        larger = changed(on, change)
        assert fits("quickstart", larger)[name].fits


@pytest.mark.slow
def test_the_page_has_each_recipe_on_each_overlay() -> None:
    paths = sorted(path.parent for path in TOP.glob("k8s/overlays/*/kustomization.yaml"))
    paths += [TOP / "cluster.yaml", TOP / "cluster-gcp.yaml"]
    clusters = [read_cluster(path) for path in paths]
    heading = "| recipe | " + " | ".join(f"`{path.name}`" for path in paths) + " |"
    lines = [heading, "|---" * (len(paths) + 1) + "|"]
    for name in recipes.shipped():
        cells = []
        for on in clusters:
            lacking = [stage for stage, each in fits(name, on).items() if not each.fits]
            cells.append(f"not {', '.join(lacking)}" if lacking else "yes")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        # A recipe without any cluster could never be run by the shipped manifests.
        assert "yes" in cells, name
    table = "\n".join(lines)
    assert table in (TOP / "docs" / "planner.md").read_text(), f"the page should have\n{table}"


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a check of a recipe on the head of a described cluster that has no other node yet."""
    head = {"Alive": True, "NodeID": "head", "Labels": {LABEL: "driver"}, "Resources": {}}
    context = SimpleNamespace(get_node_id=lambda: "head")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [head])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)

    def check(on: DescribedCluster, recipe: Recipe, **work: bool) -> None:
        size = Growth(has_autoscaler=True, groups=on.groups, most_nodes=on.most_nodes)
        monkeypatch.setattr(growth, "own_cluster", lambda: on)
        monkeypatch.setattr(room, "read_growth", lambda: size)
        check_cluster(recipe, Work(**work), lambda _: None)

    return check


ALL = {"draws": True, "trains": True, "grades": True}
VERBS = {"sample": "draws", "train": "trains", "grade": "grades"}


@pytest.mark.parametrize(("stage", "groups"), [case for case in SMALL.values() if case[0] in VERBS])
def test_a_run_makes_the_checks_of_the_plan_where_it_runs(
    inside: Callable[..., None], stage: str, groups: list[Group]
) -> None:
    recipe = recipes.load("qwen3-30b-instruct")
    on = replace(cluster(*groups), source="RayCluster one")
    sentence = fits(recipe, on, ("gpu_memory_gib=1000",))[stage].sentence
    with pytest.raises(UserError) as refusal:
        inside(on, recipe, **ALL)
    assert str(refusal.value) == f"RayCluster one does not hold this run, as {sentence}"
    inside(on, recipe, **ALL | {VERBS[stage]: False})
    inside(cluster(HEAD, SPOT, TRAINER, GRADER), recipe, **ALL)


def test_a_group_that_does_not_exist_is_refused_without_nodes(
    inside: Callable[..., None],
) -> None:
    """Groups at 0 replicas have no node yet, and neither has a group that does not exist."""
    recipe = recipes.load("qwen3-4b-instruct")
    with pytest.raises(UserError, match="no group has the label ssd-ray/role=trainer: add a group"):
        inside(cluster(HEAD, SPOT, GRADER), recipe, **ALL)
    cpus = replace(SPOT, resources={"CPU": 8, "memory": 200 * GIB})
    with pytest.raises(UserError, match="and sampler-spot has no GPU: add a group with GPUs"):
        inside(cluster(HEAD, cpus, TRAINER, GRADER), recipe, **ALL)


def test_memory_that_a_cluster_does_not_state_refuses_no_run(inside: Callable[..., None]) -> None:
    """The plan assumes 79 GiB, and the GPUs may have 141."""
    large = recipes.load("qwen3-30b-instruct", ["train.sequence_parallel_size=1"])
    bare = replace(TRAINER, resources={"CPU": 64, "GPU": 8})
    on = cluster(HEAD, SPOT, bare, GRADER)
    assert not fits(large, on)["train"].fits
    inside(on, large, **ALL)
    labeled = replace(bare, labels={LABEL: "trainer", "ray.io/accelerator-type": "H100"})
    with pytest.raises(UserError, match=r"too little memory \(each GPU needs .* of 79\.6 GiB\)"):
        inside(cluster(HEAD, SPOT, labeled, GRADER), large, **ALL)


def test_graders_apart_need_no_group(inside: Callable[..., None]) -> None:
    """The component `grader-apart` leaves the group with no pods."""
    on = cluster(HEAD, SPOT, TRAINER, replace(GRADER, most=0))
    apart = recipes.load("qwen3-30b-instruct", ["cluster.graders=apart"])
    assert fits(apart, on)["grade"].fits
    inside(on, apart, **ALL)
    with pytest.raises(UserError, match="and grader holds 0: set maxReplicas of grader to 1"):
        inside(on, recipes.load("qwen3-30b-instruct"), **ALL)


def test_the_launchers_limit_of_all_nodes_counts() -> None:
    on = replace(cluster(HEAD, SPOT, TRAINER, GRADER, most_nodes=1), kind="launcher")
    train = fits("qwen3-30b-instruct", on)["train"]
    for change in train.changes:
        on = changed(on, change)
    assert fits("qwen3-30b-instruct", on)["train"].fits
