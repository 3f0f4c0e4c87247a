"""Speed and memory of training, relative to TRL's SFTTrainer and to plain DeepSpeed.

    pip install --no-deps --target build/trl trl==1.16.0  # a peer, no dependency of the project
    python benchmarks/training.py --out figures.json

- One process: ours under Ray Train against SFTTrainer in its default settings. Model, float32,
  samples and global batches are the same. Sequences have equal lengths (330 tokens) or mixed
  lengths (60 to 600).
- Two processes of one core: ours with ZeRO-3 under Ray Train against a plain DeepSpeed ZeRO-3
  loop without Ray, on mixed lengths.
- Rates count prompt and answer tokens of all steps but the first. Memory is the peak of one
  training process.

The JSON holds the seconds of every step and the load. Ratios from a busy machine mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from ssd_ray import models, recipes
from ssd_ray.artifacts.shards import write_shard
from ssd_ray.cluster import connected
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Example
from ssd_ray.training.data.batches import global_rows
from ssd_ray.training.data.examples import Examples

HERE = Path(__file__).parent
ROWS, BATCH = 64, 8
LENGTHS = {"equal": (330, 330), "mixed": (60, 600)}
SETTINGS = (*LENGTHS, "ZeRO-3")
WANTED = {
    "equal speed": 1.3,
    "mixed speed": 2.5,
    "equal memory": 0.6,
    "mixed memory": 0.6,
    "ZeRO-3 speed": 0.8,
}


def make_dataset(out: Path, vocabulary: int, shortest: int, longest: int) -> Path:
    """Write sequences of random ids, of which a third is prompt."""
    draw = np.random.default_rng(0)
    rows = []
    for index in range(ROWS):
        ids = tuple(draw.integers(10, vocabulary, draw.integers(shortest, longest + 1)).tolist())
        rows.append(
            Example(
                prompt_id=f"p{index}",
                sample_index=0,
                input_ids=ids,
                num_prompt_tokens=len(ids) // 3,
            )
        )
    write_shard(out, "part-00000", rows, Example)
    return out


def batches_of(dataset: Path, steps: int) -> list[list[dict[str, Any]]]:
    """Return the global batches of our training, as plain rows for the peers."""
    examples = Examples(dataset)
    return [
        [
            {
                "ids": examples.row(int(row)).tolist(),
                "num_prompt": int(examples.num_prompt_tokens[row]),
            }
            for row in global_rows(len(examples), BATCH, 0, step)
        ]
        for step in range(steps)
    ]


def ours(model: Path, dataset: Path, steps: int, workers: int, out: Path) -> dict[str, Any]:
    """Return seconds of each step under Ray Train, and the peak memory of the first worker."""
    from ssd_ray.training.job import Job
    from ssd_ray.training.trainer import train

    out.mkdir(parents=True)
    cluster = ClusterConfig(
        device="cpu", train_workers=workers, cpus_per_train_worker=2 / workers, max_failures=0
    )
    choices = TrainConfig(
        steps=steps,
        global_batch_size=BATCH,
        zero_stage=3 if workers > 1 else 0,
        dtype="float32",
        warmup_steps=0,
        gradient_checkpointing=False,
        loss_chunk_tokens=256,
        checkpoint_every=steps + 1,
    )
    job = Job(
        dataset=dataset,
        model=model,
        out=out,
        logs=out.parent / f"{out.name}-logs",
        train=choices,
        cluster=cluster,
        seed=0,
    )
    with connected():
        train(job, LineProgress())
    lines = [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]
    return {
        "seconds": [line["seconds"] for line in lines],
        "peak_gib": max(line["peak_gib"] for line in lines),
    }


def peer(name: str, plan: dict[str, Any], folder: Path, workers: int = 1) -> dict[str, Any]:
    """Run a peer in `workers` processes and return what the first one printed."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(plan))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = []
    for rank in range(workers):
        paths = [
            str(HERE.parent),
            *([plan["trl"]] if name == "trl" else []),
            os.environ.get("PYTHONPATH", ""),
        ]
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
        environment = {**os.environ, **places, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
        if workers == 1:
            for place in places:
                environment.pop(place)
        command = [sys.executable, str(HERE / "training_peers.py"), name, str(file)]
        with (folder / f"{name}-{rank}.log").open("w") as log:
            running.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
                )
            )
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"{name} failed:\n{(folder / f'{name}-0.log').read_text()[-2000:]}")
    figures: dict[str, Any] = json.loads(printed[0].splitlines()[-1])
    return figures


def with_rate(figures: dict[str, Any], batches: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the figures with tokens a second after the first step, and the load at the end."""
    tokens = [sum(len(row["ids"]) for row in batch) for batch in batches]
    rate = sum(tokens[1:]) / sum(figures["seconds"][1:])
    return {
        "tokens_per_s": round(rate, 1),
        "peak_gib": round(figures["peak_gib"], 2),
        "seconds": [round(value, 2) for value in figures["seconds"]],
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def compare(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Measure every kind; return all figures by name."""
    figures: dict[str, dict[str, Any]] = {}
    vocabulary = json.loads((options.model / "config.json").read_text())["vocab_size"]
    for kind, (shortest, longest) in LENGTHS.items():
        dataset = make_dataset(folder / kind, vocabulary, shortest, longest)
        batches = batches_of(dataset, options.steps)
        plan = {
            "model": str(options.model),
            "batches": batches,
            "trl": str(options.trl),
            "scratch": str(folder / "scratch"),
        }
        plan |= {
            "threads": 2,
            "trl_micro_batch": options.trl_micro_batch,
            "deepspeed_micro_batch": 1,
        }
        if kind in options.settings:
            figures[f"{kind}, ours"] = with_rate(
                ours(options.model, dataset, options.steps, 1, folder / f"ours-{kind}"), batches
            )
            figures[f"{kind}, TRL"] = with_rate(peer("trl", plan, folder), batches)
        if kind == "mixed" and "ZeRO-3" in options.settings:
            figures["ZeRO-3, ours"] = with_rate(
                ours(options.model, dataset, options.steps, 2, folder / "ours-two"), batches
            )
            figures["ZeRO-3, plain"] = with_rate(
                peer("deepspeed", plan, folder, workers=2), batches
            )
    return figures


def ratios_of(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the published ratios: speed and memory against TRL, speed against DeepSpeed."""
    ratios = {}
    for name in WANTED:
        setting, what = name.split()
        if f"{setting}, ours" not in figures:
            continue
        key = "tokens_per_s" if what == "speed" else "peak_gib"
        other = "plain" if setting == "ZeRO-3" else "TRL"
        ratios[name] = round(
            figures[f"{setting}, ours"][key] / figures[f"{setting}, {other}"][key], 2
        )
    return ratios


def main() -> None:
    """Measure; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--model", type=Path, help="a Hugging Face model directory (default: the quick start's)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=4,
        help="steps of each loop, the first not counted (default: %(default)s)",
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        default=SETTINGS,
        help="what to measure (default: all)",
    )
    parser.add_argument(
        "--trl",
        type=Path,
        default=HERE.parent / "build" / "trl",
        help="where TRL lies (default: build/trl)",
    )
    parser.add_argument(
        "--trl-micro-batch", type=int, default=8, help="TRL's micro-batch (default: 8, as TRL's)"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    options = parser.parse_args()
    if not (options.trl / "trl").is_dir():
        sys.exit(
            f"TRL is not in {options.trl}: run `pip install --no-deps --target {options.trl} "
            "trl==1.16.0` first"
        )
    options.model = (options.model or models.fetch(recipes.load("quickstart").model)).resolve()
    around = machine()
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(options, Path(folder))
    for name, values in figures.items():
        print(
            f"{name:>14}: {values['tokens_per_s']:7.1f} tokens/s, {values['peak_gib']:5.2f} GiB, "
            f"load {values['load_1_min']}"
        )
    ratios = ratios_of(figures)
    for name, value in ratios.items():
        print(
            f"{name:>14}: {value:.2f} (wanted: at {'most' if 'memory' in name else 'least'} "
            f"{WANTED[name]})"
        )
    if options.out:
        options.out.write_text(
            json.dumps({"machine": around, "figures": figures, "ratios": ratios}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
