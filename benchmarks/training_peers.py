"""Peers of `training.py`, a process each: `training_peers.py trl|deepspeed PLAN.json`.

- `trl`: TRL's SFTTrainer in its default settings.
- `deepspeed`: a plain loop around `deepspeed.initialize` with ZeRO-3, as in DeepSpeed's
  documentation, without Ray.

Both read the global batches from the plan. Each prints one JSON line: the seconds of every
step and the process's peak memory in GiB.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch


def trl(plan: dict[str, Any]) -> list[float]:
    """Return seconds per step of SFTTrainer on tokenized rows in the plan's order."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(plan["threads"])
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    rows = [row for batch in plan["batches"] for row in batch]
    masks = [[0] * row["num_prompt"] + [1] * (len(row["ids"]) - row["num_prompt"]) for row in rows]
    data = Dataset.from_dict({"input_ids": [row["ids"] for row in rows], "completion_mask": masks})
    size = len(plan["batches"][0])
    config = SFTConfig(
        output_dir=plan["scratch"],
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=plan["trl_micro_batch"],
        gradient_accumulation_steps=size // plan["trl_micro_batch"],
        max_steps=len(plan["batches"]),
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
    )
    model = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(plan["model"])
    SFTTrainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()
    return seconds


def plain_deepspeed(plan: dict[str, Any]) -> list[float]:
    """Return seconds per step of a plain ZeRO-3 loop with padded micro-batches."""
    from ssd_ray.config import ClusterConfig
    from ssd_ray.training.model.engine import prepare_process

    prepare_process(ClusterConfig(device="cpu", train_workers=2, cpus_per_train_worker=1))
    import deepspeed
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed.init_distributed("gloo", verbose=False)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    micro = plan["deepspeed_micro_batch"]
    steps = len(plan["batches"][0]) // (micro * world)
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 5e-6, "torch_adam": True}},
        "zero_optimization": {"stage": 3},
    }
    partitioned = HfDeepSpeedConfig(config)
    model = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    del partitioned
    seconds = []
    for batch in plan["batches"]:
        began = time.perf_counter()
        mine = batch[rank::world]
        for start in range(0, len(mine), micro):
            rows = [torch.tensor(row["ids"]) for row in mine[start : start + micro]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True
            )
            labels = ids.masked_fill(mask == 0, -100)
            for line, row in zip(labels, mine[start : start + micro], strict=True):
                line[: row["num_prompt"]] = -100
            engine.backward(
                engine(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            )
            engine.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Run the named peer over the plan."""
    peer = {"trl": trl, "deepspeed": plain_deepspeed}[sys.argv[1]]
    seconds = peer(json.loads(Path(sys.argv[2]).read_text()))
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak_gib}), flush=True)
    os._exit(0)  # at an ordinary exit, threads of gloo abort the process at times


if __name__ == "__main__":
    main()
