"""Groups of training processes without Ray: `python -m tests.support.engine_cases PLAN`.

PLAN is a JSON file: data set, output, the shared recipe, and rounds of groups of cases by name.

- One process imports the libraries once and forks every member of every group.
- A case continues from its resume state. At its step `stop` it saves one; else it exports.
- With `begin_as`, it begins with a copy of the state of another case.
- The first process writes each case's loss log and exported model into out/NAME.
- It also writes the full state after restoring and before saving.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
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
    """Write a data set of twelve sequences of 8 to 40 tokens, one without a response."""
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
            [sys.executable, "-m", "tests.support.engine_cases", str(plan)],
            cwd=Path(__file__).parents[2],
            # As in a run's workers on a CPU: DeepSpeed loads no compiler.
            env=os.environ | {"TORCHDYNAMO_DISABLE": "1"},
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
    """Return the job of one case."""
    from ssd_ray.config import ClusterConfig, Decoding, TrainConfig
    from ssd_ray.training.job import Job

    out, case = Path(plan["out"]) / name, plan["cases"][name]
    train = TrainConfig(**{**plan["train"], **case["train"]})
    if case.get("hub_kernel"):
        # The configuration refuses float32, in which alone a comparison is exact.
        train = train.model_copy(update={"attention": "flash_attention_2"})
    return Job(
        dataset=Path(plan["dataset"]),
        model=Path(case["model"]),
        out=out,
        logs=out,
        train=train,
        cluster=ClusterConfig(
            device="cpu",
            train_workers=world,
            cpus_per_train_worker=1,
            local_states=str(out / "disk") if case.get("local_states") else None,
        ),
        seed=SEED,
        sampling=Decoding(**case.get("sampling", {})),
    )


def run_case(plan: dict[str, Any], name: str, world: int) -> None:
    """Train one case for its number of steps and export it."""
    from torch import distributed

    from ssd_ray.errors import UserError
    from ssd_ray.training.data import batches
    from ssd_ray.training.state import export, logs, resume
    from ssd_ray.training.state.saver import Saver
    from ssd_ray.training.worker import Worker
    from tests.support import flash_kernel

    job = job_of(plan, name, world)
    job.out.mkdir(parents=True, exist_ok=True)
    if {"unwrapped", "unbounded"} & plan["cases"][name].keys():
        try:
            Worker(job)
        except UserError as error:
            (job.out / f"refused-{distributed.get_rank()}.txt").write_text(str(error))
        return
    worker, stop = Worker(job), plan["cases"][name].get("stop", job.train.steps)
    begin = resume.restore(worker.engine, job.out)
    if begin:
        keep_state(worker.engine, job.out / f"restored-{begin}.pt")
    worker.observer.begin(begin)
    flash_kernel.CALLS.clear()
    first_layer = watch_first_layer(worker.engine) if plan.get("watch_first_layer") else None
    for step in range(begin, stop):
        batch = batches.global_batch(worker.examples, job.train.global_batch_size, job.seed, step)
        line = {**worker.step(step), "micro_steps": len(worker._micro_batches(batch))}
        if first_layer is not None:
            line["first_layer_numel"] = sorted(first_layer)
            first_layer.clear()
        line["attention_calls"] = dict(flash_kernel.CALLS)
        if distributed.get_rank() == 0:
            logs.append_log(job.out, line)
    worker.observer.close()
    if stop == job.train.steps:
        export.export(worker.engine, job.model, job.out, job.train)
    else:
        keep_state(worker.engine, job.out / f"saved-{stop}.pt")
        saver = Saver(worker.engine, job)
        saver.save(stop)
        saver.close()


def watch_first_layer(engine: Any) -> set[int]:
    """Return a set that collects the elements in the first layer at the end of the last one.

    Under ZeRO-3, a released parameter has none. Forward passes of training count.
    """
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    modules = engine.module.modules()
    layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    seen: set[int] = set()

    def note(*_: Any) -> None:
        if layers[-1].training and torch._C._current_graph_task_id() == -1:
            seen.add(sum(parameter.numel() for parameter in layers[0].parameters()))

    layers[-1].register_forward_hook(note)
    return seen


def keep_state(engine: Any, path: Path) -> None:
    """Write full parameters with moments, steps and decays, read by DeepSpeed's utilities."""
    import torch
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from ssd_ray.training.model.expert_parallel import Gathering

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
    experts = Gathering(engine.module)
    kinds: list[dict[str, Any]] = [{}, {}, {}]
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if engine.zero_optimization():
            values = [safe_get_full_fp32_param(parameter)]
            values += [safe_get_full_optimizer_state(parameter, key) for key in moments]
        else:
            values = [parameter.detach(), *(inner.state[parameter][key] for key in moments)]
        for kind, value in zip(kinds, values, strict=True):
            kind[name] = experts.complete(name, value.clone())
    weights, *states = (experts.renamed(kind) for kind in kinds)
    whole |= {name: [value, *(kind[name] for kind in states)] for name, value in weights.items()}
    if engine.global_rank == 0:
        torch.save(whole, path)


def without_wrapper(register: Callable[..., Any]) -> Callable[..., Any]:
    """Return `register`, followed by the loss of its wrapper: attention then bypasses Ulysses."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def bypassed(model: Any, train: Any) -> Any:
        parallel = register(model, train)
        ALL_ATTENTION_FUNCTIONS._local_mapping.clear()
        return parallel

    return bypassed


def without_bounds(bounds: Callable[..., Any]) -> Callable[..., Any]:
    """Return `bounds` of packed sequences as if they were a single one."""

    def joined(loss: Any, cu_seq_lens: Any, _max_length: int) -> Any:
        return bounds(loss, cu_seq_lens[[0, -1]], int(cu_seq_lens[-1]))

    return joined


def run_member(plan: dict[str, Any], world: int, rank: int, port: int) -> None:
    """Join the group as one member and run the cases in their order."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed
    from deepspeed.runtime.sequence_parallel import parallel_state_sp
    from deepspeed.utils import groups
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from ssd_ray.training.model import engine, sequence_parallel
    from ssd_ray.training.model.loss import ResponseLoss
    from tests.support import flash_kernel

    deepspeed.init_distributed("gloo", verbose=False)
    zero, register = engine._zero, sequence_parallel.register
    bounds = ResponseLoss.bounds
    for name, case in plan["cases"].items():
        extra = case.get("zero", {})
        engine._zero = lambda *choices, extra=extra, **device: zero(*choices, **device) | extra
        sequence_parallel.register = without_wrapper(register) if "unwrapped" in case else register
        kept: Any = without_bounds(bounds) if "unbounded" in case else bounds
        ResponseLoss.bounds = kept  # type: ignore[method-assign]
        if "hub_kernel" in case:
            flash_kernel.install()
        run_case(plan, name, world)
        # Sequence parallelism stays for the rest of a process otherwise.
        ALL_ATTENTION_FUNCTIONS._local_mapping.clear()
        parallel_state_sp._release_sequence_parallel_groups()
        groups.mpu = None


def copy_states(out: Path, cases: dict[str, Any]) -> None:
    """Give cases with `begin_as` the files of the case of this name."""
    for name, case in cases.items():
        if "begin_as" in case:
            shutil.copytree(out / case["begin_as"], out / name)


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
    gc.disable()
    # DeepSpeed imports it with the first engine.
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

    from ssd_ray.config import ClusterConfig
    from ssd_ray.training import loop  # noqa: F401 - members inherit what is imported
    from ssd_ray.training.model.engine import prepare_process

    prepare_process(ClusterConfig(device="cpu", cpus_per_train_worker=1))
    # Members share the memory of what was imported, which a pass over it would copy.
    gc.freeze()
    gc.enable()
    plan = json.loads(Path(plan_file).read_text())
    for groups in plan.pop("rounds"):
        members = []
        for cases in groups.values():
            copy_states(Path(plan["out"]), cases)
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
