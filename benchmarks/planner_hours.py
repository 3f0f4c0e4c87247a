"""The planner's hours against a simulation of the same steps, layer by layer.

    python benchmarks/planner_hours.py --out figures.json

Nothing is trained, and no GPU is needed. The simulation shares with the plan the assumptions about
the machine and the function to deal a batch (`share_out`). Everything else is its own:

- lengths are drawn at random, one batch after another;
- operations are counted from the matrices in config.json;
- every worker passes its micro-batches through the layers. A layer begins when the layer before it
  has ended and its parameters have arrived. A gather begins when all workers have asked for it, two
  layers ahead, and the link is free. Gradients of a layer are reduced after its backward pass.

Ends with an error if a plan is further than 15 % from its simulation.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray

from ssd_ray import recipes
from ssd_ray.artifacts.dataset_facts import LengthHistogram, SequenceFacts
from ssd_ray.config import Recipe
from ssd_ray.models.architecture import SHIPPED, shipped
from ssd_ray.planner.assumptions import Assumptions, assumptions
from ssd_ray.planner.clusters import plan_training
from ssd_ray.planner.work import max_tokens
from ssd_ray.training.data.batches import share_out
from ssd_ray.training.data.health import length_edges

LIMIT = 0.15
"""Largest difference between a plan and its simulation, as a share of the simulation."""
PREFETCHED = 2
"""Layers with parameters present or on the way at a time."""
UNPACKED = [
    "train.packing=false",
    "train.attention=sdpa",
    "train.sequence_parallel_size=1",
]
CASES: list[tuple[str, int, list[str]]] = [
    ("qwen3-4b-instruct", 8, UNPACKED),
    ("qwen3-4b-instruct", 32, UNPACKED),
    ("qwen3-4b-instruct", 8, []),
    ("llama-3.1-8b-instruct", 16, UNPACKED),
    ("qwen3-30b-instruct", 16, UNPACKED),
    ("qwen3-30b-instruct", 32, UNPACKED),
    ("qwen3-30b-instruct", 16, []),
    ("qwen3-30b-instruct", 32, []),
]
"""Recipe, GPUs, overrides."""
CAPPED = (0.0, 0.005, 0.02)
"""Shares of answers at the limit of length."""
Floats = NDArray[np.float64]


def draw(rng: np.random.Generator, number: int, assumed: Assumptions, limit: int) -> Floats:
    """Draw lengths of answers in tokens."""
    scale = assumed.mean_response_tokens / 2
    ended = np.clip(np.round(rng.gamma(2, scale, number)), 1, limit)
    return np.where(rng.random(number) < assumed.capped_share, limit, ended)


def config_of(source: str) -> dict[str, Any]:
    """Return the config.json of a shipped model."""
    for path in SHIPPED.glob("*.json"):
        entry = json.loads(path.read_text())
        if source in entry["models"]:
            config: dict[str, Any] = entry["config"]
            return config
    raise LookupError(source)


class Worker:
    """Seconds and bytes of one layer, from config.json and the assumptions."""

    def __init__(self, recipe: Recipe, assumed: Assumptions, gpus: int) -> None:
        config = config_of(recipe.model.source)
        self.layers = config["num_hidden_layers"]
        self._hidden = config["hidden_size"]
        self._vocabulary = config["vocab_size"]
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or self._hidden // heads
        self._query = heads * head_dim
        self._key_value = config["num_key_value_heads"] * head_dim
        attention = 2 * self._hidden * (self._query + self._key_value)
        self._active = attention + 3 * self._hidden * config["intermediate_size"]
        stored = self._active
        share = assumed.mfu_dense
        if experts := config.get("num_experts") or config.get("num_local_experts"):
            width = config.get("moe_intermediate_size") or config["intermediate_size"]
            one = 3 * self._hidden * width
            router = self._hidden * experts
            self._active = attention + router + config["num_experts_per_tok"] * one
            stored = attention + router + experts * one
            share = assumed.mfu_moe
        embeddings = 1 if config.get("tie_word_embeddings") else 2
        # Embeddings and output head are spread over the layers, so that all layers are alike.
        stored += embeddings * self._vocabulary * self._hidden / self.layers
        self._shared = recipe.train.sequence_parallel_size
        self._speed = assumed.peak_tflops * 1e12 * share * self._shared
        link = assumed.network_gb_s if gpus > assumed.gpus_per_node else assumed.node_gb_s
        self._node_link = assumed.node_gb_s * 1e9
        moved = stored * (gpus - 1) / gpus / (link * 1e9)
        self.gather = 2 * moved
        """Seconds to gather the bfloat16 parameters of a layer."""
        self.reduce = 4 * moved
        """Seconds to reduce its float32 gradients."""
        self._packed = recipe.train.packing
        # Every second layer of GPT-OSS sees a window of 128 tokens, whose scores cost next to none.
        self._full = 1 / 2 if config["model_type"] == "gpt_oss" else 1

    def layer(self, group: NDArray[np.int64], prompt: int) -> float:
        """Return the seconds of one layer over a micro-batch, both passes."""
        lengths = group if self._packed else np.full(len(group), group.max())
        products = 2 * self._active * lengths.sum()
        scores = 4 * self._query * float((lengths * (lengths + 1) / 2).sum()) * self._full
        head = 2 * self._vocabulary * self._hidden * float((group - prompt).sum()) / self.layers
        sent = 2 * 2 * (self._query + self._key_value) * lengths.sum() / self._shared
        sent *= (self._shared - 1) / self._shared
        # A backward pass has twice the operations. The share of the peak is that of three forward
        # passes; what is sent is sent again where activations are recomputed.
        return float(3 * ((products + scores + head) / self._speed + sent / self._node_link))


def simulate(worker: Worker, dealt: list[list[Floats]]) -> float:
    """Return the seconds of one step; `dealt` are seconds of a layer, [worker][micro-step]."""
    clock = np.zeros(len(dealt))
    link = 0.0
    for number in range(len(dealt[0])):
        seconds = np.array([float(share[number]) for share in dealt])
        for backward in (False, True):
            arrived = []
            for _ in range(PREFETCHED):
                link = max(link, float(clock.max())) + worker.gather
                arrived.append(link)
            for layer in range(worker.layers):
                entered = np.maximum(clock, arrived[layer])
                # A collective begins once the last worker has asked for it and the link is free.
                if len(arrived) < worker.layers:
                    link = max(link, float(entered.max())) + worker.gather
                    arrived.append(link)
                # Forward, and in the backward pass forward again and twice as much.
                clock = entered + seconds * (3 / 4 if backward else 1 / 4)
                if backward:
                    link = max(link, float(clock.max())) + worker.reduce
    return max(float(clock.max()), link)


def simulated(recipe: Recipe, assumed: Assumptions, lengths: Floats) -> float:
    """Return the hours of a training by simulation, for lengths of answers, [steps, batch]."""
    gpus = recipe.cluster.train_workers
    worker = Worker(recipe, assumed, gpus)
    prompt = round(assumed.mean_prompt_tokens)
    limit = max_tokens(recipe)
    budget = 1 if recipe.train.sequences_alone else limit
    shares = gpus // recipe.train.sequence_parallel_size
    seconds = []
    for answers in lengths:
        responses = answers.astype(np.int64)
        tokens = responses + prompt
        dealt = share_out(tokens, responses, shares, budget, packed=recipe.train.packing)
        layer = [[worker.layer(tokens[group], prompt) for group in share] for share in dealt]
        seconds.append(simulate(worker, layer))
    return recipe.train.steps * float(np.mean(seconds)) / 3600


def counted(lengths: Floats, prompt: int) -> SequenceFacts:
    """Return the facts that `prepare` would record of these answers."""
    responses = lengths.astype(np.int64).ravel()
    edges = length_edges(responses)
    counts = np.histogram(responses, bins=edges)[0].tolist()
    histogram = LengthHistogram(edges=tuple(edges), counts=tuple(counts))
    rows = len(responses)
    return SequenceFacts(
        rows=rows,
        prompt_tokens=rows * prompt,
        response_tokens=int(responses.sum()),
        length_histogram=histogram,
    )


def main() -> None:
    """Simulate and compare; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300, help="simulated steps of each case")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = []
    for name, gpus, chosen in CASES:
        recipe = recipes.load(name, [*chosen, f"cluster.train_workers={gpus}"])
        model = shipped(recipe.model.source)
        assert model is not None
        for capped in CAPPED:
            # Time alone is compared: memory is that of `benchmarks/planner.py`.
            assumed = assumptions([f"capped_share={capped}", "gpu_memory_gib=1000"])
            prompt = round(assumed.mean_prompt_tokens)
            batch = recipe.train.global_batch_size
            rng = np.random.default_rng(1)
            lengths = draw(rng, arguments.steps * batch, assumed, max_tokens(recipe) - prompt)
            truth = simulated(recipe, assumed, lengths.reshape(-1, batch))
            plans = {
                source: plan_training(recipe, model, assumed, facts).requested.time
                for source, facts in (("assumed", None), ("counted", counted(lengths, prompt)))
            }
            layout = "unpacked" if chosen else "packed over 8"
            case = f"{name} on {gpus}, {layout}, {capped:.1%} at limit"
            hours = {source: time.hours for source, time in plans.items() if time}
            figures.append({"case": case, "simulated_hours": truth, "planned_hours": hours})
            ratios = ", ".join(
                f"{source} {planned:6.2f} h ({planned / truth:.2f})"
                for source, planned in hours.items()
            )
            print(f"{case:<66} simulated {truth:6.2f} h; planned by lengths {ratios}")
    arguments.out.write_text(
        json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n"
    )
    wrong = [
        each["case"]
        for each in figures
        for planned in each["planned_hours"].values()  # type: ignore[attr-defined]
        if abs(planned / each["simulated_hours"] - 1) > LIMIT
    ]
    if wrong:
        sys.exit(f"further than {LIMIT:.0%} from the simulation: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
