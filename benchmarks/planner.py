"""The planner's bytes of a worker against the peak of real training, one ratio per model.

    python benchmarks/planner.py --out figures.json

Two CPU workers train with DeepSpeed ZeRO-3 in float32 without Ray. The models are a random
Qwen3 and Qwen3-MoE of about 30M parameters, and the quick start's SmolLM2-135M.

- Measured: the peak resident memory of a worker, minus that of its libraries before a model
  exists. The allocator returns memory at once.
- Planned: the sum of `ssd-ray plan` for the same recipe.

Memory does not depend on the load of the machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import socket
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from ssd_ray import models, recipes
from ssd_ray.artifacts.shards import write_shard
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.models import architecture
from ssd_ray.planner.assumptions import assumptions
from ssd_ray.planner.clusters import plan_training
from ssd_ray.schema import Example

WORKERS = 2
CLUSTER = ClusterConfig(device="cpu", train_workers=WORKERS, cpus_per_train_worker=1)
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 24)}
"""Settings of the allocator that return memory at once, so that fragmentation is not measured."""
CASES: dict[str, dict[str, Any]] = {
    "qwen3": {"tokens": 512, "gradient_checkpointing": True},
    "qwen3, activations kept": {"tokens": 512, "gradient_checkpointing": False},
    "qwen3-moe": {"tokens": 512, "gradient_checkpointing": True},
    "smollm2-135m": {"tokens": 512, "gradient_checkpointing": True},
    "smollm2-135m, activations kept": {"tokens": 512, "gradient_checkpointing": False},
}


def random_model(kind: str, directory: Path) -> Path:
    """Write a random model of about 30M parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 16_384,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
    }
    if kind == "qwen3_moe":
        shape |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).float().save_pretrained(
        directory
    )
    return directory


def make_dataset(out: Path, tokens: int) -> Path:
    """Write sequences of one length, of which a quarter is prompt."""
    draw = np.random.default_rng(0)
    rows = [
        Example(
            prompt_id=f"p{index}",
            sample_index=0,
            input_ids=tuple(draw.integers(10, 10_000, tokens).tolist()),
            num_prompt_tokens=tokens // 4,
        )
        for index in range(8)
    ]
    write_shard(out, "part-00000", rows, Example)
    return out


def measured(model: Path, case: dict[str, Any], kind: str, folder: Path) -> tuple[int, int]:
    """Return peak bytes of a worker over two steps, and bytes of its libraries alone."""
    os.environ |= RETURNING
    dataset, context = (
        make_dataset(folder / "dataset", case["tokens"]),
        multiprocessing.get_context("spawn"),
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        futures = [
            pool.submit(_work, rank, port, model, dataset, folder, case, kind)
            for rank in range(WORKERS)
        ]
        results = [future.result() for future in futures]
    return max(peak for peak, _ in results), max(bare for _, bare in results)


def _work(
    rank: int, port: int, model: Path, dataset: Path, folder: Path, case: dict[str, Any], kind: str
) -> tuple[int, int]:
    """Run one worker: join the group, measure the memory of the libraries, train."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORKERS), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from ssd_ray.training.job import Job
    from ssd_ray.training.model.engine import prepare_process
    from ssd_ray.training.worker import Worker

    prepare_process(CLUSTER)
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    bare = _resident_bytes()
    job = Job(
        dataset=dataset,
        model=model,
        out=folder,
        logs=folder,
        train=choices(case),
        cluster=CLUSTER,
        seed=0,
    )
    worker = Worker(job)
    worker.observer.begin(0)
    peaks = [worker.step(step)["memory_gib"] for step in range(job.train.steps)]
    return round(max(peaks) * 2**30), bare


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) * 1024


def choices(case: dict[str, Any]) -> TrainConfig:
    """Return the section `train` of a recipe for a case."""
    return TrainConfig(
        steps=2,
        warmup_steps=0,
        global_batch_size=2 * WORKERS,
        micro_batch_tokens=case["tokens"],
        dtype="float32",
        gradient_checkpointing=case["gradient_checkpointing"],
        loss_chunk_tokens=128,
        trackers=(),
    )


def planned(model: Path, case: dict[str, Any]) -> dict[str, int]:
    """Return the planner's bytes by part."""
    changed = choices(case).model_dump(mode="json")
    overrides = [f"train.{name}={json.dumps(value)}" for name, value in changed.items()]
    limits = [
        f"prepare.max_length={case['tokens']}",
        f"cluster.train_workers={WORKERS}",
        f"sample.max_tokens={case['tokens']}",
    ]
    recipe = recipes.load("quickstart", [*overrides, *limits])
    (worker,) = plan_training(recipe, architecture.read(model), assumptions([])).candidates
    return worker.memory.parts


def main() -> None:
    """Measure; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(CASES),
        default=list(CASES),
        help="cases to run (default: all)",
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    around, figures = machine(), {}
    for name in arguments.only:
        kind = {"qwen3": "qwen3", "qwen3-moe": "qwen3_moe"}.get(name.partition(",")[0], "llama")
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder)
            smol = kind == "llama"
            model = (
                models.fetch(recipes.load("quickstart").model)
                if smol
                else random_model(kind, where / "model")
            )
            parts = planned(model, CASES[name])
            peak, bare = measured(model, CASES[name], kind, where)
        figures[name] = {
            "planned": parts,
            "planned_bytes": sum(parts.values()),
            "peak_bytes": peak,
            "libraries_bytes": bare,
        }
        figures[name]["ratio"] = round(sum(parts.values()) / (peak - bare), 3)
        print(
            f"{name:<32} planned {sum(parts.values()) / 2**20:7.0f} MiB, measured "
            f"{(peak - bare) / 2**20:7.0f} MiB "
            f"beside {bare / 2**20:.0f} MiB of libraries: ratio {figures[name]['ratio']}"
        )
    arguments.out.write_text(json.dumps({"machine": around, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
