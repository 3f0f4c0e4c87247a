"""An optimizer step in plain PyTorch, without batches, partitions or a chunked loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ssd_ray.config import TrainConfig
from ssd_ray.training.data.batches import global_batch
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.model.adapters import add_adapters
from tests.support import engine_cases


def reference(model: Path, dataset: Path, train: TrainConfig) -> tuple[float, float, Any]:
    """Return loss, gradient norm and network after one plain PyTorch step."""
    network, examples = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        Examples(dataset),
    )
    if train.lora is not None:
        add_adapters(network, train.lora, engine_cases.SEED)
    losses = []
    for row in global_batch(examples, 8, engine_cases.SEED, 0).rows:
        ids, start = (
            torch.tensor(examples.row(int(row)).astype("int64")),
            int(examples.num_prompt_tokens[row]),
        )
        logits = network(input_ids=ids[None]).logits[0, start - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[start:], reduction="none"))
    loss = (
        torch.cat(losses).mean()
        if train.loss_mean == "token"
        else torch.stack([e.mean() for e in losses if len(e)]).mean()
    )
    loss.backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
    decayed, others = ([p for p in trained if (p.ndim > 1) is matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=train.learning_rate, betas=(0.9, 0.95)
    ).step()
    return loss.item(), norm.item(), network
