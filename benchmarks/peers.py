"""Peers of sampling: bare vLLM, with and without a seed per request, and ray.data.llm.

    python benchmarks/peers.py NAME RECIPE PROMPTS RESULT.json [section.key=value ...]

Reads the prompts of a run; writes `seconds` and the sampled ids of each request. Called by
sampling.py.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ssd_ray import models, recipes
from ssd_ray.artifacts import shards
from ssd_ray.config import Recipe
from ssd_ray.inference.vllm.arguments import engine_arguments, engine_environment
from ssd_ray.inference.vllm.engine import sample_seed
from ssd_ray.schema import Prompt

Request = tuple[str, list[int], dict[str, Any]]
"""Key, prompt ids, vLLM's sampling parameters."""


def bare(recipe: Recipe, requests: list[Request]) -> dict[str, Any]:
    """Run `LLM.generate` on all requests at once."""
    from vllm import LLM, SamplingParams

    engine = LLM(**_arguments(recipe))
    prompts = [{"prompt_token_ids": ids} for _, ids, _ in requests]
    params = [SamplingParams(**chosen) for _, _, chosen in requests]
    began = time.perf_counter()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    drawn = [list(output.outputs[0].token_ids) for output in outputs]
    return {
        "seconds": seconds,
        "sequences": dict(zip([key for key, _, _ in requests], drawn, strict=True)),
    }


def without_seeds(recipe: Recipe, requests: list[Request]) -> dict[str, Any]:
    """Run `LLM.generate` with one random state for all requests."""
    free = [
        (key, ids, {name: value for name, value in chosen.items() if name != "seed"})
        for key, ids, chosen in requests
    ]
    return bare(recipe, free)


def ray_data_llm(recipe: Recipe, requests: list[Request]) -> dict[str, Any]:
    """Return seconds of the slowest request of ray.data.llm, with all in one batch."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    reserved = (
        {"CPU": recipe.engine.cpus} if recipe.cluster.device == "cpu" else {"GPU": 1, "CPU": 1}
    )
    # Its own tasks need one more core than the engine.
    spare = recipe.engine.cpus + 2 if recipe.cluster.device == "cpu" else None
    ray.init(address="local", num_cpus=spare, include_dashboard=False, log_to_driver=False)
    arguments = _arguments(recipe)
    config = vLLMEngineProcessorConfig(
        model_source=arguments.pop("model"),
        engine_kwargs=arguments,
        placement_group_config={"bundle_per_worker": reserved},
        runtime_env={"env_vars": engine_environment(recipe.engine, recipe.cluster.device)},
        max_pending_requests=len(requests),
        batch_size=len(requests),
        concurrency=1,
        # Its metrics do not start with the pinned pair of Ray and vLLM.
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        prepare_multimodal_stage=False,
    )
    rows = [{"key": key, "ids": ids, "params": chosen} for key, ids, chosen in requests]
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "key": row["key"],
            "tokenized_prompt": row["ids"],
            "sampling_params": row["params"],
        },
        postprocess=lambda row: {
            "key": row["key"],
            "drawn": row["generated_tokens"],
            "seconds": row["time_taken_llm"],
        },
    )
    drawn = processor(ray.data.from_items(rows, override_num_blocks=1)).take_all()
    sequences = {row["key"]: [int(token) for token in row["drawn"]] for row in drawn}
    return {"seconds": max(row["seconds"] for row in drawn), "sequences": sequences}


PEERS = {"vLLM": bare, "vLLM without seeds": without_seeds, "ray.data.llm": ray_data_llm}


def _arguments(recipe: Recipe) -> dict[str, Any]:
    return engine_arguments(
        models.fetch(recipe.model), recipe.model, recipe.engine, recipe.cluster.device
    )


def _requests(recipe: Recipe, prompts: Path) -> list[Request]:
    sample = recipe.sample
    chosen = {
        "temperature": sample.temperature,
        "top_k": sample.top_k or 0,
        "top_p": sample.top_p,
        "max_tokens": sample.max_tokens,
    }
    return [
        (
            f"{row.prompt_id} {index}",
            list(row.token_ids),
            {**chosen, "seed": sample_seed(recipe.seed, row.prompt_id, index)},
        )
        for row in shards.read_rows(prompts, Prompt)
        for index in range(sample.samples_per_prompt)
    ]


if __name__ == "__main__":
    name, recipe_name, prompts, result, *chosen = sys.argv[1:]
    loaded = recipes.load(recipe_name, chosen)
    Path(result).write_text(json.dumps(PEERS[name](loaded, _requests(loaded, Path(prompts)))))
