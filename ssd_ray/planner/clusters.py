"""Which cluster a training fits on, and what it takes there in tokens, hours and money.

Every number that is not of the recipe or the model is an assumption: printed with the plan, and overridden with
`--assume NAME=VALUE`. Pure functions of a recipe, an architecture and the assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product
from typing import Any, Literal

from pydantic import ValidationError

from ssd_ray.config import Recipe, TrainConfig
from ssd_ray.models.architecture import Architecture
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.memory import Memory, Setting, memory

GIB = 2**30
SIZES = (1, 2, 4, 8, 16, 32)
"""Clusters that are tried beside the recipe's own, in GPUs."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Tokens and floating-point operations of one optimiser step."""

    tokens: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a training has to do: steps of so much, or of so much `at_most`, were every sequence as long as it may be."""

    steps: int
    sequences: int
    expected: Load
    at_most: Load
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Time:
    """Hours of a training, and what they are bound by."""

    hours: float
    bound: Literal["compute", "network"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One cluster: its workers, the bytes of one, whether it fits or why not, and the time and money it takes."""

    num_workers: int
    setting: Setting
    memory: Memory
    bytes_needed: float
    refusal: str
    time: Time | None
    most: Time | None
    usd: float | None
    usd_at_most: float | None

    @property
    def fits(self) -> bool:
        """Whether the training runs there."""
        return not self.refusal


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What training a recipe's model takes; `asked` is the recipe's own number of workers.

    `mend` is what makes it fit there, or, where it fits nowhere, on the smallest cluster that it can be made to fit. `warning`
    is a sentence where the recipe asks for more than the model's context, else empty.
    """

    model: Architecture
    assumed: Assumptions
    device: str
    length: int
    work: Work
    asked: int
    candidates: tuple[Candidate, ...]
    mend: tuple[str, Candidate] | None
    warning: str

    @property
    def smallest(self) -> Candidate | None:
        """The smallest cluster that fits."""
        return next((candidate for candidate in self.candidates if candidate.fits), None)

    @property
    def own(self) -> Candidate:
        """The recipe's own cluster."""
        return next(
            candidate for candidate in self.candidates if candidate.num_workers == self.asked
        )


def plan_training(
    recipe: Recipe,
    model: Architecture,
    assumed: Assumptions,
    dataset: Mapping[str, Any] | None = None,
) -> TrainingPlan:
    """Memory, clusters, time and money of a recipe's training; `dataset` is what its manifest counted, once it is there."""
    work, asked = _work(recipe, model, assumed, dataset), recipe.cluster.train_workers
    on_cpu = recipe.cluster.device == "cpu"
    sizes = [asked] if on_cpu else sorted({*SIZES, asked})
    candidates = tuple(_candidate(recipe, model, assumed, work, size) for size in sizes)
    refused = {candidate.num_workers for candidate in candidates if not candidate.fits}
    mends = _mends(recipe, model, assumed, work, [asked]) if asked in refused else iter(())
    if refused == set(sizes):
        mends = chain(mends, _mends(recipe, model, assumed, work, sizes))
    return TrainingPlan(
        model=model,
        assumed=assumed,
        device=recipe.cluster.device,
        length=_length(recipe),
        work=work,
        asked=asked,
        candidates=candidates,
        mend=next(mends, None),
        warning=_warning(recipe, model),
    )


def _warning(recipe: Recipe, model: Architecture) -> str:
    """What a recipe asks of a model beyond its context, and the mend; empty where it does not."""
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
        f"model.max_model_len {recipe.model.max_model_len} is above the model's context of {context} tokens, and training "
        "refuses a longer sequence: " + " ".join(f"--set {name}={context}" for name in above)
    )


def _length(recipe: Recipe) -> int:
    return min(recipe.prepare.max_length, recipe.model.max_model_len)


def _adapters(recipe: Recipe, model: Architecture) -> int | None:
    """Parameters of the recipe's adapters; None where it trains all weights."""
    lora = recipe.train.lora
    return model.lora_parameters(lora.rank, lora.target_modules) if lora else None


def _mask_tokens(recipe: Recipe, model: Architecture) -> int:
    """Side of the square mask that sdpa is given: for sequences end to end, or for a window; 0 where it is just causal."""
    train, length = recipe.train, _length(recipe)
    if train.attention != "sdpa":
        return 0
    packed = train.packing and not train.sequences_alone
    windowed = bool(model.windowed_layers) and model.window is not None and length >= model.window
    return max((train.micro_batch_tokens or length) if packed else 0, length if windowed else 0)


def _work(
    recipe: Recipe, model: Architecture, assumed: Assumptions, dataset: Mapping[str, Any] | None
) -> Work:
    train, length, adapters = recipe.train, _length(recipe), _adapters(recipe, model)
    if dataset:
        prompt, responses = dataset["prompt_tokens"] / dataset["rows"], _responses(dataset)
    else:
        response = min(assumed.mean_response_tokens, recipe.sample.max_tokens, length)
        prompt, responses = min(assumed.mean_prompt_tokens, length - response), [(1.0, response)]

    def load(prompt: float, responses: Sequence[tuple[float, float]]) -> Load:
        batch = train.global_batch_size
        tokens = prompt + sum(share * response for share, response in responses)
        flops = sum(
            share * model.flops(round(prompt), round(response), adapters)
            for share, response in responses
        )
        return Load(tokens=batch * tokens, flops=batch * flops)

    return Work(
        steps=train.steps,
        sequences=train.steps * train.global_batch_size,
        expected=load(prompt, responses),
        at_most=load(min(prompt, length), [(1.0, length - min(prompt, length))]),
        measured=bool(dataset),
    )


def _responses(dataset: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Shares of a data set's responses and their lengths: the middles of its histogram's bins, moved to the counted mean.

    Attention grows with the square of a length, so lengths that differ cost more than as many of the mean.
    """
    edges, counts = (dataset["length_histogram"][name] for name in ("edges", "counts"))
    shares = [count / sum(counts) for count in counts]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    mean = sum(share * middle for share, middle in zip(shares, middles, strict=True))
    scale = dataset["response_tokens"] / dataset["rows"] / mean
    return [(share, scale * middle) for share, middle in zip(shares, middles, strict=True) if share]


def _setting(recipe: Recipe, model: Architecture, num_workers: int) -> Setting:
    train, on_cpu = recipe.train, recipe.cluster.device == "cpu"
    groups = num_workers // train.sequence_parallel_size
    together = (
        on_cpu and train.accumulate_locally and train.dtype == "float32" and train.zero_stage >= 2
    )
    return Setting(
        num_workers=num_workers,
        zero_stage=train.zero_stage,
        offload=train.offload,
        sequence_parallel=train.sequence_parallel_size,
        micro_batch_tokens=max(_length(recipe), train.micro_batch_tokens or 0),
        precision=train.dtype,
        gradient_checkpointing=train.gradient_checkpointing,
        chunk_tokens=train.loss_chunk_tokens,
        lora_parameters=_adapters(recipe, model),
        mask_tokens=_mask_tokens(recipe, model) if train.sequence_parallel_size == 1 else 0,
        heldout_tokens=train.heldout_samples * _length(recipe),
        on_cpu=on_cpu,
        whole_gradient=together and train.global_batch_size > max(groups, 1),
    )


def _candidate(
    recipe: Recipe, model: Architecture, assumed: Assumptions, work: Work, size: int
) -> Candidate:
    setting = _setting(recipe, model, size)
    found = memory(model, setting)
    on_cpu = setting.on_cpu
    needed = (
        found.device
        if on_cpu
        else found.device * (1 + assumed.fragmentation) + assumed.context_gib * GIB
    )
    fewest = _fewest_micro_steps(recipe, size)
    expected, most = (
        None if on_cpu else _time(model, assumed, setting, work.steps, load, fewest)
        for load in (work.expected, work.at_most)
    )
    price = size * assumed.usd_per_gpu_hour
    return Candidate(
        num_workers=size,
        setting=setting,
        memory=found,
        bytes_needed=needed,
        refusal="" if on_cpu else _refusal(recipe, model, assumed, setting, found, needed),
        time=expected,
        most=most,
        usd=None if expected is None else expected.hours * price,
        usd_at_most=None if most is None else most.hours * price,
    )


def _fewest_micro_steps(recipe: Recipe, num_workers: int) -> int:
    """Micro-steps that a step has at least: one a sequence where sequences go alone."""
    train = recipe.train
    return (
        math.ceil(train.global_batch_size * train.sequence_parallel_size / num_workers)
        if train.sequences_alone
        else 1
    )


def _time(
    model: Architecture, assumed: Assumptions, setting: Setting, steps: int, load: Load, fewest: int
) -> Time:
    """The longer of computing and exchanging, which overlap: ZeRO-3 gathers all parameters twice a micro-step.

    A micro-step takes as many tokens as the setting allows, so short sequences share one where there need not be `fewest`.
    """
    size, trained = setting.num_workers, setting.trained(model)
    compute = load.flops / (size * assumed.peak_flops(setting.precision) * assumed.mfu(model))
    micro_steps = max(
        fewest,
        math.ceil(load.tokens * setting.sequence_parallel / (size * setting.micro_batch_tokens)),
    )
    gathered = 2 * setting.width * model.parameters if setting.zero_stage == 3 else 0
    reduced = 4 * trained if setting.zero_stage >= 2 else 8 * trained / micro_steps
    several = size > assumed.gpus_per_node
    rate = 1e9 * (assumed.network_gb_s if several else assumed.node_gb_s)
    exchange = micro_steps * (gathered + reduced) * (size - 1) / size / rate
    return Time(
        hours=steps * max(compute, exchange) / 3600,
        bound="compute" if compute >= exchange else "network",
    )


def _refusal(
    recipe: Recipe,
    model: Architecture,
    assumed: Assumptions,
    setting: Setting,
    found: Memory,
    needed: float,
) -> str:
    """Why a cluster cannot carry a training; empty if it can."""
    shared, size = setting.sequence_parallel, setting.num_workers
    if model.heads % shared or (model.key_value_heads % shared and shared % model.key_value_heads):
        return f"{shared} workers a sequence cannot share {model.heads} attention and {model.key_value_heads} key-value heads"
    if size % shared:
        return f"no multiple of {shared} workers a sequence"
    if recipe.train.global_batch_size % (size // shared):
        return f"does not divide a batch of {recipe.train.global_batch_size}"
    if needed > assumed.gpu_memory_gib * GIB:
        return "too little memory"
    if (found.host + found.kept) * min(
        size, assumed.gpus_per_node
    ) + found.export > assumed.host_memory_gib * GIB:
        return "too little host memory"
    return ""


def _mends(
    recipe: Recipe, model: Architecture, assumed: Assumptions, work: Work, sizes: Sequence[int]
) -> Iterator[tuple[str, Candidate]]:
    """Changes that make a recipe fit and stay a recipe, the least intrusive first: a sequence over more GPUs, then offloading.

    They come with ZeRO-3, then with the recipe's own stage, since not every recipe may go to ZeRO-3.
    """
    stages = dict.fromkeys((3, recipe.train.zero_stage))
    for stage, offload, shared in product(
        stages, ("none", "optimizer", "parameters"), (1, 2, 4, 8)
    ):
        wanted = {"zero_stage": stage, "offload": offload, "sequence_parallel_size": shared}
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
