"""Training loop of one worker, run by Ray Train in every process.

- A step trains one global batch (`batches.py`). Each worker sums its share, and every token carries
  its weight in the mean of the batch.
- DeepSpeed averages gradients over workers, so the loss is multiplied by their number. It does not
  divide by micro-batches. The optimized loss is exactly the mean over the global batch, for any
  number of workers and micro-batches.
- A node about to be removed, or SIGTERM to a worker or to the run, makes all workers save their
  state after the step.
- Reads a data set and a model directory. Writes the log `loss.jsonl`, resume states and the model
  into the artifact's directory.
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

from ssd_ray.artifacts.facts import CheckpointFacts
from ssd_ray.artifacts.files import Json, write_atomic
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
from ssd_ray.training.observe.heldout import HeldOut, split
from ssd_ray.training.observe.observer import Observer
from ssd_ray.training.state import export, resume
from ssd_ray.training.state.logs import append_log, read_log
from ssd_ray.training.worker_group import STOP_REQUESTED


def work(config: dict[str, Job]) -> None:
    """Train from the latest resume state to the end and write the model.

    This is the train function of Ray's TorchTrainer.

    Raises:
        UserError: the model, the data or a choice makes training impossible.
    """
    context = ray.train.get_context()
    job = config["job"].with_workers(context.get_world_size())
    # Ray Train restarts the group also where a worker was lost after the model was complete.
    if (job.out / export.FINISHED).exists():
        return
    # From here on the output, warnings of libraries included, goes to the worker's log.
    _send_output(job.logs / f"train-worker-{context.get_world_rank()}.log")
    heartbeat = Heartbeat(job.logs, context.get_world_rank())
    heartbeat.phase("loading the model")
    niceness.settle()
    prepare_process(job.cluster)
    worker = Worker(job, heartbeat)
    engine = worker.engine
    train = job.train
    begin = _restore(worker, job)
    draining = False
    for step in range(begin + 1, train.steps + 1):
        line = worker.step(step - 1)
        if engine.global_rank == 0:
            append_log(job.out, line)
        was_draining = draining
        draining = ray.train.get_preemption_info() is not None
        # A state at the last step too: the export after it may take long, and may be interrupted.
        is_due = step % train.checkpoint_every == 0 or step == train.steps
        if is_due or _must_save(engine, job.out, draining and not was_draining):
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


def _restore(worker: Worker, job: Job) -> int:
    """Restore the latest resume state and return its step, 0 without one."""
    engine = worker.engine
    begin = resume.restore(engine, job.out)
    if engine.global_rank == 0:
        resume.begin(job.out, begin)
    worker.observer.begin(begin)
    distributed.barrier()
    # An earlier attempt may have ended between its state and its export.
    if _is_exported(job.train, begin) and _any(
        engine, not export.step_directory(job.out, begin).exists()
    ):
        _export_step(engine, job, begin)
    return begin


def _is_exported(train: TrainConfig, step: int) -> bool:
    """Return True if the model after `step` steps is exported in addition to the last one."""
    return (
        bool(train.export_every)
        and 0 < step < train.steps
        and step % (train.export_every or 1) == 0
    )


def _export_step(engine: Any, job: Job, step: int) -> None:
    export.export_step(engine, job.model, job.out, job.train, step, job.serving)


def _must_save(engine: Any, out: Path, draining: bool) -> bool:
    """Return True if any node began to drain, or any worker or the run received SIGTERM."""
    return _any(
        engine,
        draining
        or STOP_REQUESTED.is_set()
        # One worker looks at the file system; `_any` shares its answer.
        or (engine.global_rank == 0 and resume.stop_requested(out)),
    )


def _any(engine: Any, flag: bool) -> bool:
    """Return True on every worker if `flag` is true on any of them."""
    flags = torch.tensor(float(flag), device=engine.device)
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return bool(flags)


class Worker:
    """Engine and data of one worker."""

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
            # A longer sequence than the budget goes alone.
            self._budget = 1
        held_out = None
        if self.held_out is not None:
            held_out = HeldOut(self.engine, self.held_out, job.train, job.sampling, self._budget)
        self.observer = Observer(job, self.engine, self.examples, held_out, heartbeat)

    def step(self, step: int) -> Json:
        """Train global batch `step` (from 0) and return its line for the loss log.

        The line is the same on every worker.

        Raises:
            UserError: the loss or gradient is not finite. Weights are not updated, or not saved.
        """
        began = time.perf_counter()
        train = self.job.train
        batch = batches.global_batch(
            self.examples, train.global_batch_size, self.job.seed, step, train.loss_mean
        )
        rate = learning_rate(train, step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self._auxiliary = 0.0
        # Local sums have the gradient's own type, so only float32 is exact enough.
        once = (
            self.job.cluster.device == "cpu"
            and train.accumulate_locally
            and train.dtype == "float32"
        )
        micro_batches = self._micro_batches(batch)
        self._computed_tokens = 0
        self._own_tokens = sum(self._tokens(batch, places) for places in micro_batches)
        self._heartbeat.begin_step(step, batch.tokens)
        loss = accumulate(
            self.engine,
            [partial(self._run, batch, places) for places in micro_batches],
            gradient_divisor(train, self.job.cluster),
            once=once,
        )
        loss -= self._auxiliary
        distributed.all_reduce(loss)
        self._check(loss.item(), batch, step, "loss")
        grad_norm = optimizer_step(self.engine)
        self._check(grad_norm if grad_norm >= 0 else math.nan, batch, step, "gradient")
        imbalance = self._load.imbalance()
        line = {
            "step": step + 1,
            "loss": loss.item(),
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "response_tokens": batch.response_tokens,
            "tokens": batch.tokens,
            **({} if imbalance is None else {"expert_imbalance": round(imbalance, 4)}),
            "seconds": round(time.perf_counter() - began, 3),
        }
        return self.observer.step(line, batch)

    def _micro_batches(self, batch: GlobalBatch) -> list[Ints]:
        """Return the micro-batches of this worker, as positions in the batch."""
        shares = batches.share_out(
            self.examples.lengths[batch.rows],
            self.examples.response_lengths[batch.rows],
            num_shares(self.job.train, self.job.cluster),
            self._budget,
            packed=self.job.train.packing,
        )
        return shares[self.engine.global_rank // self.job.train.sequence_parallel_size]

    def _tokens(self, batch: GlobalBatch, places: Ints) -> int:
        """Count the tokens of the sequences at `places` of a batch."""
        return int(self.examples.lengths[batch.rows[places]].sum())

    def _run(self, batch: GlobalBatch, places: Ints) -> torch.Tensor:
        """Return the loss of one micro-batch, or of this worker's slice of it."""
        # The backward pass of the micro-batch before this one has ended by now.
        self._heartbeat.advance(self._computed_tokens / max(1, self._own_tokens))
        self._computed_tokens += self._tokens(batch, places)
        size = self.job.train.sequence_parallel_size
        packed = self.job.train.packing
        complete = batches.collate(
            self.examples,
            batch.rows[places],
            batch.token_weights[places],
            packed=packed,
            multiple=size,
        )
        micro = slice_of(complete, size, self.engine.global_rank % size)
        self._load.real = torch.from_numpy(micro.real).to(self.engine.device).flatten()
        arrays = [micro.input_ids, micro.targets, micro.weights]
        if packed or size > 1:
            arrays.append(micro.position_ids)
        loss: torch.Tensor = self.engine(
            *(torch.from_numpy(array).to(self.engine.device) for array in arrays)
        )
        self._auxiliary += self.engine.module.auxiliary
        return loss

    def _check(self, value: float, batch: GlobalBatch, step: int, quantity: str) -> None:
        """Raise UserError if a loss or gradient norm is not finite."""
        if math.isfinite(value):
            return
        out = self.job.out
        kept = resume.latest(out)[0]
        names = [self.examples.name(int(row)) for row in batch.rows]
        samples = ", ".join(names[:8])
        if len(names) > 8:
            samples += f" and {len(names) - 8} more"
        state = "no state was kept yet"
        if kept:
            state = f"the state after step {kept} is kept, from which the same batch follows"
        exported = out / export.STEPS
        if exported.is_dir() and any(exported.iterdir()):
            state += f"; models of earlier steps are in {exported}"
        raise UserError(
            f"training stopped at step {step + 1}: the {quantity} of its batch is {value}; "
            f"the batch was samples {samples}; {state}. Look at these samples; "
            f"to train with a lower train.learning_rate, choose another --out or delete {out}"
        )


def _finish(engine: Any, worker: Worker, job: Job) -> None:
    """Write the facts as `training.json`, the last file of a complete model."""
    lines = read_log(job.out)
    held_out = worker.held_out
    facts = CheckpointFacts(
        steps=job.train.steps,
        first_loss=lines[0]["loss"],
        final_loss=lines[-1]["loss"],
        response_tokens=sum(line["response_tokens"] for line in lines),
        tokens=sum(line["tokens"] for line in lines),
        epochs=job.train.steps * job.train.global_batch_size / len(worker.examples),
        num_workers=engine.world_size,
        heldout_rows=0 if held_out is None else len(held_out),
        heldout_response_tokens=0 if held_out is None else int(held_out.response_lengths.sum()),
        parameters=sum(_size(parameter) for parameter in engine.module.parameters()),
        trained_parameters=sum(
            _size(parameter) for parameter in engine.module.parameters() if parameter.requires_grad
        ),
    )
    write_atomic(job.out / export.FINISHED, json.dumps(facts.document(), indent=1))


def _size(parameter: torch.nn.Parameter) -> int:
    """Return the number of elements of a parameter, also where ZeRO-3 has partitioned it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _send_output(log: Path) -> None:
    """Redirect this process's output to a file; the terminal is for progress."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def learning_rate(train: TrainConfig, step: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0).

    Linear warm-up with the peak at its last step, then a cosine to the minimum at the last step of
    training (arXiv 2604.01193, C.1).
    """
    done = step + 1
    if done <= train.warmup_steps:
        return train.learning_rate * done / train.warmup_steps
    progress = (done - train.warmup_steps) / (train.steps - train.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * progress))
    return train.min_learning_rate + (train.learning_rate - train.min_learning_rate) * fall
