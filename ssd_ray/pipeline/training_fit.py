"""Training on a described cluster: its gang, memory of GPUs, memory of hosts.

The planner's figures count, with the nodes of the group in place of its assumptions. Reads the
shipped recipes for remedies; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ssd_ray import roles
from ssd_ray.cluster.groups import Group
from ssd_ray.cluster.room import holding, training_need
from ssd_ray.pipeline import remedies
from ssd_ray.pipeline.cluster_fit import (
    Case,
    Change,
    StageFit,
    capacity,
    counted,
    placed,
    shortage,
)
from ssd_ray.pipeline.remedies import Hardware
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import GIB, HOST_MEMORY, Candidate, plan_training

_MOST = 4096
"""Workers of a cluster without a stated maximum."""


def training_fit(case: Case) -> StageFit:
    """Return the stage of training on the cluster."""
    cluster = case.recipe.cluster
    need = training_need(case.recipe.train, cluster)
    problem, changes, options = shortage(case, roles.TRAINER, need.workers, need.bundle, str(need))
    held = _held(case)
    for change in changes:
        # Memory is compared on the cluster as it would be with the change.
        if change.field == case.cluster.size_field:
            case = case.resized(change.group, int(change.value))
    groups = _groups(case)
    counts = case.recipe.train.worker_counts(need.workers, cluster.train_workers)
    workers = max([each for each in counts if each <= _held(case)], default=need.workers)
    nodes = placed(workers, need.bundle, groups, case.cluster.most_nodes)
    if problem and held and not options:
        used = case.assumed_on(groups)
        options = _options(case, Hardware(num_gpus=held, assumed=used))
    fit = StageFit(
        stage="train",
        role=roles.TRAINER,
        need=str(need).removeprefix("training needs "),
        nodes=nodes,
        problems=(problem,) if problem else (),
        changes=changes,
        options=options,
    )
    used_names = {each.group for each in nodes}
    gang = [group for group in groups if group.name in used_names]
    return _with_memory(case, fit, gang, workers) if gang else fit


def _groups(case: Case) -> list[Group]:
    bundle = roles.worker_bundle(case.recipe.cluster)
    return [group for group in case.serving(roles.TRAINER) if holding(bundle, group.resources)]


def _held(case: Case) -> int:
    """Return the number of training workers that the cluster holds."""
    bundle = roles.worker_bundle(case.recipe.cluster)
    return int(min(capacity(bundle, _groups(case), case.cluster.most_nodes), _MOST))


def _options(case: Case, hardware: Hardware) -> str:
    """Return a command with which the recipe trains on this hardware, "" without one."""
    known = case.model if case.recipe.cluster.device == "cuda" else None
    text = remedies.remedy(case.recipe, known, hardware)
    return text if text.startswith(("run with", "`ssd-ray run")) else ""


def _with_memory(case: Case, fit: StageFit, gang: Sequence[Group], workers: int) -> StageFit:
    """Add the planner's verdict on memory, and its hours and money."""
    if case.model is None:
        source = case.recipe.model.source
        note = f"memory is not compared: the configuration of {source} is not on this machine"
        return replace(fit, notes=(*fit.notes, note))
    assumed = case.assumed_on(gang)
    changed = case.recipe.cluster.model_copy(update={"train_workers": workers})
    recipe = case.recipe.model_copy(update={"cluster": changed})
    candidate = plan_training(recipe, case.model, assumed).requested
    if recipe.cluster.device == "cpu":
        return _with_cpu_memory(case, fit, gang, candidate)
    host = _host_problem(case, gang, candidate)
    if candidate.fits:
        return replace(fit, notes=(*fit.notes, *_notes(case, gang, candidate)))
    problem, change = host or (_refusal(candidate, assumed), None)
    options = fit.options
    if not fit.problems:
        hardware = Hardware(num_gpus=_held(case), assumed=assumed)
        options = _options(case, hardware) or ("" if change else "choose larger GPUs")
    return replace(
        fit,
        problems=(*fit.problems, problem),
        changes=(*fit.changes, *([change] if change else [])),
        options=options,
    )


def _refusal(candidate: Candidate, assumed: Assumptions) -> str:
    """Return the planner's reason against the training, with its figures."""
    needed = candidate.bytes_needed / GIB
    return (
        f"training on {candidate.num_workers} GPUs does not fit: {candidate.refusal} (each GPU "
        f"needs {needed:,.1f} of {assumed.gpu_memory_gib:,.1f} GiB)"
    )


def _host_problem(
    case: Case, gang: Sequence[Group], candidate: Candidate
) -> tuple[str, Change] | None:
    """Return the lack of host memory and the memory to give; None for another refusal."""
    if candidate.refusal != HOST_MEMORY:
        return None
    bundle = roles.worker_bundle(case.recipe.cluster)
    smallest = min(gang, key=lambda group: group.resources.get("memory", math.inf))
    workers = min(candidate.num_workers, holding(bundle, smallest.resources))
    needed = (candidate.memory.host + candidate.memory.kept) * workers + candidate.memory.export
    return _memory_problem(case, smallest, workers, needed)


def _memory_problem(case: Case, group: Group, workers: int, needed: float) -> tuple[str, Change]:
    has = group.resources.get("memory", case.assumed.host_memory_gib * GIB) / GIB
    problem = (
        f"{counted(workers, 'training worker')} on a {case.cluster.node_word} of {group.name} "
        f"need{'s' if workers == 1 else ''} {needed / GIB:,.1f} GiB of memory, and it has "
        f"{has:,.1f}"
    )
    return problem, Change(group=group.name, field="memory", value=f"{math.ceil(needed / GIB)}Gi")


def _with_cpu_memory(
    case: Case, fit: StageFit, gang: Sequence[Group], candidate: Candidate
) -> StageFit:
    """Add a problem where the CPU workers of a node need more than its memory."""
    bundle = roles.worker_bundle(case.recipe.cluster)
    for group in gang:
        workers = min(candidate.num_workers, holding(bundle, group.resources))
        needed = workers * candidate.bytes_needed
        if needed > group.resources.get("memory", math.inf):
            problem, change = _memory_problem(case, group, workers, needed)
            return replace(fit, problems=(*fit.problems, problem), changes=(*fit.changes, change))
    return fit


def _notes(case: Case, gang: Sequence[Group], candidate: Candidate) -> list[str]:
    notes = []
    if candidate.time is not None:
        gpus = counted(candidate.num_workers, "GPU")
        notes.append(f"{candidate.time.hours:.1f} h on {gpus}, {candidate.usd:,.0f} USD")
    shared = case.recipe.train.sequence_parallel_size
    per_node = min(
        holding(roles.worker_bundle(case.recipe.cluster), each.resources) for each in gang
    )
    if shared > per_node:
        word = case.cluster.node_word
        notes.append(
            f"{shared} workers share a sequence, and a {word} has {per_node}: they exchange it "
            "over the network"
        )
    return notes
