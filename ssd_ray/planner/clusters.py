"""Which cluster a training fits on, and what it takes there in tokens, hours and money.

Every number that is not of the recipe or the model is an assumption: printed with the plan, and overridden with
`--assume NAME=VALUE`. Pure functions of a recipe, an architecture and the assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from ssd_ray.config import Recipe, Section
from ssd_ray.errors import UserError
from ssd_ray.planner.architecture import Architecture
from ssd_ray.planner.memory import Memory, Setting, memory

GIB = 2**30
SIZES = (1, 2, 4, 8, 16, 32)
"""Clusters that are tried, in GPUs; from the ninth on in nodes."""


class Assumptions(Section):
    """What a plan takes for granted about machines, speeds and lengths."""

    gpu_memory_gib: float = Field(79.0, gt=0)
    """Memory of one GPU in GiB; an H100 sold as 80 GB reports 79.6."""
    context_gib: float = Field(1.5, ge=0)
    """What CUDA and NCCL keep on a GPU before any tensor."""
    fragmentation: float = Field(0.1, ge=0, lt=1)
    """Share that the allocator needs on top of what is in tensors."""
    host_memory_gib: float = Field(1800.0, gt=0)
    """Memory of one node's host for what is offloaded."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs of one node."""
    peak_tflops: float = Field(989.0, gt=0)
    """Peak of one GPU in TFLOP/s at the training precision: H100 SXM, bfloat16, dense, of its data sheet."""
    mfu_dense: float = Field(0.35, gt=0, le=1)
    """Share of the peak that a dense model reaches, recomputation not counted; torchtitan states 33 to 39 % (8B, 8 H100)."""
    mfu_moe: float = Field(0.14, gt=0, le=1)
    """The same for a mixture of experts; prime-rl states 14 % for Qwen3-30B-A3B at 65,536 tokens. It takes grouped experts:
    with a loop over experts ZeRO-3 was seen at a tenth of the speed of expert parallelism (ms-swift)."""
    node_gb_s: float = Field(300.0, gt=0)
    """GB/s that a GPU exchanges with the others of its node; NVLink of an H100 has 450 each way."""
    network_gb_s: float = Field(200.0, gt=0)
    """GB/s of one node's network; eight adapters of 400 Gbit/s have 400. Exchange and computation overlap."""
    mean_prompt_tokens: float = Field(600, ge=0)
    """Mean length of a prompt, where no data set says it yet."""
    mean_response_tokens: float = Field(2500, ge=1)
    """Mean length of a sample, where no data set says it yet; of a 4B model's, 99 % are below 8,000 (ml-ssd, issue 7), and
    thinking models write several times more."""
    usd_per_gpu_hour: float = Field(2.5, ge=0)
    """Price of one GPU for an hour in USD; a round figure, not a quotation."""

    def mfu(self, model: Architecture) -> float:
        """The share of the peak for a model."""
        return self.mfu_moe if model.sparse_layers else self.mfu_dense


def assumptions(overrides: Sequence[str]) -> Assumptions:
    """The assumptions with `NAME=VALUE` overrides.

    Raises:
        UserError: an unknown name, or a value that is none.
    """
    given = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or name not in Assumptions.model_fields:
            raise UserError(f"--assume {override!r} is not NAME=VALUE with one of {', '.join(Assumptions.model_fields)}")
        given[name] = yaml.safe_load(text)
    try:
        return Assumptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--assume {first['loc'][0]}={first['input']}: {first['msg']}") from error


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

    @property
    def fits(self) -> bool:
        """Whether the training runs there."""
        return not self.refusal


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What training a recipe's model takes; `asked` is the recipe's own number of workers."""

    model: Architecture
    assumed: Assumptions
    device: str
    length: int
    work: Work
    asked: int
    candidates: tuple[Candidate, ...]
    mend: tuple[str, Candidate] | None

    @property
    def smallest(self) -> Candidate | None:
        """The smallest cluster that fits."""
        return next((candidate for candidate in self.candidates if candidate.fits), None)


def plan_training(
    recipe: Recipe, model: Architecture, assumed: Assumptions, dataset: Mapping[str, Any] | None = None
) -> TrainingPlan:
    """Memory, clusters, time and money of a recipe's training; `dataset` is what its manifest counted, once it is there."""
    work = _work(recipe, model, assumed, dataset)
    on_cpu = recipe.cluster.device == "cpu"
    sizes = (recipe.cluster.train_workers,) if on_cpu else SIZES
    candidates = tuple(_candidate(recipe, model, assumed, work, size, {}) for size in sizes)
    unfit = not on_cpu and not any(candidate.fits for candidate in candidates)
    return TrainingPlan(
        model=model,
        assumed=assumed,
        device=recipe.cluster.device,
        length=_length(recipe),
        work=work,
        asked=recipe.cluster.train_workers,
        candidates=candidates,
        mend=next(_mends(recipe, model, assumed, work), None) if unfit else None,
    )


def _length(recipe: Recipe) -> int:
    return min(recipe.prepare.max_length, recipe.model.max_model_len)


def _work(recipe: Recipe, model: Architecture, assumed: Assumptions, dataset: Mapping[str, Any] | None) -> Work:
    train, length = recipe.train, _length(recipe)
    if dataset:
        prompt, response = (dataset[name] / dataset["rows"] for name in ("prompt_tokens", "response_tokens"))
    else:
        response = min(assumed.mean_response_tokens, recipe.sample.max_tokens, length)
        prompt = min(assumed.mean_prompt_tokens, length - response)

    def load(prompt: float, response: float) -> Load:
        batch = train.global_batch_size
        return Load(tokens=batch * (prompt + response), flops=batch * model.flops(round(prompt), round(response)))

    return Work(
        steps=train.steps,
        sequences=train.steps * train.global_batch_size,
        expected=load(prompt, response),
        at_most=load(min(prompt, length), length - min(prompt, length)),
        measured=bool(dataset),
    )


def _setting(recipe: Recipe, model: Architecture, num_workers: int, changes: Mapping[str, Any]) -> Setting:
    train, on_cpu = recipe.train, recipe.cluster.device == "cpu"
    chosen: dict[str, Any] = {
        "zero_stage": train.zero_stage,
        "offload": train.offload,
        "sequence_parallel": train.sequence_parallel_size,
        **changes,
    }
    groups = num_workers // chosen["sequence_parallel"]
    lora = train.lora
    return Setting(
        num_workers=num_workers,
        **chosen,
        micro_batch_tokens=max(_length(recipe), train.micro_batch_tokens or 0),
        precision=train.dtype,
        gradient_checkpointing=train.gradient_checkpointing,
        chunk_tokens=train.loss_chunk_tokens,
        lora_parameters=model.lora_parameters(lora.rank, lora.target_modules) if lora else 0,
        on_cpu=on_cpu,
        whole_gradient=on_cpu and train.accumulate_locally and train.global_batch_size > max(groups, 1),
    )


def _candidate(
    recipe: Recipe, model: Architecture, assumed: Assumptions, work: Work, size: int, changes: Mapping[str, Any]
) -> Candidate:
    setting = _setting(recipe, model, size, changes)
    found = memory(model, setting)
    on_cpu = setting.on_cpu
    needed = found.device if on_cpu else found.device * (1 + assumed.fragmentation) + assumed.context_gib * GIB
    fewest = _fewest_micro_steps(recipe, setting)
    time = None if on_cpu else _time(model, assumed, setting, work.steps, work.expected, fewest)
    return Candidate(
        num_workers=size,
        setting=setting,
        memory=found,
        bytes_needed=needed,
        refusal="" if on_cpu else _refusal(recipe, model, assumed, setting, found, needed),
        time=time,
        most=None if on_cpu else _time(model, assumed, setting, work.steps, work.at_most, fewest),
        usd=None if time is None else time.hours * size * assumed.usd_per_gpu_hour,
    )


def _fewest_micro_steps(recipe: Recipe, setting: Setting) -> int:
    """Micro-steps that a step has at least: one a sequence where sequences go alone."""
    train = recipe.train.model_copy(update={"sequence_parallel_size": setting.sequence_parallel})
    return math.ceil(train.global_batch_size * setting.sequence_parallel / setting.num_workers) if train.sequences_alone else 1


def _time(model: Architecture, assumed: Assumptions, setting: Setting, steps: int, load: Load, fewest: int) -> Time:
    """The longer of computing and exchanging, which overlap: ZeRO-3 gathers all parameters twice a micro-step.

    A micro-step takes as many tokens as the setting allows, so short sequences share one where there need not be `fewest`.
    """
    size, trained = setting.num_workers, setting.lora_parameters or model.parameters
    compute = load.flops / (size * assumed.peak_tflops * 1e12 * assumed.mfu(model))
    micro_steps = max(fewest, math.ceil(load.tokens * setting.sequence_parallel / (size * setting.micro_batch_tokens)))
    gathered = 2 * setting.width * model.parameters if setting.zero_stage == 3 else 0
    reduced = 4 * trained if setting.zero_stage >= 2 else 8 * trained / micro_steps
    several = size > assumed.gpus_per_node
    rate = 1e9 * (assumed.network_gb_s if several else assumed.node_gb_s)
    exchange = micro_steps * (gathered + reduced) * (size - 1) / size / rate
    return Time(hours=steps * max(compute, exchange) / 3600, bound="compute" if compute >= exchange else "network")


def _refusal(recipe: Recipe, model: Architecture, assumed: Assumptions, setting: Setting, found: Memory, needed: float) -> str:
    """Why a cluster cannot carry a training; empty if it can."""
    shared, size = setting.sequence_parallel, setting.num_workers
    if size % shared or model.heads % shared:
        return f"no multiple of {shared} workers a sequence"
    if recipe.train.global_batch_size % (size // shared):
        return f"does not divide a batch of {recipe.train.global_batch_size}"
    if needed > assumed.gpu_memory_gib * GIB:
        return "too little memory"
    if found.host * min(size, assumed.gpus_per_node) > assumed.host_memory_gib * GIB:
        return "too little host memory"
    return ""


def _mends(recipe: Recipe, model: Architecture, assumed: Assumptions, work: Work) -> Iterator[tuple[str, Candidate]]:
    """Changes that make a recipe fit, the least intrusive first: a sequence over more GPUs, then offloading."""
    for offload in ("none", "optimizer", "parameters"):
        for shared in (1, 2, 4, 8):
            changes = {"offload": offload, "sequence_parallel": shared, "zero_stage": 3}
            for size in SIZES:
                candidate = _candidate(recipe, model, assumed, work, size, changes)
                if candidate.fits:
                    names = {"zero_stage": 3, "offload": offload, "sequence_parallel_size": shared}
                    differing = {name: value for name, value in names.items() if value != getattr(recipe.train, name)}
                    yield " ".join(f"--set train.{name}={value}" for name, value in differing.items()), candidate
