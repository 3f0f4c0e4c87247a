"""Groups of training processes without Ray: `python engine_cases.py PLAN`.

PLAN is a JSON file: data set, output, the shared recipe, and rounds of groups of cases by name.

- One process imports the libraries once and forks every member of every group.
- A case continues from its resume state. At its step `stop` it saves one; else it exports.
- The first process writes each case's loss log and exported model into out/NAME.
- It also writes the full state after restoring and before saving.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SEED = 3


def write_examples(out: Path) -> Path:
    """Twelve sequences of 8 to 40 tokens, one without a response, as a data set."""
    from ssd_ray.artifacts.shards import write_shard
    from ssd_ray.schema import Example

    draw, rows = random.Random(0), []
    for index in range(12):
        length = draw.randint(8, 40)
        ids = tuple(draw.randrange(3, 260) for _ in range(length))
        num_prompt = length if index == 5 else draw.randint(2, 6)
        rows.append(
            Example(
                prompt_id=f"p{index:02}",
                sample_index=0,
                input_ids=ids,
                num_prompt_tokens=num_prompt,
            )
        )
    write_shard(out, "part-00000", rows, Example)
    return out


def run_groups(rounds: list[dict[int, dict[str, Any]]], folder: Path, **shared: Any) -> None:
    """Run rounds in turn; all groups of a round, keyed by size, run their cases at once."""
    plan, log = folder / "plan.json", folder / "log.txt"
    plan.write_text(json.dumps({**shared, "out": str(folder), "rounds": rounds}))
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, str(plan)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code: int | str = process.wait(timeout=540)
    except subprocess.TimeoutExpired:
        code = "no end"
    if code:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, (code, log.read_text()[-3000:])


def job_of(plan: dict[str, Any], name: str, world: int) -> Any:
    """The job of one case."""
    from ssd_ray.config import ClusterConfig, TrainConfig
    from ssd_ray.training.job import Job

    out = Path(plan["out"]) / name
    return Job(
        dataset=Path(plan["dataset"]),
        model=Path(plan["cases"][name]["model"]),
        out=out,
        logs=out,
        train=TrainConfig(**{**plan["train"], **plan["cases"][name]["train"]}),
        cluster=ClusterConfig(device="cpu", train_workers=world, cpus_per_train_worker=1),
        seed=SEED,
    )


def run_case(plan: dict[str, Any], name: str, world: int) -> None:
    """Train one case for its number of steps and export it."""
    from torch import distributed

    from ssd_ray.training.data import batches
    from ssd_ray.training.state import export, logs, resume
    from ssd_ray.training.worker import Worker

    job = job_of(plan, name, world)
    job.out.mkdir(parents=True, exist_ok=True)
    worker, stop = Worker(job), plan["cases"][name].get("stop", job.train.steps)
    begin = resume.restore(worker.engine, job.out)
    if begin:
        keep_state(worker.engine, job.out / f"restored-{begin}.pt")
    worker.observer.begin(begin)
    for step in range(begin, stop):
        batch = batches.global_batch(worker.examples, job.train.global_batch_size, job.seed, step)
        line = {**worker.step(step), "micro_steps": len(worker._micro_batches(batch))}
        if distributed.get_rank() == 0:
            logs.append_log(job.out, line)
    if stop == job.train.steps:
        export.export(worker.engine, job.model, job.out, job.train)
    else:
        keep_state(worker.engine, job.out / f"saved-{stop}.pt")
        resume.save(worker.engine, job.out, stop)


def keep_state(engine: Any, path: Path) -> None:
    """Write full parameters with moments, steps and decays, read by DeepSpeed's utilities."""
    import torch
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    inner, moments = (
        getattr(engine.optimizer, "optimizer", engine.optimizer),
        ("exp_avg", "exp_avg_sq"),
    )
    if hasattr(
        engine.optimizer, "_lazy_init_hp_params_optimizer_state"
    ):  # DeepSpeed did so before the second group had a state
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    whole: dict[str, Any] = {
        "steps": {float(state["step"]) for state in inner.state.values()},
        "weight_decays": [group["weight_decay"] for group in inner.param_groups],
    }
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and engine.zero_optimization():
            whole[name] = [safe_get_full_fp32_param(parameter).clone()]
            whole[name] += [
                safe_get_full_optimizer_state(parameter, key).clone() for key in moments
            ]
        elif parameter.requires_grad:
            whole[name] = [parameter.detach(), *(inner.state[parameter][key] for key in moments)]
    if engine.global_rank == 0:
        torch.save(whole, path)


def run_member(plan: dict[str, Any], world: int, rank: int, port: int) -> None:
    """Join the group as one member and run the cases in their order."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed
    from deepspeed.runtime.sequence_parallel import parallel_state_sp
    from deepspeed.utils import groups
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from ssd_ray.training.model import engine

    deepspeed.init_distributed("gloo", verbose=False)
    attention, zero = ALL_ATTENTION_FUNCTIONS["sdpa"], engine._zero
    for name in plan["cases"]:
        engine._zero = lambda *choices, case=name, **device: (
            zero(*choices, **device) | plan["cases"][case].get("zero", {})
        )
        run_case(plan, name, world)
        ALL_ATTENTION_FUNCTIONS["sdpa"] = (
            attention  # sequence parallelism stays for the rest of a process otherwise
        )
        parallel_state_sp._release_sequence_parallel_groups()
        groups.mpu = None


def fork(act: Callable[[], None]) -> int:
    """Return the pid of a child that acts and ends, with status 1 after an exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        act()
        status = 0
    # Broad: a child must not go on in the code of its parent.
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(plan_file: str) -> None:
    """Import what members need, then fork each round's members and wait for them."""
    from ssd_ray.config import ClusterConfig
    from ssd_ray.training import loop  # noqa: F401 - members inherit what is imported
    from ssd_ray.training.model.engine import prepare_process

    prepare_process(ClusterConfig(device="cpu", cpus_per_train_worker=1))
    plan = json.loads(Path(plan_file).read_text())
    for groups in plan.pop("rounds"):
        members = []
        for world, cases in groups.items():
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            for rank in range(int(world)):
                work = partial(run_member, plan | {"cases": cases}, int(world), rank, port)
                members.append(fork(work))
        for _ in members:
            member, status = os.wait()
            if status:  # the others would wait for it
                sys.exit(f"member {member} ended with status {status}")


if __name__ == "__main__":
    main(sys.argv[1])
