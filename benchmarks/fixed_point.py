"""Two predictions of theory about training on own samples, measured on SmolLM2-135M.

    python benchmarks/fixed_point.py --out figures.json

Memorization: 32 samples of eight prompts, trained on repeatedly. Their loss falls below the
entropy of their sampling distribution. It has another floor: where two samples of one prompt
diverge, the model divides its probability between them. This floor is the entropy of the next
token given its prefix, counted over the samples.

Fixed point: samples at temperature 1 without truncation have no expected gradient
(2604.01193, Eq. 9). One pass over them moves the likelihood of held-out samples by no more
than the measurement noise. For contrast, truncated samples at another temperature do teach:
held-out likelihood moves towards the entropy of their sampling distribution.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from machine import machine

from ssd_ray import models, recipes
from ssd_ray.analysis.operator import distribution
from ssd_ray.artifacts.shards import write_shard
from ssd_ray.config import ClusterConfig, Decoding, TrainConfig
from ssd_ray.models import loading
from ssd_ray.schema import Example
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.observe.distributions import MEASURES, measure
from ssd_ray.training.observe.heldout import read_held_out, split

SUBJECTS = (
    "the sea",
    "a good breakfast",
    "the colour blue",
    "why the sky is dark at night",
    "a walk in the woods",
    "how bread is made",
    "a cat",
    "the number seven",
)
FORMS = (
    "Write one sentence about",
    "Ask me a question about",
    "Name three things that have to do with",
    "Make a title about",
)
PROMPTS = tuple(f"{form} {subject}." for form in FORMS for subject in SUBJECTS)
PLAIN, SHARP = Decoding(), Decoding(temperature=0.6, top_k=20, top_p=0.8)
CLUSTER = ClusterConfig(device="cpu", train_workers=1, cpus_per_train_worker=2)


@torch.no_grad()
def draw(
    directory: Path, prompts: tuple[str, ...], samples: int, decoding: Decoding, max_tokens: int
) -> list[Example]:
    """Draw samples of each prompt from the distribution whose entropy is the floor."""
    from transformers import AutoModelForCausalLM

    tokenizer = loading.load_tokenizer(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    generator, rows = torch.Generator().manual_seed(0), []
    for prompt in prompts:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        step, past, drawn = (
            torch.tensor([ids] * samples),
            None,
            torch.zeros((samples, 0), dtype=torch.int64),
        )
        for _ in range(max_tokens):
            out = model(input_ids=step, past_key_values=past, use_cache=True)
            past = out.past_key_values
            q = distribution(out.logits[:, -1], decoding)
            step = torch.multinomial(q, 1, generator=generator)
            drawn = torch.cat([drawn, step], dim=1)
        for index, answer in enumerate(drawn.tolist()):
            end = (
                answer.index(tokenizer.eos_token_id) + 1
                if tokenizer.eos_token_id in answer
                else len(answer)
            )
            tokens = (*ids, *answer[:end])
            rows.append(
                Example(
                    prompt_id=prompt,
                    sample_index=index,
                    input_ids=tokens,
                    num_prompt_tokens=len(ids),
                )
            )
    return rows


def memorizing_floor(rows: list[Example]) -> float:
    """Return nats per token once all rows are memorized: the entropy after each prefix."""
    following: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row in rows:
        for end in range(row.num_prompt_tokens, len(row.input_ids)):
            following[row.input_ids[:end]][row.input_ids[end]] += 1
    lost = -sum(
        count * math.log(count / seen.total())
        for seen in following.values()
        for count in seen.values()
    )
    return lost / sum(seen.total() for seen in following.values())


@torch.no_grad()
def by_sequence(directory: Path, base: Path, dataset: Examples, decoding: Decoding) -> torch.Tensor:
    """Return sums of `measure` per sequence: [sequences, NUM_COLUMNS + 1], tokens last."""
    from transformers import AutoModelForCausalLM

    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (directory, base)
    )
    result = []
    for row in range(len(dataset)):
        ids, start = (
            torch.tensor(dataset.row(row).astype("int64")),
            int(dataset.num_prompt_tokens[row]),
        )
        logits, base_logits = (
            model(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1]
            for model in (ours, theirs)
        )
        values = measure(logits, base_logits, ids[start:], decoding)
        result.append(
            torch.cat([values.sum(0), torch.tensor([float(len(values))], dtype=torch.float64)])
        )
    return torch.stack(result)


def run(
    base: Path, rows: list[Example], decoding: Decoding, folder: Path, **choices: Any
) -> list[float]:
    """Train on the rows in this process and return the loss of each step.

    Held-out measures are written to `folder`.
    """
    from ssd_ray.training.job import Job
    from ssd_ray.training.worker import Worker

    write_shard(folder / "dataset", "part-00000", rows, Example)
    chosen = TrainConfig(
        dtype="float32",
        zero_stage=0,
        gradient_checkpointing=False,
        loss_chunk_tokens=512,
        micro_batch_tokens=1024,
        trackers=(),
        **choices,
    )
    job = Job(
        dataset=folder / "dataset",
        model=base,
        out=folder,
        logs=folder,
        train=chosen,
        cluster=CLUSTER,
        seed=0,
        sampling=decoding,
    )
    worker = Worker(job)
    worker.observer.begin(0)
    return [worker.step(step)["loss"] for step in range(chosen.steps)]


def join_a_group_of_one() -> None:
    """Set up a process group of one, as Ray Train does for a worker."""
    from ssd_ray.training.model.engine import prepare_process

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    prepare_process(CLUSTER)
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)


def memorize(base: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Return losses of 32 samples over `steps` full batches, and both floors."""
    decoding = Decoding(temperature=1.0, top_k=20, top_p=0.95)
    rows = draw(base, PROMPTS[:8], 4, decoding, 16)
    schedule = {"learning_rate": 3e-4, "min_learning_rate": 3e-5, "warmup_steps": 2}
    losses = run(
        base,
        rows,
        decoding,
        folder,
        steps=steps,
        global_batch_size=32,
        weight_decay=0.0,
        **schedule,
    )
    sums = by_sequence(base, base, Examples(folder / "dataset"), decoding).sum(0)
    entropy = float(sums[MEASURES.index("floor")] / sums[-1])
    return {
        "sequences": len(rows),
        "tokens": int(sums[-1]),
        "base_nll": losses[0],
        "sampling_entropy": entropy,
        "memorizing_floor": memorizing_floor(rows),
        "final_nll": losses[-1],
        "least_nll": min(losses),
        "first_step_below_the_entropy": next(
            (step for step, loss in enumerate(losses) if loss < entropy), None
        ),
        "losses": losses,
    }


def one_pass(base: Path, folder: Path, decoding: Decoding, samples: int) -> dict[str, Any]:
    """Train one pass over own samples and measure the change of held-out likelihood."""
    rows = draw(base, PROMPTS, samples, decoding, 16)
    held = len(rows) // 4
    steps = (len(rows) - held) // 16
    schedule = {
        "learning_rate": 2e-5,
        "min_learning_rate": 2e-5,
        "warmup_steps": 0,
        "evaluate_every": max(1, steps // 2),
    }
    run(
        base,
        rows,
        decoding,
        folder,
        steps=steps,
        global_batch_size=16,
        heldout_samples=held,
        **schedule,
    )
    part = split(Examples(folder / "dataset"), held, 0)[1]
    assert part is not None
    before = by_sequence(base, base, part, decoding)
    nll, tokens = before[:, MEASURES.index("nll")], before[:, -1]
    mean = nll.sum() / tokens.sum()
    noise = float(((nll - mean * tokens) ** 2).sum().sqrt() / tokens.sum())
    lines = read_held_out(folder)
    moved = lines[-1]["nll"] - lines[0]["nll"]
    return {
        "trained": len(rows) - len(part),
        "held_out": len(part),
        "tokens": lines[0]["tokens"],
        "steps": steps,
        "before": lines[0],
        "after": lines[-1],
        "moved": moved,
        "standard_error": noise,
        "moved_in_standard_errors": moved / noise,
    }


def main() -> None:
    """Run both experiments; print and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--model", type=Path, help="a Hugging Face model directory (default: the quick start's)"
    )
    parser.add_argument(
        "--steps", type=int, default=40, help="steps of memorizing (default: %(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=6,
        help="samples of a prompt for the fixed point (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    around, base = machine(), arguments.model or models.fetch(recipes.load("quickstart").model)
    join_a_group_of_one()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {"fixed point": one_pass(base, folder / "plain", PLAIN, arguments.samples)}
        _print_pass("T 1, no truncation", figures["fixed point"])
        figures["memorizing"] = result = memorize(base, folder / "memorize", arguments.steps)
        _print_memorizing(result)
        figures["contrast"] = one_pass(base, folder / "sharp", SHARP, arguments.samples)
        _print_pass("T 0.6, top-k 20, top-p 0.8", figures["contrast"])
    arguments.out.write_text(json.dumps({"machine": around, "figures": figures}, indent=1) + "\n")


def _print_pass(name: str, result: dict[str, Any]) -> None:
    before, after = result["before"], result["after"]
    print(
        f"{name}: {result['steps']} steps, {result['trained']} samples, {result['held_out']} held "
        f"out ({result['tokens']} tokens)\n"
        f"  NLL {before['nll']:.4f} to {after['nll']:.4f}, floor {before['floor']:.4f}: moved "
        f"{result['moved']:+.4f}, "
        f"{result['moved_in_standard_errors']:+.2f} standard errors of "
        f"{result['standard_error']:.4f}\n"
        f"  expectation {before['cross_entropy']:.4f} to {after['cross_entropy']:.4f}, KL to the "
        f"base {after['kl_to_base']:.4f}",
        flush=True,
    )


def _print_memorizing(result: dict[str, Any]) -> None:
    print(
        f"memorizing {result['sequences']} samples ({result['tokens']} tokens): "
        f"{result['base_nll']:.3f} nats at first, "
        f"below their sampling entropy of {result['sampling_entropy']:.3f} from step "
        f"{result['first_step_below_the_entropy']}, "
        f"{result['final_nll']:.4f} at the end\n"
        f"  least {result['least_nll']:.4f}; no model can go below "
        f"{result['memorizing_floor']:.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
