"""Training loop of one worker, run by Ray Train in every process: steps, states and exports.

- `worker.py` trains a step. The loop saves a state, and exports a model, where one is due.
- A node about to be removed, or SIGTERM to a worker or to the run, makes all workers save their
  state after the step. Training goes on once the state is complete.
- Reads a data set and a model directory. Writes the log `loss.jsonl`, resume states and the model
  into the artifact's directory.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import distributed

from ssd_ray.artifacts.facts import CheckpointFacts
from ssd_ray.artifacts.files import write_atomic
from ssd_ray.cluster import niceness
from ssd_ray.config import TrainConfig
from ssd_ray.training.job import Job
from ssd_ray.training.model.engine import prepare_process
from ssd_ray.training.model.expert_parallel import num_elements
from ssd_ray.training.observe.heartbeat import LOADING, Heartbeat
from ssd_ray.training.state import disk_space, export, resume
from ssd_ray.training.state.logs import append_log, read_log
from ssd_ray.training.state.saver import Saver
from ssd_ray.training.worker import Worker
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
    heartbeat = Heartbeat(job.logs, context.get_world_rank(), context.get_world_size())
    heartbeat.phase(LOADING)
    niceness.settle()
    job = job.on_this_machine()
    prepare_process(job.cluster)
    worker = Worker(job, heartbeat)
    engine = worker.engine
    train = job.train
    saver = Saver(engine, job)
    begin = _restore(worker, job, heartbeat)
    disk_space.check_here(engine, job, context.get_local_world_size())
    draining = False
    for step in range(begin + 1, train.steps + 1):
        line = worker.step(step - 1)
        if engine.global_rank == 0:
            append_log(job.out, line)
        saver.check()
        was_draining = draining
        draining = ray.train.get_preemption_info() is not None
        # Read once: a signal during a save is met by the state of the next step.
        stopping = STOP_REQUESTED.is_set()
        urgent = _must_save(engine, job.out, stopping or (draining and not was_draining))
        # A state at the last step too: the export after it may take long, and may be interrupted.
        is_last = step == train.steps
        if urgent or is_last or step % train.checkpoint_every == 0:
            heartbeat.phase("saving the state")
            saver.save(step, at_once=urgent or is_last)
        if stopping:
            os._exit(128 + signal.SIGTERM)
        if _is_exported(train, step):
            heartbeat.phase("exporting the model")
            _export_step(engine, job, step)
    saver.close()
    heartbeat.phase("exporting the model")
    worker.observer.close()
    export.export(engine, job.model, job.out, train, job.serving)
    if engine.global_rank == 0:
        _finish(engine, worker, job)
    distributed.barrier()


def _restore(worker: Worker, job: Job, heartbeat: Heartbeat) -> int:
    """Restore the latest good resume state and return its step, 0 without one."""
    engine = worker.engine
    begin = resume.restore(engine, job.out, heartbeat.say)
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


def _must_save(engine: Any, out: Path, notified: bool) -> bool:
    """Return True if any worker has a notice of its end, or the run received SIGTERM."""
    return _any(
        engine,
        notified
        # One worker looks at the file system; `_any` shares its answer.
        or (engine.global_rank == 0 and resume.stop_requested(out)),
    )


def _any(engine: Any, flag: bool) -> bool:
    """Return True on every worker if `flag` is true on any of them."""
    flags = torch.tensor(float(flag), device=engine.device)
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return bool(flags)


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
        parameters=num_elements(engine.module),
        trained_parameters=num_elements(engine.module, trained=True),
    )
    write_atomic(job.out / export.FINISHED, json.dumps(facts.document(), indent=1))


def _send_output(log: Path) -> None:
    """Redirect this process's output to a file; the terminal is for progress."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
