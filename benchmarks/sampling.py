r"""Tokens/s of `sample`, through Ray Data and shards, against bare vLLM and ray.data.llm.

    python benchmarks/sampling.py --out figures.json [--recipe quickstart] \
        [--cases short 64 512] [--rounds 1]

- Prompts are the recipe's. The case `short` has questions of about thirty tokens each, so that
  nearly all work is decoding, as in long reasoning.
- All programs get the same model, engine arguments, prompts, decoding and seeds. Each runs in
  a fresh process, alternating, `rounds` times. The median counts.
- Start-up is excluded. Ours runs from the ready engine to the last shard on disk,
  `LLM.generate` from call to return, ray.data.llm from first request to last answer.
- Sequences that differ from bare vLLM's are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peers
from machine import machine

from ssd_ray import recipes
from ssd_ray.artifacts import shards
from ssd_ray.inference.vllm.arguments import engine_environment
from ssd_ray.schema import Completion

PROMPTS = 64
DECODING = [
    "sample.temperature=0.8",
    "sample.top_k=20",
    "sample.top_p=0.95",
    "evaluate.prompt_mode=chat",
]
OURS = {"ssd_ray": "exact", "ssd_ray, vLLM's sampler": "vllm"}


class Case(NamedTuple):
    """Number of requests, longest answer in tokens, and whether prompts are short ones."""

    requests: int
    max_tokens: int
    short: bool = False


CASES = {"short": Case(64, 128, short=True), "64": Case(64, 128), "512": Case(512, 48)}
# (ours, theirs, least ratio, at how many requests); the exact sampler's limit is for CPUs.
LIMITS = [
    ("ssd_ray, vLLM's sampler", "vLLM", 0.95, (64, 512)),
    ("ssd_ray", "vLLM", 1.5, (64,)),
    ("ssd_ray", "ray.data.llm", 1.0, (64, 512)),
    ("ssd_ray, vLLM's sampler", "ray.data.llm", 1.0, (64, 512)),
]


def overrides(case: Case, sampler: str, directory: Path) -> list[str]:
    """Return recipe overrides: at most 64 prompts, with several samples for more requests."""
    prompts = min(case.requests, PROMPTS)
    sizes = {
        "prompts.limit": prompts,
        "sample.samples_per_prompt": case.requests // prompts,
        "sample.max_tokens": case.max_tokens,
    }
    sizes["sample.shard_rows"] = (
        16  # as recipes have it; the quick start's four rows a shard are for its short run
    )
    chosen = [
        *DECODING,
        *(f"{name}={value}" for name, value in sizes.items()),
        f"engine.sampler={sampler}",
    ]
    if not case.short:
        return chosen
    questions = directory / "questions.jsonl"
    asked = (
        (
            "Write a Python program that reads a number and prints its remainder after division "
            f"by {n}."
        )
        for n in range(2, 2 + prompts)
    )
    questions.write_text("".join(json.dumps({"question": text}) + "\n" for text in asked))
    return [*chosen, f"prompts.source={questions}", "prompts.split=all", "prompts.mode=chat"]


def ours(recipe: str, chosen: list[str], run: Path) -> dict[str, Any]:
    """Run `ssd-ray sample` in a new run directory."""
    sets = [part for override in chosen for part in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "ssd_ray",
        "sample",
        recipe,
        "--quiet",
        "--out",
        str(run),
        *sets,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    logs = "".join(path.read_text(errors="replace") for path in (run / "logs").glob("*.log"))
    ready = [
        float(seconds) for seconds in re.findall(r"^engine ready at ([0-9.]+)$", logs, re.MULTILINE)
    ]
    rows = list(shards.read_rows(run / "samples", Completion))
    ended = max(path.stat().st_mtime for path in shards.shard_paths(run / "samples"))
    sequences = {f"{row.prompt_id} {row.sample_index}": list(row.output_token_ids) for row in rows}
    return {"seconds": ended - min(ready), "sequences": sequences}


def peer(name: str, recipe_name: str, chosen: list[str], run: Path) -> dict[str, Any]:
    """Run a peer on the prompts of our run, in a fresh process with the engine's environment."""
    recipe = recipes.load(recipe_name, chosen)
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "result.json")
        command = [
            sys.executable,
            peers.__file__,
            name,
            recipe_name,
            str(run / "prompts"),
            str(result),
            *chosen,
        ]
        environment = os.environ | engine_environment(recipe.engine, recipe.cluster.device)
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        measured: dict[str, Any] = json.loads(result.read_text())
        return measured


def measure(recipe_name: str, case: Case, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run every program once in each round; yield each name with its result."""
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            chosen = overrides(case, "vllm", Path(directory))
            for name, sampler in OURS.items():
                run = Path(directory, sampler)
                yield name, ours(recipe_name, overrides(case, sampler, Path(directory)), run)
            for name in peers.PEERS:
                yield name, peer(name, recipe_name, chosen, run)


def summary(measured: list[tuple[str, dict[str, Any]]], requests: int) -> dict[str, Any]:
    """Return median tokens/s and seconds per program, ratios, limits, and equal sequences."""
    rates: dict[str, list[float]] = {}
    for name, result in measured:
        tokens = sum(map(len, result["sequences"].values()))
        rates.setdefault(name, []).append(tokens / result["seconds"])
    median = {name: statistics.median(each) for name, each in rates.items()}
    last = dict(measured)
    bare = last["vLLM"]["sequences"]
    equal = {
        name: sum(last[name]["sequences"][key] == ids for key, ids in bare.items())
        for name in (*OURS, "ray.data.llm")
    }
    ratios = [
        {
            "of": of,
            "to": to,
            "ratio": median[of] / median[to],
            "limit": limit if requests in where else None,
        }
        for of, to, limit, where in LIMITS
    ]
    seeds = 1 - median["vLLM"] / median["vLLM without seeds"]
    return {
        "tokens_per_s": median,
        "rounds": rates,
        "ratios": ratios,
        "equal": equal,
        "of": len(bare),
        "cost_of_seeds": seeds,
    }


def main() -> None:
    """Measure at each number of requests, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    record: dict[str, Any] = {"machine": machine(), "recipe": options.recipe, "decoding": DECODING}
    for name in options.cases:
        case = CASES[name]
        figures = summary(list(measure(options.recipe, case, options.rounds)), case.requests)
        record[name] = {**case._asdict(), **figures}
        print(
            f"{case.requests} requests of up to {case.max_tokens} "
            f"tokens{', short prompts' if case.short else ''}"
        )
        for program, rate in figures["tokens_per_s"].items():
            same = (
                f"   {figures['equal'][program]} of {figures['of']} sequences as bare vLLM's"
                if program in figures["equal"]
                else ""
            )
            print(f"  {program:24} {rate:8.1f} tok/s{same}")
        for row in figures["ratios"]:
            limit = f" (at least {row['limit']:g})" if row["limit"] else ""
            print(f"  {row['of']} / {row['to']}: {row['ratio']:.3f}{limit}")
        print(f"  per-request seeds cost bare vLLM {figures['cost_of_seeds']:.1%}", flush=True)
        options.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
