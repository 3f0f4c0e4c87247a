"""Hours of a training: every step takes as long as its slowest share.

`shares.share_out` divides the batches of `work.py`, as it does in training. All workers wait for
one another in every micro-step, because they gather and reduce together. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ssd_ray.config import Recipe
from ssd_ray.models.architecture import Architecture
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.memory import Setting
from ssd_ray.planner.work import Batch, Load, adapter_parameters
from ssd_ray.shares import share_out


@dataclass(frozen=True, kw_only=True)
class Time:
    """Duration of a training."""

    hours: float
    bound: Literal["compute", "network"]
    """The slower of the two."""
    updating: float
    """Hours of offloaded optimizer steps on the host, within `hours`."""
    waiting: float
    """Share of the workers' time without computing.

    They wait for the slowest worker, the link, or optimizer steps on the host.
    """


def time_of(
    recipe: Recipe, model: Architecture, assumed: Assumptions, setting: Setting, load: Load
) -> Time:
    """Return the duration of a training, by the mean of the sampled batches.

    The setting's workers must be able to share a batch evenly.
    """
    cost = _Cost(recipe, model, assumed, setting)
    steps = [cost.step(batch) for batch in load.batches]
    update = _update_seconds(model, assumed, setting)
    total = sum(step.seconds + update for step in steps)
    computing = sum(step.computing for step in steps)
    return Time(
        hours=recipe.train.steps * total / len(steps) / 3600,
        updating=recipe.train.steps * update / 3600,
        bound="compute" if computing >= sum(step.exchanging for step in steps) else "network",
        waiting=1 - sum(step.mean_computing for step in steps) / total,
    )


@dataclass(frozen=True, kw_only=True)
class _Seconds:
    """Seconds of one optimizer step."""

    seconds: float
    computing: float
    """Of the slowest worker in every micro-step."""
    mean_computing: float
    """Of the mean worker."""
    exchanging: float


class _Cost:
    """Seconds of the steps of one training on one cluster."""

    def __init__(
        self, recipe: Recipe, model: Architecture, assumed: Assumptions, setting: Setting
    ) -> None:
        self._train = recipe.train
        self._model = model
        self._setting = setting
        self._shares = setting.num_workers // setting.sequence_parallel
        adapters = adapter_parameters(recipe, model)
        self._flops = cache(lambda prompt, response: model.flops(prompt, response, adapters))
        peak = assumed.peak_flops(setting.precision) * assumed.mfu(model)
        self._group_flops = setting.sequence_parallel * peak
        self._rate = 1e9 * _link(assumed, setting.num_workers)
        self._shared_rate = 1e9 * _link(assumed, setting.sequence_parallel)
        self._expert_rate = 1e9 * _link(assumed, setting.expert_parallel)

    def step(self, batch: Batch) -> _Seconds:
        """Return the seconds of one step."""
        lengths = [prompt + response for prompt, response in batch]
        responses = [response for _, response in batch]
        budget = 1 if self._train.sequences_alone else self._setting.micro_batch_tokens
        packed = self._train.packing
        dealt = share_out(lengths, responses, self._shares, budget, packed=packed)
        micro_steps = [
            [self._compute([batch[place] for place in group]) for group in groups]
            for groups in zip(*dealt, strict=True)
        ]
        gathering, reducing = self._exchange(len(micro_steps))
        slowest = [max(seconds) for seconds in micro_steps]
        # Exchange and computation overlap within a pass. A forward pass is half of a backward
        # pass, or a third of one with recomputation.
        forward = 1 / 4 if self._setting.gradient_checkpointing else 1 / 3
        return _Seconds(
            seconds=sum(
                max(forward * seconds, gathering)
                + max((1 - forward) * seconds, gathering + reducing)
                for seconds in slowest
            ),
            computing=sum(slowest),
            mean_computing=sum(map(sum, micro_steps)) / self._shares,
            exchanging=(2 * gathering + reducing) * len(micro_steps),
        )

    def _compute(self, group: Sequence[tuple[int, int]]) -> float:
        """Return the seconds of one micro-batch on the workers that share it."""
        if self._train.packing:
            flops = sum(self._flops(prompt, response) for prompt, response in group)
            tokens = sum(prompt + response for prompt, response in group)
        else:
            # Padding passes through the layers like a prompt; the head runs over responses alone.
            longest = max(prompt + response for prompt, response in group)
            flops = sum(self._flops(longest - response, response) for _, response in group)
            tokens = longest * len(group)
        return flops / self._group_flops + self._scatter(tokens) + self._dispatch(tokens)

    def _scatter(self, tokens: int) -> float:
        """Return the seconds of exchanging heads for tokens within a group of Ulysses."""
        shared = self._setting.sequence_parallel
        width = 2 * self._model.query + 2 * self._model.key_value
        # Forward, backward, and forward again where activations are recomputed.
        passes = 3 if self._setting.gradient_checkpointing else 2
        number = passes * self._model.layers * width * tokens / shared
        return self._setting.width * number * (shared - 1) / shared / self._shared_rate

    def _dispatch(self, tokens: int) -> float:
        """Return the seconds of sending tokens to divided experts and back, at an even load."""
        size = self._setting.expert_parallel
        # As for heads; rows travel twice in each pass.
        passes = 3 if self._setting.gradient_checkpointing else 2
        rows = 2 * passes * self._model.sparse_layers * self._model.experts_per_token * tokens
        sent = self._setting.width * rows * self._model.hidden
        return sent * (size - 1) / size / self._expert_rate

    def _exchange(self, micro_steps: int) -> tuple[float, float]:
        """Return the seconds of gathering for one pass, and of reducing in one micro-step.

        - ZeRO-3 gathers all parameters in the forward pass, and again in the backward pass.
        - From ZeRO-2 on, float32 gradients are reduced in each micro-step. Below ZeRO-2 there is
          one all-reduce for each step, with twice the bytes.
        - Divided experts are exchanged among the workers with the same ones.
        """
        setting = self._setting
        size = setting.num_workers
        shared = setting.expert_parallel
        divided = self._model.parts["experts"] if shared > 1 else 0

        def received(parameters: int) -> float:
            # A worker has its part already.
            return (parameters - divided) * (1 - 1 / size) + divided / shared * (1 - shared / size)

        trained = received(setting.trained(self._model))
        reduced = 4 * trained if setting.zero_stage >= 2 else 8 * trained / micro_steps
        gathered = setting.width * received(self._model.parameters)
        return (gathered if setting.zero_stage == 3 else 0.0) / self._rate, reduced / self._rate


def _update_seconds(model: Architecture, assumed: Assumptions, setting: Setting) -> float:
    """Return the seconds of an offloaded optimizer step: no worker computes meanwhile.

    Cores and memory bandwidth of a node are shared by its workers. For each parameter the float32
    weight, moments and gradient are read (16 bytes). Weight and moments are written (12), and the
    weight in bfloat16 (2).
    """
    if setting.offload == "none":
        return 0.0
    workers = min(setting.num_workers, assumed.gpus_per_node)
    threads = max(1, (assumed.host_cores - 1) // assumed.gpus_per_node)
    rate = min(threads * assumed.core_updates_m * 1e6, assumed.host_gb_s * 1e9 / 30 / workers)
    return setting.trained(model) / setting.num_workers / rate


def _link(assumed: Assumptions, workers: int) -> float:
    """Return GB/s between workers: within a node if they fit in one."""
    return assumed.network_gb_s if workers > assumed.gpus_per_node else assumed.node_gb_s
