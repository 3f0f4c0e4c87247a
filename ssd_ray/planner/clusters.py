"""Clusters for a training: fit, tokens, hours and money.

Numbers come from the recipe, the model and the assumptions. Assumptions are printed with the plan,
and `--assume NAME=VALUE` overrides them. Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product

from pydantic import ValidationError

from ssd_ray.artifacts.dataset_facts import SequenceFacts
from ssd_ray.config import Recipe, TrainConfig
from ssd_ray.models.architecture import EXPERT_PARALLEL, Architecture, can_share
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.hours import Time, time_of
from ssd_ray.planner.memory import Memory, Setting, memory
from ssd_ray.planner.states import States, states_of
from ssd_ray.planner.work import Work, adapter_parameters, count_work, max_tokens

GIB = 2**30
SIZES = (1, 2, 4, 8, 16, 32)
"""Sizes of clusters to try in addition to the recipe's own, in GPUs."""
HOST_MEMORY = "too little host memory"
"""Reason against a training whose offloaded states or export exceed the memory of a node's host."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One cluster with the memory, time and money of the training on it."""

    num_workers: int
    setting: Setting
    memory: Memory
    """Bytes of one worker by part."""
    bytes_needed: float
    """Bytes of one worker, with context and fragmentation on a GPU."""
    refusal: str
    """Reason why the training does not fit; empty if it does."""
    time: Time | None
    """Expected duration; None on a CPU, or if the training does not fit."""
    most: Time | None
    """Duration if every sequence has the largest length; None where `time` is None."""
    usd: float | None
    usd_at_most: float | None
    states: States
    """Resume states, whose seconds are not part of `time`."""

    @property
    def fits(self) -> bool:
        """True if the training runs on this cluster."""
        return not self.refusal


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Plan of a recipe's training."""

    model: Architecture
    assumed: Assumptions
    device: str
    length: int
    """Limit on the tokens of a sequence."""
    work: Work
    num_workers: int
    """The recipe's own number of workers."""
    candidates: tuple[Candidate, ...]
    """Clusters in order of size, the recipe's own included."""
    remedy: tuple[str, Candidate] | None
    """Options that make the training fit the recipe's cluster, and the changed cluster.

    If no candidate fits, the options may be for another cluster: the smallest that fits with them.
    """
    warning: str
    """Sentence about lengths beyond the model's context; empty if there are none."""

    @property
    def smallest(self) -> Candidate | None:
        """The smallest cluster that fits."""
        return next((candidate for candidate in self.candidates if candidate.fits), None)

    @property
    def requested(self) -> Candidate:
        """The recipe's own cluster."""
        return next(
            candidate for candidate in self.candidates if candidate.num_workers == self.num_workers
        )


def plan_training(
    recipe: Recipe,
    model: Architecture,
    assumed: Assumptions,
    dataset: SequenceFacts | None = None,
) -> TrainingPlan:
    """Plan memory, clusters, time and money of a recipe's training.

    `dataset` are facts of the data set's manifest. Without them, lengths are assumed.
    """
    work = count_work(recipe, model, assumed, dataset)
    num_workers = recipe.cluster.train_workers
    on_cpu = recipe.cluster.device == "cpu"
    sizes = [num_workers] if on_cpu else sorted({*SIZES, num_workers})
    candidates = tuple(_candidate(recipe, model, assumed, work, size) for size in sizes)
    refused = {candidate.num_workers for candidate in candidates if not candidate.fits}
    # Remedies are tried lazily, and the first one is taken: the recipe's own cluster before others.
    remedies: Iterator[tuple[str, Candidate]] = iter(())
    if num_workers in refused:
        remedies = _remedies(recipe, model, assumed, work, [num_workers])
    if refused == set(sizes):
        remedies = chain(remedies, _remedies(recipe, model, assumed, work, sizes))
    return TrainingPlan(
        model=model,
        assumed=assumed,
        device=recipe.cluster.device,
        length=max_tokens(recipe),
        work=work,
        num_workers=num_workers,
        candidates=candidates,
        remedy=next(remedies, None),
        warning=_warning(recipe, model),
    )


def _warning(recipe: Recipe, model: Architecture) -> str:
    """Return a warning about lengths beyond the model's context, with the remedy; else ""."""
    context = model.max_positions
    if recipe.model.max_model_len <= context:
        return ""
    answers = [
        name
        for name in ("sample", "evaluate")
        if "max_tokens" in getattr(recipe, name).model_fields_set
    ]
    above = [
        "model.max_model_len",
        *(f"{name}.max_tokens" for name in answers if getattr(recipe, name).max_tokens > context),
    ]
    return (
        f"model.max_model_len {recipe.model.max_model_len} is above the model's context of "
        f"{context} tokens, and training refuses a longer sequence: "
        + " ".join(f"--set {name}={context}" for name in above)
    )


def _mask_tokens(recipe: Recipe, model: Architecture) -> int:
    """Return the side of the square mask that sdpa needs for packing or windows; 0 if none."""
    train = recipe.train
    length = max_tokens(recipe)
    if train.attention != "sdpa":
        return 0
    packed = train.packing and not train.sequences_alone
    windowed = bool(model.windowed_layers) and model.window is not None and length >= model.window
    return max((train.micro_batch_tokens or length) if packed else 0, length if windowed else 0)


def _setting(recipe: Recipe, model: Architecture, num_workers: int) -> Setting:
    train = recipe.train
    on_cpu = recipe.cluster.device == "cpu"
    groups = num_workers // train.sequence_parallel_size
    accumulates = (
        on_cpu and train.accumulate_locally and train.dtype == "float32" and train.zero_stage >= 2
    )
    return Setting(
        num_workers=num_workers,
        zero_stage=train.zero_stage,
        offload=train.offload,
        sequence_parallel=train.sequence_parallel_size,
        expert_parallel=train.expert_parallel_size,
        micro_batch_tokens=max(max_tokens(recipe), train.micro_batch_tokens or 0),
        precision=train.dtype,
        gradient_checkpointing=train.gradient_checkpointing,
        chunk_tokens=train.loss_chunk_tokens,
        lora_parameters=adapter_parameters(recipe, model),
        mask_tokens=_mask_tokens(recipe, model) if train.sequence_parallel_size == 1 else 0,
        heldout_tokens=train.heldout_samples * max_tokens(recipe),
        on_cpu=on_cpu,
        whole_gradient=accumulates and train.global_batch_size > max(groups, 1),
    )


def _candidate(
    recipe: Recipe, model: Architecture, assumed: Assumptions, work: Work, size: int
) -> Candidate:
    """Plan the training on a cluster of `size` workers."""
    setting = _setting(recipe, model, size)
    parts = memory(model, setting)
    on_cpu = setting.on_cpu
    needed: float = parts.device
    if not on_cpu:
        needed = parts.device * (1 + assumed.fragmentation) + assumed.context_gib * GIB
    refusal = "" if on_cpu else _refusal(recipe, model, assumed, setting, parts, needed)
    # A CPU's speed is not assumed, so a plan for CPU workers has neither hours nor money.
    expected, most = (
        None if on_cpu or refusal else time_of(recipe, model, assumed, setting, load)
        for load in (work.expected, work.at_most)
    )
    price = size * assumed.usd_per_gpu_hour
    return Candidate(
        num_workers=size,
        setting=setting,
        memory=parts,
        bytes_needed=needed,
        refusal=refusal,
        time=expected,
        most=most,
        usd=None if expected is None else expected.hours * price,
        usd_at_most=None if most is None else most.hours * price,
        states=states_of(recipe, model, assumed, setting, expected),
    )


def _refusal(
    recipe: Recipe,
    model: Architecture,
    assumed: Assumptions,
    setting: Setting,
    parts: Memory,
    needed: float,
) -> str:
    """Return the reason why a training does not fit a cluster; empty if it does."""
    size = setting.num_workers
    if reason := _no_division(model, setting):
        return reason
    groups = size // setting.sequence_parallel
    if recipe.train.global_batch_size % groups:
        return f"does not divide a batch of {recipe.train.global_batch_size}"
    if needed > assumed.gpu_memory_gib * GIB:
        return "too little memory"
    if host_bytes(parts, min(size, assumed.gpus_per_node)) > assumed.host_memory_gib * GIB:
        return HOST_MEMORY
    return ""


def host_bytes(parts: Memory, workers: int) -> float:
    """Return the bytes of a node's host for its workers; one of them gathers the export."""
    return (parts.host + parts.kept) * workers + parts.export


def _no_division(model: Architecture, setting: Setting) -> str:
    """Return the reason why workers cannot share sequences or experts; empty if they can."""
    shared = setting.sequence_parallel
    experts = setting.expert_parallel
    size = setting.num_workers
    if reason := unshareable(model, shared):
        return reason
    if size % shared:
        return f"not a multiple of {shared} workers per sequence"
    if reason := indivisible(model, experts):
        return reason
    if size % experts:
        return f"not a multiple of {experts} workers that divide experts"
    return ""


def indivisible(model: Architecture, workers: int) -> str:
    """Return the reason why `workers` workers cannot divide experts; empty if they can."""
    if workers > 1 and (model.model_type != EXPERT_PARALLEL or model.experts % workers):
        return f"{workers} workers cannot divide the experts of this model"
    return ""


def unshareable(model: Architecture, shared: int) -> str:
    """Return the reason why `shared` workers cannot share a sequence; empty if they can."""
    if not can_share(model.heads, model.key_value_heads, shared):
        return (
            f"{shared} workers per sequence cannot share {model.heads} attention and "
            f"{model.key_value_heads} key-value heads"
        )
    if model.sinks and shared > 1:
        # DeepSpeed's Ulysses passes the sinks of all heads to workers with some of them.
        return "attention sinks cannot be shared by workers"
    return ""


def _remedies(
    recipe: Recipe, model: Architecture, assumed: Assumptions, work: Work, sizes: Sequence[int]
) -> Iterator[tuple[str, Candidate]]:
    """Yield changes of a valid recipe that make it fit, the least intrusive first.

    - The order is: nothing offloaded, the optimizer offloaded, the parameters too.
    - Each of them is tried with the recipe's own number of GPUs for a sequence first, then with
      others: upwards from 1, or downwards from 8.
    - All are tried with ZeRO-3 first, then with the recipe's own stage: not every recipe allows
      ZeRO-3.
    """
    stages = dict.fromkeys((3, recipe.train.zero_stage))
    own = recipe.train.sequence_parallel_size
    shares = dict.fromkeys((own, *sorted((1, 2, 4, 8), reverse=own > 1)))
    for stage, offload, shared in product(stages, ("none", "optimizer", "parameters"), shares):
        wanted = {"zero_stage": stage, "offload": offload, "sequence_parallel_size": shared}
        # The recipe's own checks decide which combinations are valid.
        try:
            train = TrainConfig.model_validate({**recipe.train.model_dump(), **wanted})
        except ValidationError:
            continue
        changed = recipe.model_copy(update={"train": train})
        differing = {
            name: value for name, value in wanted.items() if value != getattr(recipe.train, name)
        }
        for candidate in (_candidate(changed, model, assumed, work, size) for size in sizes):
            if candidate.fits:
                yield (
                    " ".join(f"--set train.{name}={value}" for name, value in differing.items()),
                    candidate,
                )
