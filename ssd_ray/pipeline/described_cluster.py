"""Every stage of a recipe on a described cluster, before anything is started.

The driver, engines and graders are here, training in `training_fit.py`. Pure functions, except for
the shipped recipes that remedies read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ssd_ray import roles
from ssd_ray.cluster.cluster_files import DescribedCluster
from ssd_ray.cluster.groups import Group
from ssd_ray.cluster.room import holding
from ssd_ray.config import Recipe
from ssd_ray.inference.vllm.arguments import kv_cache_gib, num_workers
from ssd_ray.models.architecture import Architecture
from ssd_ray.pipeline.cluster_fit import (
    Case,
    Change,
    Nodes,
    StageFit,
    capacity,
    counted,
    names,
    placed,
    shortage,
)
from ssd_ray.pipeline.training_fit import training_fit
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import GIB
from ssd_ray.roles import LABEL


def stages_on(
    recipe: Recipe, cluster: DescribedCluster, model: Architecture | None, assumed: Assumptions
) -> tuple[StageFit, ...]:
    """Return the stages of a recipe on a cluster, in the order of a run."""
    case = Case(recipe=recipe, cluster=cluster, model=model, assumed=assumed)
    return _driver_fit(case), _sampling_fit(case), training_fit(case), _grading_fit(case)


def _driver_fit(case: Case) -> StageFit:
    """Return the stage of the driver: it renders, prepares and reports, and holds the others."""
    head = next((group for group in case.cluster.groups if group.is_head), None)
    fit = StageFit(
        stage="render",
        role=roles.DRIVER,
        need="the driver, 1 process",
        nodes=() if head is None else (Nodes(group=head.name, number=1),),
    )
    if case.recipe.cluster.roles == "required" and not case.has_roles:
        problem = f"cluster.roles is 'required', and no group has the label {LABEL}"
        return replace(fit, problems=(problem,), options="label the groups, or set it to auto")
    if not case.has_roles:
        return fit
    serving = case.serving(roles.DRIVER)
    if not serving:
        change = Change(
            group=head.name if head else "the head", field=f"labels.{LABEL}", value="driver"
        )
        problem = f"no group has the label {LABEL}=driver, and others have one"
        return replace(fit, problems=(problem,), changes=(change,))
    fit = replace(fit, nodes=(Nodes(group=serving[0].name, number=1),))
    if not serving[0].is_head:
        note = f"submit with --entrypoint-label-selector: the driver belongs on {names(serving)}"
        return replace(fit, notes=(note,))
    return fit


def _sampling_fit(case: Case) -> StageFit:
    """Return the stage of sampling: engines on GPUs or cores."""
    recipe = case.recipe
    gpus = num_workers(recipe.engine, recipe.cluster.device)
    groups = case.serving(roles.SAMPLER)
    bundle: dict[str, float] = {"CPU": recipe.engine.cpus}
    what = counted(recipe.engine.cpus, "core")
    if recipe.cluster.device == "cuda":
        bundle = {"GPU": gpus, "CPU": 1}
        what = counted(gpus, "GPU")
    spread = gpus > 1 and not any(holding(bundle, group.resources) for group in groups)
    engines, most = recipe.cluster.min_engines, recipe.cluster.max_engines
    if spread:
        # Ray puts an engine on several nodes only if no node can hold it.
        bundle, engines, most = {"GPU": 1}, engines * gpus, most * gpus
    least = counted(recipe.cluster.min_engines, "engine")
    subject = f"sampling needs {least} of {what}"
    if (largest := recipe.cluster.max_engines) > recipe.cluster.min_engines:
        least = f"{recipe.cluster.min_engines} to {largest} engines"
    problem, changes, options = shortage(case, roles.SAMPLER, engines, bundle, subject)
    held = min(most, capacity(bundle, groups, case.cluster.most_nodes))
    notes = []
    if spread and not problem:
        notes.append(f"an engine is spread over {gpus} {case.cluster.node_word}s: slow")
    if not problem and held < most:
        engines_held = int(held) // (gpus if spread else 1)
        notes.append(f"{engines_held} of cluster.max_engines {recipe.cluster.max_engines}")
    fit = StageFit(
        stage="sample",
        role=roles.SAMPLER,
        need=f"{least} of {what}",
        nodes=placed(max(held, engines), bundle, groups, case.cluster.most_nodes),
        problems=(problem,) if problem else (),
        changes=changes,
        options=options,
        notes=tuple(notes),
    )
    used = [group for group in groups if holding(bundle, group.resources)]
    if case.model is None or not used:
        return fit
    if recipe.cluster.device == "cpu":
        return _with_cpu_engines(case, fit, used, case.model)
    return _with_weights(case, fit, used, case.model)


def _with_weights(
    case: Case, fit: StageFit, groups: Sequence[Group], model: Architecture
) -> StageFit:
    """Add a problem where an engine's weights alone exceed its share of the GPUs' memory."""
    engine = case.recipe.engine
    usable = case.assumed_on(groups).gpu_memory_gib * engine.gpu_memory_utilization
    total = _weights(case.recipe, model) / GIB
    gpus = num_workers(engine, "cuda")
    if total / gpus <= usable:
        return fit
    wanted = 2 ** math.ceil(math.log2(total / usable / engine.pipeline_parallel_size))
    problem = (
        f"weights of {total / gpus:,.1f} GiB on each GPU of an engine are above the "
        f"{usable:,.1f} GiB that it may use"
    )
    options = f"run with --set engine.tensor_parallel_size={wanted}"
    return replace(fit, problems=(*fit.problems, problem), options=options)


def _with_cpu_engines(
    case: Case, fit: StageFit, groups: Sequence[Group], model: Architecture
) -> StageFit:
    """Add a problem where the weights and caches of a node's engines exceed its memory."""
    recipe = case.recipe
    each = _weights(recipe, model) + kv_cache_gib(recipe.engine) * GIB
    for group in groups:
        engines = min(
            recipe.cluster.max_engines, holding({"CPU": recipe.engine.cpus}, group.resources)
        )
        has = group.resources.get("memory", math.inf)
        if engines * each > has:
            problem = (
                f"{counted(engines, 'engine')} on a {case.cluster.node_word} of {group.name} "
                f"need{'s' if engines == 1 else ''} {engines * each / GIB:,.1f} GiB for weights "
                f"and caches, and it has {has / GIB:,.1f}"
            )
            value = f"{math.ceil(engines * each / GIB)}Gi"
            change = Change(group=group.name, field="memory", value=value)
            return replace(
                fit,
                problems=(*fit.problems, problem),
                changes=(*fit.changes, change),
                options="lower engine.kv_cache_gib",
            )
    return fit


def _weights(recipe: Recipe, model: Architecture) -> int:
    """Return the bytes of the weights in the precision of inference."""
    return (4 if recipe.model.dtype == "float32" else 2) * model.parameters


def _grading_fit(case: Case) -> StageFit:
    """Return the stage of grading: graders on cores."""
    cluster = case.recipe.cluster
    if cluster.graders == "apart":
        return StageFit(
            stage="grade", role=roles.GRADER, need="graders apart from Ray, none here", nodes=()
        )
    # A grader that reserves nothing still runs on a core.
    bundle = {"CPU": max(cluster.grader_cpus, 1.0) if case.has_roles else cluster.grader_cpus or 1}
    groups = case.serving(roles.GRADER)
    what = counted(bundle["CPU"], "core")
    problem, changes, options = shortage(
        case, roles.GRADER, 1, bundle, f"grading needs 1 grader of {what}"
    )
    most = capacity(bundle, groups, case.cluster.most_nodes)
    wanted = min(most, cluster.max_graders or math.inf)
    number = f"1 to {wanted:g} graders" if 1 < wanted < math.inf else "1 grader"
    if math.isinf(wanted):
        number, wanted = "1 grader or more", 1
    return StageFit(
        stage="grade",
        role=roles.GRADER,
        need=f"{number} of {what}",
        nodes=placed(wanted, bundle, groups, case.cluster.most_nodes),
        problems=(problem,) if problem else (),
        changes=changes,
        options=options,
    )
