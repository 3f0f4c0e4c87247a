"""What training costs: tokens a second of Ray Train with DeepSpeed ZeRO-3, as a ratio to a bare torch loop in the same run.

    python benchmarks/training.py --model DIR --out figures.json

Ours: two workers of one core, response-only chunked loss, micro-batches of like length. The bare loop: one process of two
threads, full logits over prompt and answer, sequences in drawn order padded to the longest, AdamW. Both see the same
global batches of random ids, 150 to 450 tokens long. Rates count prompt and answer, leave the first step out and are of the
fastest step, the one least disturbed by other work; the seconds of every step and the load are written beside them, and a
ratio from a busy machine is worth nothing. Memory is the sum over all processes (proportional set size).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import machine

from ssd_ray import models, recipes
from ssd_ray.artifacts import write_shard
from ssd_ray.cluster import connected
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Example
from ssd_ray.training.batches import global_batch, load_examples

ROWS = 64


def make_dataset(out: Path, vocabulary: int) -> Path:
    """Sequences of 150 to 450 random ids, of which 60 to 120 are prompt."""
    draw = np.random.default_rng(0)
    rows = []
    for index in range(ROWS):
        ids = tuple(draw.integers(10, vocabulary, draw.integers(150, 451)).tolist())
        prompt = int(draw.integers(60, 121))
        rows.append(Example(prompt_id=f"p{index}", sample_index=0, input_ids=ids, num_prompt_tokens=prompt))
    write_shard(out, "part-00000", rows, Example)
    return out


def bare_loop(model: Path, dataset: Path, train: TrainConfig) -> list[float]:
    """Seconds of each step of a plain loop."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimizer, examples, seconds = torch.optim.AdamW(network.parameters(), lr=train.learning_rate), load_examples(dataset), []
    for step in range(train.steps):
        began = time.perf_counter()
        batch = global_batch(len(examples), train.global_batch_size, 0, step)
        for rows in batch.reshape(-1, train.micro_batch_size):
            ids = [torch.from_numpy(examples.row(int(row)).astype(np.int64)) for row in rows]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
            labels = padded.masked_fill(mask == 0, -100)
            network(input_ids=padded, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds


def our_loop(model: Path, dataset: Path, train: TrainConfig, cluster: ClusterConfig, out: Path) -> list[float]:
    """Seconds of each step of the real thing."""
    from ssd_ray.training.trainer import train as run

    out.mkdir()
    with connected(cluster):
        run(dataset, model, train, cluster, seed=0, out=out, logs=out.parent / f"{out.name}-logs", progress=LineProgress())
    return [json.loads(line)["seconds"] for line in (out / "loss.jsonl").read_text().splitlines()]


def with_peak(act: Callable[[], list[float]]) -> tuple[list[float], float]:
    """What `act` returns, and the largest memory in GiB of this process and its descendants meanwhile."""
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not over.wait(2):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total / 2**30)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        return act(), peak[0]
    finally:
        over.set()
        watcher.join()


def figure(dataset: Path, train: TrainConfig, seconds: list[float], peak_gib: float) -> dict[str, Any]:
    """Tokens a second of the fastest step after the first, the load as it ended, and the memory."""
    examples = load_examples(dataset)
    tokens = [int(examples.lengths[global_batch(ROWS, train.global_batch_size, 0, step)].sum()) for step in range(train.steps)]
    rate = max(count / value for count, value in list(zip(tokens, seconds, strict=True))[1:])
    return {
        "tokens_per_s": round(rate, 1),
        "peak_gib": round(peak_gib, 2),
        "seconds": [round(value, 2) for value in seconds],
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a Hugging Face model directory (default: the quick start's)")
    parser.add_argument(
        "--steps", type=int, default=4, help="steps of each loop, the first is not counted (default: %(default)s)"
    )
    parser.add_argument("--micro-batch-size", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="precisions of ours (default: both)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations in ours")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    arguments = parser.parse_args()
    arguments.model = arguments.model or models.fetch(recipes.load("quickstart").model)
    around, cluster = machine(), ClusterConfig(device="cpu", train_workers=2, cpus_per_train_worker=1, max_failures=0)
    chosen = {"steps": arguments.steps, "global_batch_size": 8, "micro_batch_size": arguments.micro_batch_size}
    chosen |= {"loss_chunk_tokens": 256, "warmup_steps": 0, "gradient_checkpointing": arguments.gradient_checkpointing}
    train, figures = TrainConfig(**chosen), {}
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
        dataset = make_dataset(Path(folder) / "dataset", vocabulary)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            measured = with_peak(lambda: pool.submit(bare_loop, arguments.model, dataset, train).result())
        figures["bare float32"] = figure(dataset, train, *measured)
        for dtype in arguments.dtype:
            ours, out = TrainConfig(**chosen, dtype=dtype), Path(folder) / dtype
            measured = with_peak(lambda ours=ours, out=out: our_loop(arguments.model, dataset, ours, cluster, out))
            figures[f"ours {dtype}"] = figure(dataset, train, *measured)
    for name, values in figures.items():
        values["ratio_to_bare"] = round(values["tokens_per_s"] / figures["bare float32"]["tokens_per_s"], 2)
        print(
            f"{name:>14}: {values['tokens_per_s']:6.1f} tokens/s, {values['ratio_to_bare']:.2f} of bare, {values['peak_gib']} GiB"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": around, "choices": chosen, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
