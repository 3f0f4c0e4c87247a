"""One training worker: what Ray Train runs in every process.

Each step trains the global batch of `batches.py`: every worker sums the loss of its share and divides by the response
tokens of the whole batch. DeepSpeed averages gradients over workers, so the loss is multiplied by their number, and told
not to divide by micro-batches: what is optimised is exactly the token mean of the global batch, however it is shared out.
A node that is about to be taken away (a reclaimed spot machine) makes the workers save their state at once.
Reads a data set and a model directory; writes the loss log, resume states and the model into the artifact's directory.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import distributed

from ssd_ray.artifacts import write_atomic
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training import batches, checkpoints
from ssd_ray.training.batches import Examples, Ints
from ssd_ray.training.engine import accumulation, build_engine, prepare_process, reduces_once
from ssd_ray.training.schedule import learning_rate


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know; paths are absolute and on storage that every worker sees."""

    dataset: Path
    model: Path
    out: Path
    logs: Path
    train: TrainConfig
    cluster: ClusterConfig
    seed: int


def work(config: dict[str, Job]) -> None:
    """Train from the latest resume state to the end and write the model: the train function of Ray's TorchTrainer.

    Raises:
        UserError: the model, the data or a choice makes training impossible.
    """
    job = config["job"]
    context = ray.train.get_context()
    _send_output(job.logs / f"train-worker-{context.get_world_rank()}.log")
    prepare_process(job.cluster)
    examples = batches.load_examples(job.dataset)
    engine = build_engine(job.model, job.train, job.cluster)
    begin = checkpoints.restore(engine, job.out)
    if engine.global_rank == 0:
        checkpoints.cut_log(job.out, begin)
    distributed.barrier()
    leaving = False
    for step in range(begin, job.train.steps):
        line = _step(engine, examples, job, step)
        if engine.global_rank == 0:
            checkpoints.append_log(job.out, line)
        warned, leaving = leaving, ray.train.get_preemption_info() is not None
        if (step + 1) % job.train.checkpoint_every == 0 or (leaving and not warned):
            checkpoints.save(engine, job.out, step + 1)
    checkpoints.export(engine, job.model, job.out, job.train)
    if engine.global_rank == 0:
        _finish(engine, examples, job)
    distributed.barrier()


def _step(engine: Any, examples: Examples, job: Job, step: int) -> dict[str, Any]:
    """One optimiser step on one global batch; the line for the loss log, the same on every worker."""
    began = time.perf_counter()
    train, num_workers = job.train, job.cluster.train_workers
    rows = batches.global_batch(len(examples), train.global_batch_size, job.seed, step)
    shares = batches.share_out(examples.lengths[rows], num_workers, train.micro_batch_size)
    response_tokens = int(examples.response_lengths[rows].sum())
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate(train, step)
    mine = [rows[micro] for micro in shares[engine.global_rank]]
    loss = _accumulate(engine, examples, job, mine, max(response_tokens, 1))  # a batch of masked rows alone has none
    distributed.all_reduce(loss)
    grad_norm = float(engine.get_global_grad_norm())
    if not (math.isfinite(loss.item()) and math.isfinite(grad_norm) and grad_norm >= 0):
        raise UserError(f"training diverged at step {step + 1} (loss {loss.item()}): lower train.learning_rate")
    return {
        "step": step + 1,
        "loss": loss.item(),
        "learning_rate": learning_rate(train, step),
        "grad_norm": grad_norm,
        "response_tokens": response_tokens,
        "tokens": int(examples.lengths[rows].sum()),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _accumulate(engine: Any, examples: Examples, job: Job, shares: list[Ints], response_tokens: int) -> torch.Tensor:
    """Forward and backward of this worker's micro-batches and the optimiser step; its part of the batch's mean loss."""
    total = torch.zeros((), device=engine.device)
    once = reduces_once(job.train, job.cluster)
    with accumulation(engine, once, len(shares)):
        for rows in shares:
            input_ids, labels = (torch.from_numpy(array).to(engine.device) for array in batches.pad(examples, rows))
            loss = engine(input_ids, labels) / response_tokens
            engine.backward(loss * engine.world_size, scale_wrt_gas=False)
            total += loss.detach()
            if not once:
                engine.step()
    if once:
        engine.step()
    return total


def _finish(engine: Any, examples: Examples, job: Job) -> None:
    """Record the facts, which says that the weights are whole, and let go of the resume state."""
    lines = checkpoints.read_log(job.out)
    facts = {
        "steps": job.train.steps,
        "first_loss": lines[0]["loss"],
        "final_loss": lines[-1]["loss"],
        "response_tokens": sum(line["response_tokens"] for line in lines),
        "tokens": sum(line["tokens"] for line in lines),
        "epochs": job.train.steps * job.train.global_batch_size / len(examples),
        "num_workers": engine.world_size,
        "parameters": sum(parameter.ds_numel for parameter in engine.module.parameters()),
    }
    write_atomic(job.out / checkpoints.FINISHED, json.dumps(facts, indent=1))
    shutil.rmtree(job.out / checkpoints.RESUME, ignore_errors=True)


def _send_output(log: Path) -> None:
    """Send this process's output to a file: the terminal is for progress."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
