"""Checks of this machine before a run starts Ray, or downloads or samples anything.

- `check` refuses a run with one sentence: the cause, the value and the remedy.
- `faults` yields every reason, for `ssd-ray doctor`.
- With a cluster at RAY_ADDRESS, the work runs on other machines. Weights and shares of attention
  heads are checked then, and on this machine the room for the model and the kernel of attention.
- `cluster_room.py` compares the connected Ray with the work of a run.

Reads the machine; writes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ssd_ray import models
from ssd_ray.cluster import address, room
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.inference.vllm import placement
from ssd_ray.inference.vllm.arguments import kv_cache_gib, num_workers
from ssd_ray.machine import findings
from ssd_ray.machine.facts import Machine, read_machine
from ssd_ray.machine.findings import Finding, gib
from ssd_ray.machine.installed import (
    FLASH_KERNELS,
    OFFLINE,
    hub_failure,
    hub_home,
    kernel_home,
    lacking_package,
)
from ssd_ray.machine.storage import free_bytes, nearest
from ssd_ray.models import architecture, quantized
from ssd_ray.models.architecture import Architecture
from ssd_ray.pipeline import plan_checks, remedies

HUB_TIMEOUT_S = 0.8
"""Longest wait for an answer of the hub."""
_LEAVING_S = 10.0
"""Longest wait for an earlier run to leave the GPUs: its workers may still be ending."""


def check(recipe: Recipe, *, trains: bool, say: Callable[[str], None]) -> None:
    """Refuse a recipe that cannot run on this machine; `trains` includes its training.

    Memory that other programs use now is only reported: training begins later.

    Raises:
        UserError: the first fault, with its remedy.
    """
    machine = read_machine()
    deadline = time.monotonic() + _LEAVING_S
    while _is_busy(fault := next(faults(recipe, machine, trains=trains), None)):
        if time.monotonic() > deadline:
            break
        time.sleep(1)
        machine = read_machine()
    if fault is not None:
        raise UserError(fault.sentence)
    model = known_architecture(recipe) if trains else None
    if model is not None and not _on_cluster():
        for note in plan_checks.notes(recipe, machine, model):
            say(f"note: {note.sentence}")


def _is_busy(fault: Finding | None) -> bool:
    return fault is not None and fault.subject == "free memory"


def faults(recipe: Recipe, machine: Machine, *, trains: bool) -> Iterator[Finding]:
    """Yield the reasons why a recipe cannot run on this machine, causes before consequences."""
    model = known_architecture(recipe) if trains else None
    if trains:
        reason, remedy = quantized.untrainable(recipe.model)
        if reason:
            yield Finding(subject="weights", state="fault", text=reason, remedy=remedy)
    if model is not None:
        for field, (reason, remedy) in {
            "sequence_parallel_size": remedies.sharing(recipe, model),
            "expert_parallel_size": remedies.dividing(recipe, model),
        }.items():
            if reason:
                text = f"train.{field}: {reason}"
                yield Finding(subject="training", state="fault", text=text, remedy=remedy)
                # A plan would only repeat it.
                model = None
    if not _on_cluster():
        if recipe.cluster.device == "cuda":
            yield from _cuda_faults(recipe, machine)
            yield from _count_faults(recipe, machine, trains=trains)
        else:
            engines = placement.most_cpu_engines(recipe.engine, recipe.cluster, machine.host.cores)
            yield from findings.cache_faults(kv_cache_gib(recipe.engine), engines, machine.host)
        if model is not None:
            yield from plan_checks.faults(recipe, machine, model)
    yield from _room_faults(recipe)
    if trains:
        yield from _kernel_faults(recipe, machine)


def _on_cluster() -> bool:
    """Return True if the work runs in a cluster, or in a Ray that this process has started."""
    started = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return bool(address.named()) or started


def _cuda_faults(recipe: Recipe, machine: Machine) -> Iterator[Finding]:
    share = recipe.engine.gpu_memory_utilization
    for finding in findings.gpu_findings(machine.gpus, machine.torch, share):
        if finding.state == "fault":
            is_absent = finding.subject == "GPUs" and not machine.gpus.visible
            yield findings.with_build(finding, machine.torch) if is_absent else finding
    software = findings.build_finding(machine.torch, machine.engine)
    if software.state != "ok":
        yield software
    for finding in findings.tool_findings(machine.tools):
        needed = finding.subject == "C compiler" or recipe.train.offload != "none"
        if finding.state == "fault" and needed:
            yield finding


def known_architecture(recipe: Recipe) -> Architecture | None:
    """Return the architecture of the recipe's model if it is known before any download."""
    known = architecture.shipped(recipe.model.source)
    if known is not None:
        return known
    directory = models.local_directory(recipe.model)
    try:
        return architecture.read(directory) if directory else None
    except UserError:
        # Training supports more architectures than the planner.
        return None


def _count_faults(recipe: Recipe, machine: Machine, *, trains: bool) -> Iterator[Finding]:
    """Yield a fault if this machine has fewer GPUs than an engine or the training needs."""
    num_gpus = machine.gpus.largest_group
    if not num_gpus:
        return
    alone = " (a MIG slice works alone)" if num_gpus < len(machine.gpus.visible) else ""
    # The remedy for training comes first: with too few GPUs for it, one for engines leads nowhere.
    needed = room.training_need(recipe.train, recipe.cluster).workers if trains else 0
    if needed > num_gpus:
        yield Finding(
            subject="training",
            state="fault",
            text=(
                f"training needs {needed} GPUs (cluster.train_workers), and this machine has "
                f"{num_gpus}{alone}"
            ),
            remedy=remedies.remedy(
                recipe, known_architecture(recipe), plan_checks.hardware(machine)
            ),
        )
    engine = recipe.engine
    if (needed := num_workers(engine, "cuda")) > num_gpus:
        yield Finding(
            subject="engines",
            state="fault",
            text=(
                f"an engine needs {needed} GPUs (engine.tensor_parallel_size "
                f"{engine.tensor_parallel_size} × engine.pipeline_parallel_size "
                f"{engine.pipeline_parallel_size}), and this machine has {num_gpus}{alone}"
            ),
            remedy=placement.remedy(engine, "cuda", num_gpus),
        )


def _room_faults(recipe: Recipe) -> Iterator[Finding]:
    """Yield a fault if the storage of downloads has no room for the model."""
    if "hub" not in models.identify(recipe.model):
        return
    model = known_architecture(recipe)
    if model is None:
        return
    home = hub_home()
    folder = home / f"models--{recipe.model.source.replace('/', '--')}" / "blobs"
    downloaded = sum(path.stat().st_size for path in folder.glob("*")) if folder.exists() else 0
    # The hub's files are in bfloat16, or smaller.
    lacking = 2 * model.parameters - downloaded
    if lacking > 0 and not os.access(place := nearest(home), os.W_OK | os.X_OK):
        yield Finding(
            subject="room for the model",
            state="fault",
            text=f"{place} cannot be written, and {recipe.model.source} is downloaded there",
            remedy="make it writable, or set HF_HOME to another directory",
        )
    free = free_bytes(home)
    if lacking > free:
        yield Finding(
            subject="room for the model",
            state="fault",
            text=(
                f"{home} has {gib(free)} GiB left, and {recipe.model.source} needs "
                f"{gib(lacking)} GiB more there"
            ),
            remedy="free some, or set HF_HOME to a directory with more room",
        )


def _kernel_faults(recipe: Recipe, machine: Machine) -> Iterator[Finding]:
    """Yield a fault if the kernel of flash attention can be neither found nor downloaded."""
    attention = recipe.train.attention
    if reason := lacking_package(attention, machine.packages):
        yield Finding(
            subject="attention kernel", state="fault", text=reason, remedy="pip install kernels"
        )
        return
    if attention not in FLASH_KERNELS:
        return
    package, repository = FLASH_KERNELS[attention]
    if package in machine.packages or not (failure := hub_failure(HUB_TIMEOUT_S)):
        return
    home = kernel_home()
    is_cached = _is_cached(home, repository)
    # The package `kernels` asks the hub even for a kernel on disk, unless it is offline by choice.
    if is_cached and failure == OFFLINE:
        return
    if is_cached:
        yield Finding(
            subject="attention kernel",
            state="fault",
            text=f"{repository} is in {home}, and its package asks the hub ({failure})",
            remedy=f"set HF_HUB_OFFLINE=1, or install {package}",
        )
    else:
        yield Finding(
            subject="attention kernel",
            state="fault",
            text=(
                f"train.attention {attention!r} loads {repository} from the hub, "
                f"which is neither in {home} nor available ({failure})"
            ),
            remedy=f"load it once where the hub answers, with this HF_HOME, or install {package}",
        )


def _is_cached(home: Path, repository: str) -> bool:
    """Return True if the package `kernels` finds a version of a kernel in the cache."""
    name = repository.replace("/", "--")
    return any(home.glob(f"*--{name}/refs/v*"))
