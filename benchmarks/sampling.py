"""Tokens/s of `sample`, through Ray Data and shards on disk, as a share of vLLM's own `LLM.generate` on the same prompts.

    python benchmarks/sampling.py --out figures.json [--recipe quickstart]

Both draw the same number of tokens with the same decoding and seeds, each in a fresh process, without start-up time:
ours from the engine being ready to the last shard on disk, vLLM's from the call to its return.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine


def raw(recipe_name: str, run: str) -> None:
    """Draw with `LLM.generate` and print tokens and seconds as JSON on the last line."""
    from vllm import LLM, SamplingParams

    from ssd_ray import artifacts, models, recipes
    from ssd_ray.inference.arguments import engine_arguments
    from ssd_ray.inference.engine import sample_seed
    from ssd_ray.schema import Prompt

    recipe = recipes.load(recipe_name)
    sample = recipe.sample
    engine = LLM(**engine_arguments(models.fetch(recipe.model), recipe.model, recipe.engine, recipe.cluster.device))
    prompts = list(artifacts.read_rows(Path(run) / "prompts", Prompt))
    decoding = [
        SamplingParams(
            temperature=sample.temperature,
            top_k=sample.top_k or 0,
            top_p=sample.top_p,
            max_tokens=sample.max_tokens,
            seed=sample_seed(recipe.seed, prompt.prompt_id, 0),
        )
        for prompt in prompts
    ]
    inputs = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts]
    engine.generate(inputs[:2], SamplingParams(max_tokens=4), use_tqdm=False)
    began = time.perf_counter()
    outputs = engine.generate(inputs, decoding, use_tqdm=False)
    seconds = time.perf_counter() - began
    print(json.dumps({"tokens": sum(len(output.outputs[0].token_ids) for output in outputs), "seconds": seconds}))


def main() -> None:
    """Draw twice and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--raw", metavar="RUN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw:
        raw(options.recipe, options.raw)
        return
    from ssd_ray import recipes
    from ssd_ray.inference.arguments import engine_environment

    recipe = recipes.load(options.recipe)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "ssd_ray.cli", "sample", options.recipe, "--quiet", "--out", f"{directory}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        run = Path(directory, "run")
        ours = json.loads((run / "samples" / "pace.json").read_text())
        environment = os.environ | engine_environment(recipe.engine, recipe.cluster.device)
        again = [sys.executable, __file__, "--out", str(options.out), "--recipe", options.recipe, "--raw", str(run)]
        shown = subprocess.run(again, check=True, env=environment, capture_output=True, text=True).stdout
        theirs = json.loads(shown.strip().splitlines()[-1])
    rates = {name: each["tokens"] / each["seconds"] for name, each in (("ssd_ray", ours), ("vllm", theirs))}
    print(f"ssd_ray {rates['ssd_ray']:.1f} tok/s, vLLM {rates['vllm']:.1f} tok/s, ratio {rates['ssd_ray'] / rates['vllm']:.3f}")
    record = {"ours": ours, "vllm": theirs, "ratio": rates["ssd_ray"] / rates["vllm"], "machine": machine()}
    options.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
