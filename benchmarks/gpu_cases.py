"""One case of gpu.py in a process of its own, so that the next one finds its memory free.

    python benchmarks/gpu_cases.py PLAN.json

A plan names the case, its arguments, and the file of its result.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssd_ray.config import ClusterConfig, TrainConfig

SEED = 0
Plan = dict[str, Any]
Result = dict[str, Any]


def train(plan: Plan) -> Result:
    """Train with the project's worker: resume, step, save, and be killed where the plan says so."""
    cluster = ClusterConfig(device=plan["device"], train_workers=1, cpus_per_train_worker=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from ssd_ray.training.model.engine import prepare_process

    prepare_process(cluster)
    import deepspeed

    from ssd_ray.training.job import Job
    from ssd_ray.training.state import export, resume
    from ssd_ray.training.worker import Worker

    deepspeed.init_distributed("gloo" if plan["device"] == "cpu" else "nccl", verbose=False)
    out = Path(plan["out"])
    out.mkdir(parents=True, exist_ok=True)
    job = Job(
        dataset=Path(plan["dataset"]),
        model=Path(plan["model"]),
        out=out,
        logs=out,
        train=TrainConfig(**plan["train"]),
        cluster=cluster,
        seed=SEED,
    )
    worker = Worker(job)
    begin = resume.restore(worker.engine, out)
    worker.observer.begin(begin)
    lines = []
    for step in range(begin, job.train.steps):
        if step == plan.get("killed_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        lines.append(worker.step(step))
        if step + 1 == plan.get("saved_at"):
            resume.save(worker.engine, out, step + 1)
    if plan.get("exports"):
        export.export(worker.engine, job.model, out, job.train)
    return {"begin": begin, "lines": lines}


def reference(plan: Plan) -> Result:
    """Take two steps by definition: one sequence at a time, float32 gradients, torch's AdamW."""
    from transformers import AutoModelForCausalLM

    from ssd_ray.training.data.batches import global_rows
    from ssd_ray.training.data.examples import Examples
    from ssd_ray.training.worker import learning_rate

    choices = TrainConfig(**plan["train"])
    examples = Examples(Path(plan["dataset"]))
    model: Any = AutoModelForCausalLM.from_pretrained(
        plan["model"], dtype=getattr(torch, choices.dtype)
    ).to(plan["device"])
    parameters = list(model.parameters())
    masters = [parameter.detach().float().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(
        [
            {"params": [each for each in masters if each.ndim > 1]},
            {"params": [each for each in masters if each.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(choices.beta1, choices.beta2),
        weight_decay=choices.weight_decay,
    )
    losses, norms = [], []
    for step in range(2):
        rows = global_rows(len(examples), choices.global_batch_size, SEED, step)
        sequences = [examples.row(int(row)) for row in rows]
        prompts = [int(examples.num_prompt_tokens[row]) for row in rows]
        total = sum(len(ids) - prompt for ids, prompt in zip(sequences, prompts, strict=True))
        gradients = [torch.zeros_like(master) for master in masters]
        loss = 0.0
        for ids, prompt in zip(sequences, prompts, strict=True):
            inputs = torch.tensor(np.asarray(ids)).long()[None].to(plan["device"])
            logits = model(inputs).logits[0, prompt - 1 : -1].float()
            part = torch.nn.functional.cross_entropy(logits, inputs[0, prompt:], reduction="sum")
            (part / total).backward()
            loss += part.item() / total
            for gradient, parameter in zip(gradients, parameters, strict=True):
                gradient += parameter.grad.float()
                parameter.grad = None
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        scale = min(1.0, choices.max_grad_norm / (norm + 1e-6))
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient * scale
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(choices, step)
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(parameters, masters, strict=True):
                parameter.copy_(master)
        losses.append(loss)
        norms.append(norm)
    return {"losses": losses, "norms": norms}


def operator(plan: Plan) -> Result:
    """Compare the tokens kept by the exact sampler with the definition in float64."""
    from ssd_ray.inference.vllm.truncation import Bounds, truncate

    vocabulary, num_rows = plan["vocabulary"], plan["rows"]
    draw = np.random.default_rng(1)
    # Steps of 1/16, so that ties occur.
    scores = np.round(draw.normal(0, 2, (num_rows, vocabulary)) * 16) / 16
    bounds = [(20, 0.8), (50, 1.0), (None, 0.95), (1, 0.5)]
    chosen = [bounds[row % len(bounds)] for row in range(num_rows)]
    logits = torch.tensor(scores, dtype=torch.float32, device=plan["device"])
    kept = truncate(logits, Bounds(chosen, vocabulary, logits.device))
    mask = torch.isfinite(kept).cpu().numpy()
    equal, judged = 0, 0
    for row, (k, p) in enumerate(chosen):
        expected, margin = _survivors(scores[row], k or vocabulary, p)
        # Rounding may put a token on either side of p.
        if margin < 1e-6:
            continue
        judged += 1
        equal += bool(np.array_equal(mask[row], expected))
    return {"rows": judged, "equal": equal}


def _survivors(scores: np.ndarray, k: int, p: float) -> tuple[np.ndarray, float]:
    """Return a mask of the tokens kept by definition, and the distance of the nucleus from p."""
    kth = np.sort(scores)[-k]
    order = np.lexsort((np.arange(len(scores)), scores))
    order = order[scores[order] >= kth]
    weights = np.exp(scores[order] - scores.max())
    mass = np.cumsum(weights / weights.sum())
    dropped = 1 - float(np.float32(p))
    kept = order[mass > dropped] if p < 1 else order
    mask = np.zeros(len(scores), bool)
    mask[kept if len(kept) else order[-1:]] = True
    return mask, float(np.min(np.abs(mass - dropped))) if p < 1 else 1.0


def likelihoods(plan: Plan) -> Result:
    """Return log-probabilities of the tokens of some sequences, by transformers."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        plan["model"], dtype=getattr(torch, plan["dtype"])
    ).to(plan["device"])
    values = []
    with torch.no_grad():
        for ids in plan["sequences"]:
            inputs = torch.tensor(ids, device=plan["device"])[None]
            logits = model(inputs).logits[0, :-1].float().log_softmax(-1)
            values.append(logits.gather(1, inputs[0, 1:, None]).flatten().tolist())
    return {"values": values}


def served_likelihoods(plan: Plan) -> Result:
    """Return the same by vLLM, which loads the directory as a server would."""
    from vllm import LLM, SamplingParams

    from ssd_ray.config import EngineConfig, ModelConfig
    from ssd_ray.inference.vllm.arguments import engine_arguments

    engine = EngineConfig(enforce_eager=True, kv_cache_gib=0.25, sampler="vllm", max_num_seqs=8)
    model = ModelConfig(source=plan["model"], dtype=plan["dtype"], max_model_len=CONTEXT)
    llm: Any = LLM(**engine_arguments(Path(plan["model"]), model, engine, plan["device"]))
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in plan["sequences"]],
        SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0),
        use_tqdm=False,
    )
    values = [
        [
            places[token].logprob
            for places, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        ]
        for output, ids in zip(outputs, plan["sequences"], strict=True)
    ]
    return {"values": values}


CONTEXT = 4096
CASES = {
    each.__name__: each for each in (train, reference, operator, likelihoods, served_likelihoods)
}


LIBRARIES = [
    "deepspeed",
    "transformers.integrations",
    "transformers.models.qwen3.modeling_qwen3",
    "ssd_ray.training.loop",
    __name__,
]
"""Modules for every case but `served_likelihoods`, which needs vLLM."""


def run(file: Path, log: Path | None = None) -> None:
    """Run the case of a plan and write its result; its output goes to `log`, if given."""
    if log is not None:
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
    plan = json.loads(file.read_text())
    Path(plan["result"]).write_text(json.dumps(CASES[plan["case"]](plan)))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
