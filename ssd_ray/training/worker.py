"""Engine and data of one training worker, and an optimizer step of it.

- A step trains one global batch (`batches.py`). Each worker sums its share, and every token carries
  its weight in the mean of the batch.
- DeepSpeed divides the sum of the workers' gradients by `gradient_divisor`, so the loss is
  multiplied by this number first. DeepSpeed does not divide by the number of micro-batches.
- The optimized loss is exactly the mean over the global batch, for any number of workers and
  micro-batches.

Reads a data set and a model directory. Makes the lines of `loss.jsonl`.
"""

from __future__ import annotations

import math
import time
from functools import partial

import torch
from torch import distributed

from ssd_ray.artifacts.files import Json
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
)
from ssd_ray.training.model.engine import step as optimizer_step
from ssd_ray.training.model.moe import ExpertLoad
from ssd_ray.training.model.sequence_parallel import slice_of
from ssd_ray.training.observe.heartbeat import SILENT, Heartbeat
from ssd_ray.training.observe.heldout import HeldOut, split
from ssd_ray.training.observe.observer import Observer
from ssd_ray.training.state import export, resume


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
        self.engine = build_engine(job.weights or job.model, job.train, job.cluster, seed=job.seed)
        self._load = ExpertLoad(self.engine.module)
        self._budget = job.train.micro_batch_tokens or int(self.examples.lengths.max())
        if job.train.sequences_alone:
            # Every sequence exceeds a budget of 1, and such a sequence is a micro-batch of its own.
            self._budget = 1
        held_out = None
        if self.held_out is not None:
            held_out = HeldOut(self.engine, self.held_out, job.train, job.sampling, self._budget)
        self.observer = Observer(job, self.engine, self.examples, held_out, heartbeat)

    def step(self, step: int) -> Json:
        """Train global batch `step` (from 0) and return its line for the loss log.

        The line is the same on every worker.

        Raises:
            UserError: the loss or gradient is not finite. A bad loss is found before the weights
                are updated, a bad gradient before they are saved.
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
        bounds = torch.from_numpy(micro.cu_seq_lens).to(self.engine.device)
        loss: torch.Tensor = self.engine(
            *(torch.from_numpy(array).to(self.engine.device) for array in arrays),
            bounds=self.engine.module.bounds(bounds, micro.max_length),
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
