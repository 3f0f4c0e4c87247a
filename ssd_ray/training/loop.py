"""One training worker: what Ray Train runs in every process.

Each step trains the global batch of `batches.py`: every worker sums its share, whose tokens carry their weight in the mean
of the whole batch. DeepSpeed averages gradients over workers, so the loss is multiplied by their number, and told not to
divide by micro-batches: what is optimised is exactly the mean over the global batch, however it is shared out.
A node that is about to be taken away, or SIGTERM to a worker or to the run, makes the workers save their state after the step.
Reads a data set and a model directory; writes the loss log, resume states and the model into the artifact's directory.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import distributed

from ssd_ray.artifacts.files import write_atomic
from ssd_ray.cluster import niceness
from ssd_ray.config import TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.data import batches
from ssd_ray.training.data.batches import GlobalBatch
from ssd_ray.training.data.examples import Examples, Ints
from ssd_ray.training.job import Job
from ssd_ray.training.model.engine import (
    accumulate,
    build_engine,
    gradient_divisor,
    num_shares,
    prepare_process,
)
from ssd_ray.training.model.engine import step as optimizer_step
from ssd_ray.training.model.moe import ExpertLoad
from ssd_ray.training.model.sequence_parallel import slice_of
from ssd_ray.training.observe.heartbeat import SILENT, Heartbeat
from ssd_ray.training.observe.heldout import split
from ssd_ray.training.observe.observer import Observer
from ssd_ray.training.state import export, resume
from ssd_ray.training.state.logs import append_log, read_log
from ssd_ray.training.worker_group import STOP_REQUESTED


def work(config: dict[str, Job]) -> None:
    """Train from the latest resume state to the end and write the model: the train function of Ray's TorchTrainer.

    Raises:
        UserError: the model, the data or a choice makes training impossible.
    """
    context = ray.train.get_context()
    job = config["job"].with_workers(context.get_world_size())
    if (job.out / export.FINISHED).exists():  # a worker was lost after its last word
        return
    _send_output(job.logs / f"train-worker-{context.get_world_rank()}.log")
    heartbeat = Heartbeat(job.logs, context.get_world_rank())
    heartbeat.phase("loading the model")
    niceness.settle()
    prepare_process(job.cluster)
    worker = Worker(job, heartbeat)
    engine, train = worker.engine, job.train
    begin = resume.restore(engine, job.out)
    if engine.global_rank == 0:
        resume.begin(job.out, begin)
    worker.observer.begin(begin)
    distributed.barrier()
    if _is_exported(train, begin) and _any(
        engine, not export.step_directory(job.out, begin).exists()
    ):
        _export_step(
            engine, job, begin
        )  # an earlier attempt ended between its state and its export
    draining = False
    for step in range(begin + 1, train.steps + 1):
        line = worker.step(step - 1)
        if engine.global_rank == 0:
            append_log(job.out, line)
        known, draining = draining, ray.train.get_preemption_info() is not None
        is_due = (
            step % train.checkpoint_every == 0 or step == train.steps
        )  # the last export may take long
        if is_due or _someone_leaves(engine, job.out, draining and not known):
            heartbeat.phase("saving the state")
            resume.save(engine, job.out, step, job.model_digest)
            if STOP_REQUESTED.is_set():
                os._exit(128 + signal.SIGTERM)
        if _is_exported(train, step):
            heartbeat.phase("exporting the model")
            _export_step(engine, job, step)
    heartbeat.phase("exporting the model")
    worker.observer.close()
    export.export(engine, job.model, job.out, train, job.serving)
    if engine.global_rank == 0:
        _finish(engine, worker, job)
    distributed.barrier()


def _is_exported(train: TrainConfig, step: int) -> bool:
    """Whether the model after `step` steps is kept beside the last one."""
    return (
        bool(train.export_every)
        and 0 < step < train.steps
        and step % (train.export_every or 1) == 0
    )


def _export_step(engine: Any, job: Job, step: int) -> None:
    export.export_step(engine, job.model, job.out, job.train, step, job.serving)


def _someone_leaves(engine: Any, out: Path, draining: bool) -> bool:
    """Whether a node began to drain, a worker was sent SIGTERM, or the run was; the same answer on every worker."""
    return _any(
        engine,
        draining
        or STOP_REQUESTED.is_set()
        or (engine.global_rank == 0 and resume.asked_to_leave(out)),
    )


def _any(engine: Any, told: bool) -> bool:
    """Whether any worker says so; the same answer on every worker."""
    someone = torch.tensor(float(told), device=engine.device)
    distributed.all_reduce(someone, op=distributed.ReduceOp.MAX)
    return bool(someone)


class Worker:
    """The engine and the data of one worker, and the optimiser steps that they make together."""

    def __init__(self, job: Job, heartbeat: Heartbeat = SILENT) -> None:
        self.job = job
        self._heartbeat = heartbeat
        self._computed_tokens = 0
        self._own_tokens = 0
        self.examples, self.held_out = split(
            Examples(job.dataset), job.train.heldout_samples, job.seed
        )
        self.engine = build_engine(job.model, job.train, job.cluster, seed=job.seed)
        self._load = ExpertLoad(self.engine.module)
        self._budget = job.train.micro_batch_tokens or int(self.examples.lengths.max())
        if job.train.sequences_alone:
            self._budget = 1
        self.observer = Observer(
            job, self.engine, self.examples, self.held_out, self._budget, heartbeat
        )

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step on one global batch; the line for the loss log, the same on every worker.

        Raises:
            UserError: the loss or the gradient is not finite; weights are then not updated, or not kept.
        """
        began = time.perf_counter()
        train, engine = self.job.train, self.engine
        batch = batches.global_batch(
            self.examples, train.global_batch_size, self.job.seed, step, train.loss_mean
        )
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(train, step)
        self._auxiliary = 0.0
        scale = gradient_divisor(train, self.job.cluster)
        once = (
            self.job.cluster.device == "cpu"
            and train.accumulate_locally
            and train.dtype == "float32"
        )  # sums are of its type
        shares = self._mine(batch)
        self._computed_tokens = 0
        self._own_tokens = sum(self._tokens(batch, places) for places in shares)
        self._heartbeat.begin_step(step, batch.tokens)
        loss = accumulate(
            engine, [partial(self._run, batch, places) for places in shares], scale, once=once
        )
        loss -= self._auxiliary
        distributed.all_reduce(loss)
        self._check(loss.item(), batch, step, "loss")
        grad_norm = optimizer_step(engine)
        self._check(grad_norm if grad_norm >= 0 else math.nan, batch, step, "gradient")
        imbalance = self._load.imbalance()
        line = {
            "step": step + 1,
            "loss": loss.item(),
            "learning_rate": learning_rate(train, step),
            "grad_norm": grad_norm,
            "response_tokens": batch.response_tokens,
            "tokens": batch.tokens,
            **({} if imbalance is None else {"expert_imbalance": round(imbalance, 4)}),
            "seconds": round(time.perf_counter() - began, 3),
        }
        return self.observer.step(line, batch)

    def _mine(self, batch: GlobalBatch) -> list[Ints]:
        """The micro-batches of this worker, as positions in the batch."""
        lengths, responses = (
            self.examples.lengths[batch.rows],
            self.examples.response_lengths[batch.rows],
        )
        shares = batches.share_out(
            lengths,
            responses,
            num_shares(self.job.train, self.job.cluster),
            self._budget,
            packed=self.job.train.packing,
        )
        return shares[self.engine.global_rank // self.job.train.sequence_parallel_size]

    def _tokens(self, batch: GlobalBatch, places: Ints) -> int:
        """Count the tokens of the sequences at `places` of a batch."""
        return int(self.examples.lengths[batch.rows[places]].sum())

    def _run(self, batch: GlobalBatch, places: Ints) -> torch.Tensor:
        """The loss of one micro-batch, or of this worker's slice of it."""
        # The backward pass of the micro-batch before this one has ended by now.
        self._heartbeat.advance(self._computed_tokens / max(1, self._own_tokens))
        self._computed_tokens += self._tokens(batch, places)
        train = self.job.train
        size, packed = train.sequence_parallel_size, train.packing
        whole = batches.collate(
            self.examples,
            batch.rows[places],
            batch.token_weights[places],
            packed=packed,
            multiple=size,
        )
        micro = slice_of(whole, size, self.engine.global_rank % size)
        self._load.real = torch.from_numpy(micro.real).to(self.engine.device).flatten()
        arrays = [micro.input_ids, micro.targets, micro.weights]
        if packed or size > 1:
            arrays.append(micro.position_ids)
        loss: torch.Tensor = self.engine(
            *(torch.from_numpy(array).to(self.engine.device) for array in arrays)
        )
        self._auxiliary += self.engine.module.auxiliary
        return loss

    def _check(self, value: float, batch: GlobalBatch, step: int, what: str) -> None:
        if math.isfinite(value):
            return
        kept, out = resume.latest(self.job.out)[0], self.job.out
        names = [self.examples.name(int(row)) for row in batch.rows]
        told = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        state = (
            f"the state after step {kept} is kept, from which the same batch follows"
            if kept
            else "no state was kept yet"
        )
        exported = out / export.STEPS
        state += (
            f"; models of earlier steps are in {exported}"
            if exported.is_dir() and any(exported.iterdir())
            else ""
        )
        raise UserError(
            f"training stopped at step {step + 1}: the {what} of its batch is {value}; the batch was samples {told}; {state}. "
            f"Look at these samples; to train with a lower train.learning_rate, choose another --out or delete {out}"
        )


def _finish(engine: Any, worker: Worker, job: Job) -> None:
    """Record the facts, which says that the weights are whole."""
    lines = read_log(job.out)
    facts = {
        "steps": job.train.steps,
        "first_loss": lines[0]["loss"],
        "final_loss": lines[-1]["loss"],
        "response_tokens": sum(line["response_tokens"] for line in lines),
        "tokens": sum(line["tokens"] for line in lines),
        "epochs": job.train.steps * job.train.global_batch_size / len(worker.examples),
        "num_workers": engine.world_size,
        "heldout_rows": 0 if worker.held_out is None else len(worker.held_out),
        "heldout_response_tokens": 0
        if worker.held_out is None
        else int(worker.held_out.response_lengths.sum()),
        "parameters": sum(_size(parameter) for parameter in engine.module.parameters()),
        "trained_parameters": sum(
            _size(parameter) for parameter in engine.module.parameters() if parameter.requires_grad
        ),
    }
    write_atomic(job.out / export.FINISHED, json.dumps(facts, indent=1))


def _size(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, whole also where ZeRO-3 has split it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _send_output(log: Path) -> None:
    """Send this process's output to a file: the terminal is for progress."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of optimiser step `step` (from 0).

    Warm-up rises from zero so that its last step has the peak; the last step of training has the minimum (paper, C.1).
    """
    done = step + 1
    if done <= train.warmup_steps:
        return train.learning_rate * done / train.warmup_steps
    progress = (done - train.warmup_steps) / (train.steps - train.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * progress))
    return train.min_learning_rate + (train.learning_rate - train.min_learning_rate) * fall
